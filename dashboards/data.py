"""What a report is made from, and which of its measurements belong together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

from studies import (
    AgainstShortenedPrompt,
    Exhibits,
    LeftAside,
    Measurement,
    RouterRun,
    StageRecord,
    StudyRecord,
    StudyState,
    TrialRecord,
    front,
    measured_against_shortened_prompt,
    searched_against_shortened_prompt,
)
from studies.objectives import COSTS, DEFAULT_COST, Objective, objective

# One row each, in this order, before the candidates of the front.
NAMED_VARIANTS = ("dense", "uniform", "static", "dynamic", "refined")


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
        measurements: What was measured; empty before that. Only those of the split "test" are results: the ones that
            the selection saw stay out of every table and figure.
        router_runs: Its routers, oldest first.
        exhibits: Single prompts and items of the test set; None before they were looked at.
        stages: The stages that its pipeline has been through.
        left_aside: How many trials of the study are not among these, since other programs added them.
    """

    study: StudyRecord
    trials: Sequence[TrialRecord]
    measurements: Sequence[Measurement]
    router_runs: Sequence[RouterRun]
    exhibits: Exhibits | None = None
    stages: Sequence[StageRecord] = ()
    left_aside: LeftAside = field(default_factory=LeftAside)

    @property
    def state(self) -> str:
        """Where the study stands; a report that is written as its last stage does not count as one that runs."""
        running = [stage.name for stage in self.stages if stage.state is StudyState.RUNNING]
        return StudyState.FINISHED.value if running == ["report"] else self.study.state.value

    @property
    def cost(self) -> Objective:
        """What the study trades KL against."""
        return objective(self.study.objectives[1] if len(self.study.objectives) > 1 else DEFAULT_COST)

    @property
    def prefill(self) -> str:
        """The prefill that costs are of, for a sentence; empty where it is not known."""
        facts = self.study.facts
        shape = facts.get("timed_input") or facts.get("latency_profile")
        return f" of a prefill of {shape['batch']} × {shape['length']} tokens{self._within}" if shape else ""

    @property
    def _within(self) -> str:
        """How far off predicted latency may be, where that is what a study trades KL against, and known."""
        shapes = self.study.facts.get("latency_profile", {}).get("shapes", [])
        known = [one["uncertainty"] for one in shapes if one.get("uncertainty") is not None]
        return f", predicted to within {max(known):.1%}" if known and self.cost.name == "latency_ms" else ""

    @property
    def selection(self) -> Mapping[str, Any] | None:
        """The point that was selected and why; None before that, and where an earlier version measured."""
        found: Mapping[str, Any] | None = self.study.facts.get("selection")
        return found

    @property
    def chosen_trial(self) -> int | None:
        """Number of the trial that was selected, or else chosen from the front."""
        return self.study.chosen_trial if self.selection is None else self.selection["trial"]

    @cached_property
    def shown_schedules(self) -> list[TrialRecord]:
        """The front, and the selected trial: what is best on other items need not be on the front of the search's."""
        points = front(self.trials)
        if any(t.number == self.chosen_trial for t in points):
            return points
        return points + [t for t in self.trials if t.number == self.chosen_trial]

    @cached_property
    def results(self) -> list[Measurement]:
        """What was measured on test items: dense, uniform, static, dynamic and refined, then candidates by KL.

        A candidate that has a row under another name is left out.
        """
        tested = [m for m in self.measurements if m.split == "test"]
        if self.selection is None:
            tested = [self._of_now(m) for m in tested]
        named = [m for variant in NAMED_VARIANTS for m in tested if m.variant == variant]
        shown = {(m.trial, m.router) for m in named if m.variant != "dynamic" or m.router is not None}
        others = [m for m in tested if m.variant not in NAMED_VARIANTS and (m.trial, m.router) not in shown]
        return named + sorted(others, key=lambda m: m.kl)

    def _of_now(self, m: Measurement) -> Measurement:
        """A measurement in today's terms: an earlier version called every point of the front static."""
        other = m.variant == "static" and m.trial != self.study.chosen_trial
        return replace(m, variant="candidate") if other else m

    @property
    def selected(self) -> Measurement | None:
        """The selected point as measured on test items: what a user would run."""
        if self.selection is None:
            routers = [m for m in self.results if m.variant in ("static", "dynamic")]
            routers = [m for m in routers if m.trial == self.study.chosen_trial]
            return min(routers, key=lambda m: m.kl, default=None)
        wanted = (self.selection["trial"], self.selection.get("router"))
        return next((m for m in self.results if m.trial is not None and (m.trial, m.router) == wanted), None)

    @cached_property
    def against_shortened_prompt(self) -> AgainstShortenedPrompt | None:
        """The selected point beside a shortened prompt, or before it was measured the chosen trial; None if unknown."""
        if self.selected is not None:
            return measured_against_shortened_prompt(
                self.selected, self.measured("uniform"), self.measured("dense"), self.exhibits
            )
        chosen = next((trial for trial in self.trials if trial.number == self.chosen_trial), None)
        if chosen is None or self.study.objectives[:1] != ("kl",):
            return None
        return searched_against_shortened_prompt(chosen, self.trials)

    def measured(self, variant: str) -> Measurement | None:
        """The test measurement of a variant, the first of several candidates."""
        return next((m for m in self.results if m.variant == variant), None)

    def timed_earlier(self, m: Measurement) -> bool:
        """Whether a latency was taken over from the sitting on validation items: no machine is as fast every hour."""
        seen = (v for v in self.measurements if v.split == "validation" and v.trial is not None)
        return any((v.trial, v.router, v.latency_ms) == (m.trial, m.router, m.latency_ms) for v in seen)

    def dense_timed_with(self, m: Measurement) -> Measurement | None:
        """The dense model as it was timed in the same sitting as a measurement."""
        split = "validation" if self.timed_earlier(m) else "test"
        return next((one for one in self.measurements if one.split == split and one.variant == "dense"), None)

    def measured_point(self, trial: TrialRecord) -> Measurement | None:
        """The test measurement of a trial with the router that it was evaluated with."""
        own = (m for m in self.results if m.variant != "dynamic" or trial.router is not None)
        return next((m for m in own if (m.trial, m.router) == (trial.number, trial.router)), None)

    def router_pair(self) -> tuple[Measurement, Measurement] | None:
        """The dynamic measurement and one of the same schedule with the static router; None without such a pair."""
        dynamic = self.measured("dynamic")
        if dynamic is None or dynamic.trial is None:
            return None
        statics = (m for m in self.results if m.variant in ("static", "candidate") and m.router is None)
        static = next((m for m in statics if m.trial == dynamic.trial), None)
        return None if static is None else (dynamic, static)

    def router_name(self, m: Measurement) -> str:
        """What decides in a measurement, in words."""
        if m.variant == "dense":
            return "none"
        if m.router is None:
            # An earlier version did not number routers.
            return "distilled" if m.variant == "dynamic" else "static"
        run = next((run for run in self.router_runs if run.number == m.router), None)
        return f"router {m.router}" if run is None else run.title
