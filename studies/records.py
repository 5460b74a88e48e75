"""What a study remembers, as plain values: what the database gives back and what dashboards draw."""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any


class StudyState(enum.StrEnum):
    """Where a study stands; `FAILED` and `STOPPED` can be resumed."""

    CREATED = "created"
    RUNNING = "running"
    STOPPED = "stopped"
    FAILED = "failed"
    FINISHED = "finished"


class TrialState(enum.StrEnum):
    """How a trial ended: `PRUNED` ones were stopped at a low fidelity, since others did better there."""

    FINISHED = "finished"
    PRUNED = "pruned"
    FAILED = "failed"


@dataclass(frozen=True)
class TrialRecord:
    """One evaluated schedule at one fidelity.

    Attributes:
        number: Position in the study, from 0, without gaps.
        schedule: Share of tokens skipped, one per block.
        values: Objective values in the study's order, lower is better; None if the trial failed.
        state: How it ended.
        fidelity: Share of the search set used (the calibration examples that trials are evaluated on), in (0, 1].
        proposer: Who proposed the schedule: "deap", "tpe", "anchor", ...
        seconds: Time that the evaluation took on its worker.
        finished_at: When its result reached the study, UTC.
        metrics: Figures beside the objectives, for example `perplexity`.
        error: What went wrong, if it failed.
        violation: By how much it breaks the study's constraints; 0 if it keeps them.
    """

    number: int
    schedule: tuple[float, ...]
    values: tuple[float, ...] | None
    state: TrialState
    fidelity: float
    proposer: str
    seconds: float
    finished_at: datetime
    metrics: Mapping[str, float] = field(default_factory=dict)
    error: str | None = None
    violation: float = 0.0

    @property
    def overall_sparsity(self) -> float:
        """Mean of the schedule."""
        return sum(self.schedule) / len(self.schedule)


@dataclass(frozen=True)
class KnownEvaluation:
    """What the evaluation of a schedule on the whole search set found out.

    Attributes:
        schedule: Share of tokens skipped, one per block.
        metrics: Figures by name.
        seconds: Time that it took.
    """

    schedule: tuple[float, ...]
    metrics: Mapping[str, float]
    seconds: float


@dataclass(frozen=True)
class StageRecord:
    """The last run of one stage of a study's pipeline.

    Attributes:
        name: "search", "distill" or "measure".
        state: Where it stands.
        began_at: When it began, UTC.
        ended_at: When it ended, UTC; None while it runs, and if its process was killed.
    """

    name: str
    state: StudyState
    began_at: datetime
    ended_at: datetime | None

    @property
    def seconds(self) -> float | None:
        """How long it took; None if it has not ended."""
        return None if self.ended_at is None else (self.ended_at - self.began_at).total_seconds()


@dataclass(frozen=True)
class ProposerState:
    """What a proposer keeps in a study between runs.

    Attributes:
        proposer: Its name, which trials are labelled with.
        state: What it keeps: plain values, as JSON knows them.
        updated_at: When that was written, UTC.
    """

    proposer: str
    state: Mapping[str, Any]
    updated_at: datetime


@dataclass(frozen=True)
class QueuedTrial:
    """A schedule whose evaluation was begun, and did not end.

    Attributes:
        number: The trial's number.
        schedule: Share of tokens skipped, one per block.
        proposer: Who proposed it.
    """

    number: int
    schedule: tuple[float, ...]
    proposer: str


@dataclass(frozen=True)
class Measurement:
    """What a schedule with a router really does on held-out data and on the clock.

    Attributes:
        variant: "dense", "uniform", "static" or "dynamic": which router and schedule ran.
        trial: Number of the trial whose schedule it is; None for dense and uniform.
        schedule: Share of tokens skipped, one per block.
        kl: Mean KL(dense || pruned) per completion token, nats.
        perplexity: Of the completions.
        accuracy: Share of multiple-choice items answered right; None if the data has no choices.
        accuracy_low: Lower end of its 95 % interval.
        accuracy_high: Upper end of its 95 % interval.
        n_items: Items that quality was computed on.
        latency_ms: Median of the repeats, one prefill of `batch` rows of `length` tokens.
        latency_low_ms: First quartile of the repeats.
        latency_high_ms: Third quartile of the repeats.
        repeats: How often it was timed.
        batch: Rows of the timed input.
        length: Tokens in each row of the timed input.
        flops: Of the timed input.
        n_choice_items: Multiple-choice items that accuracy was counted on.
        kv_bytes: Of the keys and values that the timed input leaves behind; None where an earlier version measured.
    """

    variant: str
    trial: int | None
    schedule: tuple[float, ...]
    kl: float
    perplexity: float
    accuracy: float | None
    accuracy_low: float | None
    accuracy_high: float | None
    n_items: int
    latency_ms: float
    latency_low_ms: float
    latency_high_ms: float
    repeats: int
    batch: int
    length: int
    flops: float
    n_choice_items: int = 0
    kv_bytes: int | None = None

    @property
    def overall_sparsity(self) -> float:
        """Mean of the schedule."""
        return sum(self.schedule) / len(self.schedule)


@dataclass(frozen=True)
class RouterRun:
    """One distilled router.

    Attributes:
        trial: Number of the trial whose schedule it was distilled on.
        schedule: That schedule.
        config: Hyperparameters of the distillation.
        curves: One list per curve over the steps: "step", "loss", "guide", "sparsity", "distill", "held_out_step",
            "held_out_kl".
        weights: The router as safetensors bytes.
        sha256: Hash of `weights`.
        seconds: Training time.
        created_at: When it was stored, UTC.
    """

    trial: int
    schedule: tuple[float, ...]
    config: Mapping[str, Any]
    curves: Mapping[str, list[float]]
    weights: bytes
    sha256: str
    seconds: float
    created_at: datetime


@dataclass(frozen=True)
class StudySummary:
    """One line of the list of studies."""

    name: str
    state: StudyState
    n_trials: int
    created_at: datetime
    model: str
    data: str


@dataclass(frozen=True)
class StudyRecord:
    """A study without its trials.

    Attributes:
        name: Unique in its database.
        state: Where it stands.
        created_at: When it was created, UTC.
        config: How it was configured, enough to resume it.
        objectives: Names of the objectives, in the order of `TrialRecord.values`.
        facts: What was found out about model, data and machine before the first trial: fingerprints, block count,
            latency profile.
        chosen_trial: Number of the trial that was chosen from the front, once it was.
    """

    name: str
    state: StudyState
    created_at: datetime
    config: Mapping[str, Any]
    objectives: tuple[str, ...]
    facts: Mapping[str, Any]
    chosen_trial: int | None
