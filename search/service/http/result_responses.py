"""Answers of the API about the results of studies: trials, fronts, measurements, schedules, routers."""

from __future__ import annotations

import math
from datetime import datetime
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from studies import TrialState
from studies.records.halves import to_json
from studies.records.trial import finite_values

# A number, or null for those that JSON lacks.
Finite = Annotated[
    float | None, BeforeValidator(lambda number: number if number is not None and math.isfinite(number) else None)
]


class HalvesAnswer(BaseModel):
    """A schedule whose blocks' halves skip apart, or keep keys and values; each list has a number for every block."""

    attention: list[float] = Field(description="Share of tokens that skip each block's attention.")
    mlp: list[float] = Field(description="Share of tokens that skip each block's MLP.")
    keeps_kv: list[Literal[0, 1]] = Field(
        description="1 where tokens that skip the attention keep their keys and values there."
    )


# A schedule as studies keep it, and as clients read it.
Schedule = Annotated[
    list[float] | HalvesAnswer,
    BeforeValidator(lambda schedule: to_json(schedule) if isinstance(schedule, tuple) else schedule),
    Field(description="Share of tokens that skip each block; or what each of its halves does, where these skip apart."),
]


class Record(BaseModel):
    """A response with the attributes of a record."""

    model_config = ConfigDict(from_attributes=True)


class WorkAnswer(Record):
    """A span of time in which a worker of the search evaluated a trial."""

    worker: str
    began_at: datetime
    seconds: float


class TrialAnswer(Record):
    """One evaluated schedule at one fidelity."""

    number: int
    state: TrialState
    schedule: Schedule
    overall_sparsity: float
    values: Annotated[
        list[float] | None,
        BeforeValidator(lambda values: values if values is not None and finite_values(values) else None),
    ] = Field(description="In the order of the study's objectives; lower is better.")
    fidelity: float
    proposer: str
    parents: list[int] = Field(
        description="Numbers of the trials that the schedule was derived from; empty for random schedules and those of "
        "a model."
    )
    worker: str | None = Field(
        description="Worker that evaluated it last: its number, on a cluster with the machine; null if unknown."
    )
    work: list[WorkAnswer] = Field(description="Spans of its evaluation, failed attempts included.")
    round: int
    router: int | None
    seconds: float
    finished_at: datetime
    metrics: dict[str, Finite]
    constraint_violation: Finite = Field(
        description="Constraint violation; 0 if the constraints are met, null if it is infinite."
    )
    error: str | None


class TrialPage(BaseModel):
    """Trials by number, or sorted by a value."""

    items: list[TrialAnswer]
    next: int | None = Field(
        description="Value of `after`, or of `offset` if sorted, for the next page; null at the end."
    )


class Front(BaseModel):
    """The non-dominated trials, lowest first objective first."""

    objectives: list[str]
    items: list[TrialAnswer]


class MeasurementAnswer(Record):
    """Measured quality and speed of a schedule with a router."""

    variant: str = Field(description="`dense`, `uniform`, `static`, `dynamic`, `refined`, or `candidate`.")
    split: str = Field(description="`validation` for what selection sees, `test` for the report; or other test data.")
    trial: int | None = Field(description="Number of the trial; null for the dense model and for uniform schedules.")
    router: int | None = Field(description="Number of the router; null for the static one.")
    schedule: Schedule
    overall_sparsity: float
    kl: Finite = Field(description="Mean KL from the dense model per completion token, in nats.")
    kl_low: Finite = Field(description="Lower end of its 95 % interval.")
    kl_high: Finite
    perplexity: Finite
    perplexity_low: Finite
    perplexity_high: Finite
    accuracy: Finite = Field(description="Share of choices that are right; null without choices.")
    accuracy_low: Finite
    accuracy_high: Finite
    n_items: int
    n_choice_items: int
    latency_ms: Finite = Field(description="Median time of a prefill of `batch` rows of `length` tokens.")
    latency_low_ms: Finite = Field(description="First quartile.")
    latency_high_ms: Finite = Field(description="Third quartile.")
    speedup: Finite = Field(description="Over the dense model in the same turns; null if it was not timed.")
    speedup_low: Finite
    speedup_high: Finite
    repeats: int
    batch: int
    length: int
    flops: float
    kv_bytes: int | None
    peak_bytes: int | None


class Measurements(BaseModel):
    """The measurements of a study."""

    items: list[MeasurementAnswer]


class SelectionAnswer(Record):
    """The trial that was selected, and why."""

    trial: int
    router: int | None = Field(description="Number of the router; null for the static one.")
    rule: str = Field(description="Name of the rule that decided; `asked` if somebody asked for this trial.")
    reason: str
    retention: Finite = Field(description="Share of the dense model's quality, on validation items.")
    cost: str | None
    latency: str | None = Field(description="Whether `measured` or `predicted` latency decided; null for neither.")


class ComparedModelAnswer(Record):
    """A model that another method made, on test items and on the clock."""

    asked: float = Field(description="Share of the dense prefill's operations that the method was asked to save.")
    flops_saved: float
    flops: float
    kv_bytes: int
    n_parameters: int
    sparsity: str = Field(description="How much the method removes, in the terms of its paper.")
    kl: Finite
    kl_low: Finite
    kl_high: Finite
    perplexity: Finite
    accuracy: Finite = Field(description="Share of choices that are right; null without choices.")
    accuracy_low: Finite
    accuracy_high: Finite
    latency_ms: float
    speedup: float = Field(description="Over the dense model in the same turns.")
    speedup_low: Finite
    speedup_high: Finite
    tokens_per_second: Finite
    batch: int
    length: int
    seconds: float = Field(description="Time that its preparation took.")
    tokens: int = Field(description="Tokens that ran through a model for that.")
    trained_parameters: int


class ComparedAnswer(Record):
    """A method at one target with one seed."""

    method: str = Field(description="Name of the method; `ours` for the study's own schedules.")
    paper: str
    match: str = Field(description="What methods have in common: `latency` or `flops`.")
    target: float = Field(description="Share of the dense model's time, or operations, to be saved.")
    seed: int
    model: ComparedModelAnswer | None = Field(description="Null if the method cannot be applied.")
    refused: str = Field(description="Why it cannot be; empty otherwise.")
    kl_to_ours: str | None = Field(
        None, description="`better`, `worse` or `not told apart` from ours on the same items; null without both."
    )
    accuracy_to_ours: str | None = Field(None, description="The same of right answers.")


class ComparisonAnswer(BaseModel):
    """Other methods beside a study's schedules."""

    items: list[ComparedAnswer]


class VolumePoint(BaseModel):
    """The hypervolume after a trial."""

    trial: int
    finished_at: datetime
    value: float


class VolumeHistory(BaseModel):
    """Growth of the front's hypervolume: a point for each trial that changed it."""

    reference: list[float] | None = Field(description="Reference point; null before a trial has finished.")
    items: list[VolumePoint]


class ScheduleAnswer(BaseModel):
    """The schedule of a trial."""

    trial: int
    schedule: Schedule
    overall_sparsity: float
    router: int | None = Field(description="Number of the router that decides which tokens; null for the static one.")


class RouterOrigin(BaseModel):
    """The router of an exported schedule."""

    kind: str
    sha256: str = Field(description="Hash of the weights.")


class ScheduleFile(BaseModel):
    """The schedule of a trial, where it comes from, and the settings of its study."""

    schedule: Schedule
    overall_sparsity: float
    keep_first: int = Field(description="Tokens at the beginning of a prompt that every block runs.")
    objectives: dict[str, float] = Field(description="Lower is better; latency is predicted.")
    costs: dict[str, float]
    study: str
    study_created_at: datetime
    trial: int
    model: str
    revision: str | None
    adapter: str | None
    model_fingerprint: str | None
    router: RouterOrigin | None = Field(description="Null for the static one.")
    settings: dict[str, Any]


class PromptAnswer(BaseModel):
    """A prompt under the schedule of a trial, with what both models answer."""

    study: str
    trial: int
    overall_sparsity: float
    router: str = Field(description="Kind of its router.")
    n_tokens: int = Field(description="Tokens of the prompt, with special ones that the tokenizer puts before it.")
    n_blocks: int = Field(description="Blocks of the model.")
    tokens: list[str] = Field(description="The prompt as the model reads it, piece by piece.")
    blocks_run: list[float] = Field(description="Number of blocks that each piece runs; a half counts half.")
    dense: str = Field(description="Answer of the dense model; empty where it ends the text at once.")
    pruned: str = Field(description="Answer under the schedule.")
    flops_saved: float = Field(description="Share of the operations of the dense model's prefill.")


class RouterAnswer(Record):
    """A distilled router, without its weights."""

    number: int
    trial: int
    schedule: Schedule
    config: dict[str, Any]
    curves: dict[str, list[float]]
    sha256: str
    seconds: float
    created_at: datetime
    beats_static: bool


class Routers(BaseModel):
    """The routers of a study, oldest first."""

    items: list[RouterAnswer]
