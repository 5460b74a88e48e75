"""Answers of the API: studies, trials, routers and runners."""

from __future__ import annotations

import math
from collections.abc import Sequence
from datetime import datetime
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from studies import StudyRecord, StudyState, TrialState
from studies.records.records import StageRecord, StudySummary
from studies.records.study_facts import SHOWN_FACTS
from studies.records.trial import finite_values
from studies.service.run_events import RunEvent
from studies.service.submissions import RunState, Submission, run_state

# A number as JSON can say it.
Finite = Annotated[float | None, BeforeValidator(lambda number: number if math.isfinite(number) else None)]


class _Record(BaseModel):
    """An answer with the attributes of a record of the database."""

    model_config = ConfigDict(from_attributes=True)


class Health(BaseModel):
    """Whether the service answers."""

    status: str = "ok"


class StudyLine(BaseModel):
    """One line of the list of studies."""

    name: str
    state: RunState
    created_at: datetime
    model: str
    data: str
    n_trials: int = Field(description="Trials that have ended.")


class StudyList(BaseModel):
    """Studies, oldest first."""

    items: list[StudyLine]
    total: int = Field(description="How many there are on all pages.")


class StageAnswer(_Record):
    """The last run of one stage of a study's pipeline."""

    name: str
    state: StudyState
    began_at: datetime
    ended_at: datetime | None
    seconds: float | None


class RunAnswer(BaseModel):
    """What became of a study's last submission."""

    submitted_at: datetime
    submitted_by: str | None = Field(description="Name of the token.")
    runner: str | None
    host: str | None = Field(description="Machine that works on the study now.")
    pid: int | None
    error: str | None = Field(description="Why it ended early.")


class StudyAnswer(StudyLine):
    """A study without its trials."""

    objectives: list[str]
    config: dict[str, Any]
    chosen_trial: int | None
    facts: dict[str, Any] = Field(description="Blocks, split sizes, rounds, and why a point was selected.")
    stages: list[StageAnswer]
    run: RunAnswer | None = Field(description="Null for a study that was never submitted.")


class WorkAnswer(_Record):
    """A time in which a worker of the search evaluated a trial, or a part of it."""

    worker: str
    began_at: datetime
    seconds: float


class TrialAnswer(_Record):
    """One evaluated schedule at one fidelity."""

    number: int
    state: TrialState
    schedule: list[float]
    overall_sparsity: float
    values: Annotated[
        list[float] | None,
        BeforeValidator(lambda values: values if values is not None and finite_values(values) else None),
    ] = Field(description="In the order of the study's objectives; lower is better.")
    fidelity: float
    proposer: str
    parents: list[int] = Field(
        description="Numbers of the trials that the schedule was made from; empty if it came by chance or from a "
        "model, and where an earlier version searched."
    )
    worker: str | None = Field(
        description="Who evaluated it last: a number among the search's workers, on a cluster with the machine's name; "
        "null where that is not known."
    )
    work: list[WorkAnswer] = Field(description="When workers were at it, attempts that failed included.")
    round: int
    router: int | None
    seconds: float
    finished_at: datetime
    metrics: dict[str, Finite]
    constraint_violation: Finite = Field(
        description="By how much it breaks the study's constraints; 0 if it keeps them, null beyond all numbers."
    )
    error: str | None


class TrialPage(BaseModel):
    """Trials by number."""

    items: list[TrialAnswer]
    next: int | None = Field(
        description="Hand it over as `after` for the next page, which may be empty; null at the end."
    )


class Front(BaseModel):
    """The non-dominated trials, lowest first objective first."""

    objectives: list[str]
    items: list[TrialAnswer]


class VolumePoint(BaseModel):
    """The hypervolume from one trial on."""

    trial: int
    finished_at: datetime
    value: float


class VolumeHistory(BaseModel):
    """How much the front dominated: one point for each trial that changed it."""

    reference: list[float] | None = Field(description="Up to which corner; null before a trial has finished.")
    items: list[VolumePoint]


class ScheduleAnswer(BaseModel):
    """What a trial skips."""

    trial: int
    schedule: list[float] = Field(description="Share of tokens that skip each block.")
    overall_sparsity: float
    router: int | None = Field(description="Number of the router that decides which tokens; null for the static one.")


class RouterAnswer(_Record):
    """A distilled router, without its weights."""

    number: int
    trial: int
    schedule: list[float]
    config: dict[str, Any]
    curves: dict[str, list[float]]
    sha256: str
    seconds: float
    created_at: datetime
    beats_static: bool


class Routers(BaseModel):
    """The routers of a study, oldest first."""

    items: list[RouterAnswer]


class LogLine(BaseModel):
    """A line that a run wrote."""

    number: int
    at: datetime
    text: str


class Log(BaseModel):
    """What runs of a study wrote."""

    items: list[LogLine]
    next: int = Field(description="Hand it over as `after` for what comes next.")


class FileAnswer(BaseModel):
    """A file of the report."""

    name: str
    bytes: int


class Files(BaseModel):
    """The files of the report."""

    items: list[FileAnswer]


class RunnerAnswer(_Record):
    """A process that runs submitted studies."""

    id: str
    host: str
    pid: int
    began_at: datetime
    silent_s: Annotated[float, BeforeValidator(lambda seconds: max(0.0, seconds))] = Field(
        description="Seconds since it showed itself."
    )
    is_alive: bool
    study: str | None


class RunnerList(BaseModel):
    """Runners that have shown themselves within a day, oldest first."""

    items: list[RunnerAnswer]


def study_line(summary: StudySummary, submission: Submission | None) -> StudyLine:
    """A line of the list."""
    return StudyLine(
        name=summary.name,
        state=run_state(summary.state, submission),
        created_at=summary.created_at,
        model=summary.model,
        data=summary.data,
        n_trials=summary.n_trials,
    )


def study_answer(
    study: StudyRecord, n_trials: int, stages: Sequence[StageRecord], submission: Submission | None
) -> StudyAnswer:
    """A study."""
    return StudyAnswer(
        name=study.name,
        state=run_state(study.state, submission),
        created_at=study.created_at,
        model=str(study.config.get("model", "")),
        data=str(study.config.get("data", "")),
        n_trials=n_trials,
        objectives=list(study.objectives),
        # Where the cluster is concerns nobody who may not decide it.
        config={key: value for key, value in study.config.items() if key != "ray_address"},
        chosen_trial=study.chosen_trial,
        facts=study.facts.to_json(SHOWN_FACTS),
        stages=[StageAnswer.model_validate(one) for one in stages],
        run=None if submission is None else _run(submission),
    )


def _run(submission: Submission) -> RunAnswer:
    holder = submission.holder if submission.holder is not None and submission.holder.alive else None
    return RunAnswer(
        submitted_at=submission.submitted_at,
        submitted_by=submission.submitted_by,
        runner=submission.runner,
        host=None if holder is None else holder.host.split("/")[0],
        pid=None if holder is None else holder.pid,
        error=submission.error,
    )


def log_line(event: RunEvent) -> LogLine:
    """A line of the log."""
    return LogLine(number=event.number, at=event.at, text=str(event.content.get("text", "")))
