"""A trial: one schedule, from its proposal to the report."""

from __future__ import annotations

import enum
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime

from studies.records.halves import overall

# Labels, in place of a proposer's name, of the schedules that every search evaluates first, and of those in which one
# block alone skips, or a few neighbours.
INITIAL_DESIGN, ABLATION = "initial design", "ablation"
# Label of schedules that were solved for a target from what the study knew, after its search.
SOLVED = "solve"
# Metric of ablations at a low fidelity, and of solved schedules: see `Trial.evaluations`.
EVALUATIONS = "evaluations"


class TrialState(enum.StrEnum):
    """State of a trial; `PRUNED` ones ended at a low fidelity: as others did better there, or as ablations."""

    RUNNING = "running"
    FINISHED = "finished"
    PRUNED = "pruned"
    FAILED = "failed"


def finite_values(values: Sequence[float] | None) -> bool:
    """Tells whether figures can be compared: there are some, and none of them is infinite or NaN.

    An infinite value would be worth more than every other one where it is compared, or make nothing of them where it
    enters a range or a volume. So this is asked before any comparison, normalisation or volume.
    """
    return values is not None and all(map(math.isfinite, values))


@dataclass(frozen=True)
class WorkSpan:
    """A time in which a worker evaluated a trial, or a part of it."""

    worker: str  # a number among those of a search, on a cluster with the name of its machine
    began_at: datetime  # by the worker's clock, UTC
    seconds: float


@dataclass(frozen=True)
class Trial:
    """A schedule that is evaluated or was, at one fidelity.

    Attributes:
        number: Position in the study, from 0, without gaps.
        schedule: Share of tokens skipped, one per block; `Halves` where attention and MLP skip apart, or keep keys.
        proposer: Name of the proposer of the schedule: "deap", "tpe", "initial design", ...
        parents: Numbers of the trials that the schedule was made from; empty if it came by chance or from a model, if
            they are not of this study.
        state: Running, or how it ended.
        values: Objective values in the study's order, lower is better; None if the trial failed or is running.
        metrics: Figures beside the objectives, for example `perplexity`.
        constraint_violation: Amount by which it breaks the study's constraints; 0 if it keeps them, infinite if nothing
            says how much.
        fidelity: Share of the search set used (the calibration examples that trials are evaluated on), in (0, 1].
        seconds: Time that the evaluation took on its worker.
        finished_at: When its result reached the study, UTC; None while it is running.
        error: Message of the error, if it failed.
        round: Search of the study that it belongs to: 0 is the first one, n the n-th refinement.
        router: Number of the study's router that decided (`RouterRun.number`); None for the static router.
        work: Times at which workers evaluated it, attempts that failed included; empty if its figures were known from
            elsewhere.
    """

    number: int
    schedule: tuple[float, ...]
    proposer: str
    parents: tuple[int, ...] = ()
    state: TrialState = TrialState.RUNNING
    values: tuple[float, ...] | None = None
    metrics: Mapping[str, float] = field(default_factory=dict)
    constraint_violation: float = 0.0
    fidelity: float = 1.0
    seconds: float = 0.0
    finished_at: datetime | None = None
    error: str | None = None
    round: int = 0
    router: int | None = None
    work: tuple[WorkSpan, ...] = ()

    @property
    def overall_sparsity(self) -> float:
        """Mean of the schedule."""
        return overall(self.schedule)

    @property
    def total_violation(self) -> float:
        """Orders trials that cannot be compared by values: lower is better, 0 means whole and within the constraints.

        Of two trials with different ones the lower is better whatever their values (Deb's feasibility rule, 2000);
        values are compared between equal ones only, so at equal fidelity only.
        """
        return self.constraint_violation + 2.0 * (1.0 - self.fidelity)

    @property
    def is_finite(self) -> bool:
        """Tells whether values and constraint violation are finite: nothing can be learned from others."""
        return finite_values(self.values) and math.isfinite(self.constraint_violation)

    @property
    def is_comparable(self) -> bool:
        """Tells whether it finished on the whole search set, keeps the constraints, and has finite values.

        Only such trials compare with each other: no other is on a front, is the best, or enters a volume or a range.
        """
        is_whole = self.state is TrialState.FINISHED and self.fidelity == 1.0
        return is_whole and self.constraint_violation <= 0 and finite_values(self.values)

    @property
    def evaluations(self) -> float:
        """Whole evaluations that it counts as in a budget of trials.

        An ablation at a low fidelity counts as the share of a whole evaluation that it takes at most, which it notes.
        What was solved for a target counts as none, as it is not part of a search. Every other trial counts as one.
        """
        return float(self.metrics.get(EVALUATIONS, 1.0))

    @property
    def worker(self) -> str | None:
        """The worker that evaluated it last; None where `work` is empty."""
        return self.work[-1].worker if self.work else None
