"""Answers of the API: studies, their runs, logs, files and runners."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, Field

from search.service.http.result_responses import Finite, Record
from studies import StudyRecord, StudyState
from studies.records.labels import Labels
from studies.records.records import StageRecord, StudySummary
from studies.records.study_facts import SHOWN_FACTS
from studies.service.run_events import RunEvent
from studies.service.submissions import RunState, Submission, run_state


class Health(BaseModel):
    """The service answers."""

    status: str = "ok"


class StudyLine(BaseModel):
    """A study in the list."""

    name: str
    state: RunState
    created_at: datetime
    model: str
    data: str
    n_trials: int = Field(description="Trials that have ended.")
    tags: list[str] = Field(description="Short texts to find it by.")
    note: str = Field(description="Note on it; empty for none.")
    sweep: str | None = Field(description="Sweep that made it; null for a study by itself.")


class StudyList(BaseModel):
    """Studies, oldest first."""

    items: list[StudyLine]
    total: int = Field(description="Number of studies on all pages.")


class StageAnswer(Record):
    """The last run of one stage of a study's pipeline."""

    name: str
    state: StudyState
    began_at: datetime
    ended_at: datetime | None
    seconds: float | None


class ProgressAnswer(Record):
    """How far the run of a study is."""

    foreseen: list[str] = Field(description="Stages of the run, in order; empty if nothing runs.")
    stage: str | None = Field(description="Stage that runs.")
    began_at: datetime | None = Field(description="When that stage began.")
    step: int | None = Field(description="Steps of it that are done; null if unknown.")
    steps: int | None = Field(description="Most steps that it takes; null if unknown.")
    unit: str = Field(description="Kind of the steps.")
    left_s: Finite = Field(description="Seconds until then at the present pace; null if unknown.")
    line: str = Field(description="Last line of the log.")
    ahead: int | None = Field(description="Studies that runners take before; null if it does not wait.")
    has_runner: bool = Field(description="False if it waits and no runner lives.")


class StagesAnswer(BaseModel):
    """The stages of a study."""

    state: RunState
    items: list[StageAnswer] = Field(description="Stages that have begun, in the order in which they did.")
    progress: ProgressAnswer


class RunAnswer(BaseModel):
    """The last submission of a study."""

    submitted_at: datetime
    submitted_by: str | None = Field(description="Name of the token.")
    runner: str | None
    host: str | None = Field(description="Machine that runs the study now.")
    pid: int | None
    error: str | None = Field(description="Why it ended early.")


class StudyAnswer(StudyLine):
    """A study without its trials."""

    objectives: list[str]
    config: dict[str, Any]
    chosen_trial: int | None
    facts: dict[str, Any] = Field(
        description="Findings beside the trials, such as split sizes, refinements and the selection."
    )
    stages: list[StageAnswer]
    run: RunAnswer | None = Field(description="Null for a study that was never submitted.")


class LogLine(BaseModel):
    """A line that a run printed."""

    number: int
    at: datetime
    text: str


class Log(BaseModel):
    """Lines that the runs of a study printed."""

    items: list[LogLine]
    next: int = Field(description="Value of `after` for the next lines.")


class FileAnswer(BaseModel):
    """A file of the report."""

    name: str
    bytes: int


class Files(BaseModel):
    """The files of the report."""

    items: list[FileAnswer]


class RunnerAnswer(Record):
    """A process that runs submitted studies."""

    id: str
    host: str
    pid: int
    began_at: datetime
    silent_s: Annotated[float, BeforeValidator(lambda seconds: max(0.0, seconds))] = Field(
        description="Seconds since its last sign of life."
    )
    is_alive: bool
    study: str | None


class RunnerList(BaseModel):
    """Runners seen within a day, oldest first."""

    items: list[RunnerAnswer]


def study_line(summary: StudySummary, submission: Submission | None) -> StudyLine:
    """A study in the list."""
    return StudyLine(
        name=summary.name,
        state=run_state(summary.state, submission),
        created_at=summary.created_at,
        model=summary.model,
        data=summary.data,
        n_trials=summary.n_trials,
        **_labels(summary.labels),
    )


def study_answer(
    study: StudyRecord, n_trials: int, stages: Sequence[StageRecord], submission: Submission | None
) -> StudyAnswer:
    """A study without its trials."""
    return StudyAnswer(
        name=study.name,
        state=run_state(study.state, submission),
        created_at=study.created_at,
        model=str(study.config.get("model", "")),
        data=str(study.config.get("data", "")),
        n_trials=n_trials,
        **_labels(study.labels),
        objectives=list(study.objectives),
        # The cluster's address is not for clients.
        config={key: value for key, value in study.config.items() if key != "ray_address"},
        chosen_trial=study.chosen_trial,
        facts=study.facts.to_json(SHOWN_FACTS),
        stages=[StageAnswer.model_validate(one) for one in stages],
        run=None if submission is None else _run(submission),
    )


def _labels(labels: Labels) -> dict[str, Any]:
    return {"tags": list(labels.tags), "note": labels.note, "sweep": labels.sweep}


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
