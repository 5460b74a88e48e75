"""What a report is made from, and which of its measurements belong together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from studies import Measurement, RouterRun, StudyRecord, TrialRecord
from studies.objectives import COSTS, DEFAULT_COST, Objective, objective


def measured_cost(m: Measurement, cost: str) -> float | None:
    """What a measurement says of a cost, which has the name of an objective; None if it says nothing."""
    value: float | None = getattr(m, cost, None) if cost in COSTS else None
    return value


@dataclass(frozen=True)
class ReportData:
    """Everything that a report is made from.

    Attributes:
        study: The study.
        trials: Its trials.
        measurements: What was measured; empty before that.
        router_runs: Its routers, oldest first.
    """

    study: StudyRecord
    trials: Sequence[TrialRecord]
    measurements: Sequence[Measurement]
    router_runs: Sequence[RouterRun]

    @property
    def cost(self) -> Objective:
        """What the study trades KL against."""
        return objective(self.study.objectives[1] if len(self.study.objectives) > 1 else DEFAULT_COST)

    @property
    def prefill(self) -> str:
        """The prefill that costs are of, for a sentence; empty where it is not known."""
        facts = self.study.facts
        shape = facts.get("timed_input") or facts.get("latency_profile")
        return f" of a prefill of {shape['batch']} × {shape['length']} tokens" if shape else ""

    def measured(self, variant: str) -> Measurement | None:
        """The measurement of a variant; of the static and dynamic ones, that of the chosen trial."""
        return self._measured(variant, self.study.chosen_trial if variant in ("static", "dynamic") else None)

    def best(self) -> Measurement | None:
        """The better router at the chosen schedule: what a user would run."""
        routers = [m for m in (self.measured("static"), self.measured("dynamic")) if m is not None]
        return min(routers, key=lambda m: m.kl, default=None)

    def _measured(self, variant: str, trial: int | None) -> Measurement | None:
        return next((m for m in self.measurements if m.variant == variant and m.trial == trial), None)

    def router_pair(self) -> tuple[Measurement, Measurement] | None:
        """A dynamic measurement and the static one of the same trial; at the chosen schedule if there is such a pair.

        A router that was distilled before another schedule was chosen compares only at its own schedule.
        """
        dynamic = [m for m in self.measurements if m.variant == "dynamic" and m.trial is not None]
        dynamic.sort(key=lambda m: m.trial != self.study.chosen_trial)
        pairs = ((m, self._measured("static", m.trial)) for m in dynamic)
        return next(((m, static) for m, static in pairs if static is not None), None)
