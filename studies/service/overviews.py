"""Reads the list of studies, with all that is shown there, in as many statements for a thousand studies as for one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from studies.records.records import StudyState, StudySummary
from studies.records.trial import finite_values
from studies.service.submissions import SubmissionState
from studies.sql import schema
from studies.sql.packing import unpack_floats
from studies.store.studies import held, summarised, summary
from studies.store.trials import HAS_ENDED

_run, _trial, _stage = schema.search_run.c, schema.trial.c, schema.stage.c
_event, _submission = schema.run_event.c, schema.submission.c

_RUNNING_STAGES = (
    sa.select(_stage.study_id, _stage.name, _stage.began_at)
    .where(_stage.state == StudyState.RUNNING.value)
    .order_by(_stage.began_at)
)


def _latest(kind: str) -> sa.Label[Any]:
    """Content of a study's last event of a kind."""
    # A subquery for each study walks its events from the last one backwards; grouping would read all of them.
    of_kind = sa.select(_event.content).where(_event.study_id == _submission.study_id, _event.kind == kind)
    return of_kind.order_by(_event.number.desc()).limit(1).scalar_subquery().label(kind)


_LAST_EVENT = (
    sa.select(_event.at).where(_event.study_id == _submission.study_id).order_by(_event.number.desc()).limit(1)
)
_LATEST_FIGURES = sa.select(
    _submission.study_id, _submission.submitted_at, _LAST_EVENT.scalar_subquery().label("said_at"), _latest("figures")
)
_STAGE_ENDS = sa.select(
    _stage.study_id, sa.func.max(_stage.began_at).label("began_at"), sa.func.max(_stage.ended_at).label("ended_at")
).group_by(_stage.study_id)
# What only those that run are asked for: the beginning of a run may be far back.
_LATEST_OF_RUNS = sa.select(_submission.study_id, _latest("began"), _latest("log")).where(
    _submission.state == SubmissionState.CLAIMED.value
)
_CHOSEN_VALUES = (
    sa.select(_run.study_id, _trial.objective_values)
    .join_from(
        schema.search_run,
        schema.trial,
        sa.and_(_trial.study_id == _run.study_id, _trial.number == _run.chosen_trial),
    )
    .where(HAS_ENDED, _trial.objective_values.is_not(None))
)


@dataclass(frozen=True)
class StudyOverview:
    """One study of the list, and its run, apart from the queue."""

    summary: StudySummary
    changed_at: datetime  # when it was created or submitted, a stage began or ended, or its run said something last
    config: Mapping[str, Any]
    objectives: tuple[str, ...]  # names of the objectives
    stage: str | None  # the stage that somebody works on; None if nobody does
    stage_began_at: datetime | None  # when that began, UTC
    figures: Mapping[str, Any]  # the figures that its run said last
    last_figures: Mapping[str, Any]  # the whole event with them
    foreseen: tuple[str, ...]  # stages of the run that a runner has claimed; empty if none has
    line: str  # last line of its log
    chosen_values: tuple[float, ...] | None  # values of the chosen trial; None if there is none with finite ones


def read_overviews(connection: Connection) -> list[StudyOverview]:
    """Every study with what is shown of its run, oldest first."""
    studies = connection.execute(summarised(connection)).all()
    # Of several that run, the one that began last.
    stages = {row.study_id: row for row in connection.execute(_RUNNING_STAGES)}
    submissions = {row.study_id: row for row in connection.execute(_LATEST_FIGURES)}
    ends = {row.study_id: row for row in connection.execute(_STAGE_ENDS)}
    runs = {row.study_id: row for row in connection.execute(_LATEST_OF_RUNS)}
    values = {row.study_id: unpack_floats(row.objective_values) for row in connection.execute(_CHOSEN_VALUES)}
    chosen = {study_id: own for study_id, own in values.items() if finite_values(own)}

    def overview(row: Any) -> StudyOverview:
        holder = held(row)
        # A process that died left its stage as it was.
        stage = stages.get(row.study_id) if holder is not None and holder.alive else None
        run, submission = runs.get(row.study_id), submissions.get(row.study_id)
        figures = (submission.figures or {}) if submission else {}
        return StudyOverview(
            summary=summary(row),
            changed_at=_latest_of(row.created_at, submission, ends.get(row.study_id)),
            config=row.config,
            objectives=tuple(row.objectives),
            stage=None if stage is None else stage.name,
            stage_began_at=None if stage is None else stage.began_at,
            figures=figures.get("figures", {}),
            last_figures=figures,
            foreseen=tuple((run.began or {}).get("stages", ())) if run else (),
            line=str((run.log or {}).get("text", "")) if run else "",
            chosen_values=chosen.get(row.study_id),
        )

    return [overview(row) for row in studies]


def _latest_of(created_at: datetime, submission: Any, stages: Any) -> datetime:
    by_clock = [submission.submitted_at, submission.said_at] if submission else []
    found = [datetime.fromtimestamp(at, UTC) for at in by_clock if at is not None]
    found += [at for at in (stages.began_at, stages.ended_at) if at is not None] if stages else []
    return max([created_at, *found])
