"""The queue of studies that the service's runners run: each is claimed by one of them at a time."""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection, Row

from studies.errors import StudiesError, StudyBusyError, StudyNotFoundError
from studies.records.records import StudyState
from studies.sql import schema
from studies.store.lease import Holder, Lease, clock, holder, holders
from studies.store.names import Part

# Runners that may die over a study, one after the other, while it makes no progress.
MAX_DEATHS = 10

_submission, _study = schema.submission.c, schema.study.c


class SubmissionState(enum.StrEnum):
    """State of a submission: one that was `CLAIMED` by a runner that has died waits like a queued one."""

    QUEUED = "queued"
    CLAIMED = "claimed"
    ENDED = "ended"


class NotSubmittedError(StudiesError):
    """No runner runs the study, or will."""


@dataclass(frozen=True)
class Submission:
    """A study that was handed to the service's runners."""

    name: str  # the study's name
    state: SubmissionState
    submitted_at: datetime  # when it was handed over last, by the database's clock, UTC
    submitted_by: str | None  # name of the token with which it was; None if nobody had to say who they are
    runner: str | None  # id of the runner that claimed it; None if none has
    changes: Mapping[str, Any]  # settings of the study that change before it goes on
    comparison: Mapping[str, Any] | None  # what the study is to be compared with; None for its pipeline to go on
    stop_requested: bool  # True if its runner shall stop
    error: str | None  # reason why it ended early; None if it did not, or was stopped
    holder: Holder | None  # process that works on the study; None if there is none

    @property
    def is_waiting(self) -> bool:
        """True if a runner may take it."""
        if self.state is SubmissionState.ENDED:
            return False
        return self.holder is None or not self.holder.alive


class RunState(enum.StrEnum):
    """State of a study, the queue included."""

    CREATED = "created"
    QUEUED = "queued"
    RUNNING = "running"
    STOPPING = "stopping"
    STOPPED = "stopped"
    FAILED = "failed"
    FINISHED = "finished"

    @property
    def is_at_rest(self) -> bool:
        """True if nothing happens until somebody resumes it."""
        return self not in (RunState.QUEUED, RunState.RUNNING, RunState.STOPPING)


def run_state(state: StudyState, submission: Submission | None) -> RunState:
    """State of a study, from what its pipeline and the queue say."""
    if submission is None or submission.state is SubmissionState.ENDED:
        # What ends a submission also says where the study stands: one that has not begun was read just before that.
        is_outdated = submission is not None and state is StudyState.CREATED
        return RunState.RUNNING if is_outdated else RunState(state.value)
    if submission.is_waiting:
        return RunState.QUEUED
    if submission.state is SubmissionState.QUEUED:
        # Somebody works on it who is no runner of the service; after that, it is a runner's turn.
        return RunState.RUNNING
    return RunState.STOPPING if submission.stop_requested else RunState.RUNNING


class Queue(Part):
    """Studies that wait for a runner, and those that have one.

    What keeps two runners from running one study is its lease: whoever holds that, and nobody else, may `claim`,
    `release` and `end`. Handed that lease, they give it up in the same transaction in which the study leaves the
    runner's hands: nobody reads that a study is at rest and then finds it busy.
    """

    def submit(
        self,
        name: str,
        changes: Mapping[str, Any] | None = None,
        by: str | None = None,
        comparison: Mapping[str, Any] | None = None,
    ) -> None:
        """Hands a study to the runners.

        Args:
            name: The study.
            changes: Settings that change before it goes on.
            by: Name of the token with which it is submitted.
            comparison: What it is to be compared with, as plain values; None for its pipeline to go on. Where the
                study stands stays as it is then, whatever becomes of the comparison.

        Raises:
            StudyBusyError: It is in the queue already, or a process works on it.
        """

        def work(connection: Connection, study_id: int) -> None:
            row, held = _locked(connection, study_id, name)
            if held is not None and held.alive:
                raise StudyBusyError(f"Study {name!r} is being worked on by {held}: wait until it ends, or stop it.")
            if row is not None and row.state != SubmissionState.ENDED:
                raise StudyBusyError(f"Study {name!r} waits for a runner already.")
            if row is None:
                enqueue(connection, study_id, changes, by, comparison)
            else:
                _update(connection, study_id, **_queued(connection, changes, by, comparison))

        self._names.transact(name, work, write=True)

    def get(self, name: str) -> Submission | None:
        """Last submission of a study; None if it was never submitted."""

        def work(connection: Connection, study_id: int) -> Submission | None:
            # In this order: who gives a claimed study up would else be gone while it still seems to be claimed.
            held = holder(connection, study_id)
            found = connection.execute(_SELECTED.where(_submission.study_id == study_id)).first()
            return None if found is None else _record(found, held)

        return self._names.transact(name, work)

    def all(self) -> dict[str, Submission]:
        """The last submission of every study that was ever submitted, by name."""

        def work(connection: Connection) -> dict[str, Submission]:
            # In the same order as `get`.
            held = holders(connection)
            return {row.name: _record(row, held.get(row.study_id)) for row in connection.execute(_SELECTED)}

        return self._database.read(work)

    def waiting(self) -> list[str]:
        """Names of the studies that a runner may take: the longest waiting first, those that runners died over last."""
        open_ = _SELECTED.where(_submission.state != SubmissionState.ENDED.value)
        ordered = open_.order_by(_submission.deaths, _submission.submitted_at, _submission.study_id)

        def work(connection: Connection) -> list[str]:
            held = holders(connection)
            found = [_record(row, held.get(row.study_id)) for row in connection.execute(ordered)]
            return [submission.name for submission in found if submission.is_waiting]

        return self._database.read(work)

    def configurations(self) -> dict[str, dict[str, Any]]:
        """Configurations of all studies by name, with the submitted changes that are yet to be made."""
        run, submission = schema.search_run, schema.submission
        columns = (_study.name, run.c.config, submission.c.state, submission.c.changes)
        selected = sa.select(*columns).select_from(schema.study.join(run).outerjoin(submission))

        def work(connection: Connection) -> dict[str, dict[str, Any]]:
            found = {}
            for name, config, state, changes in connection.execute(selected):
                is_open = state is not None and state != SubmissionState.ENDED
                found[name] = {**config, **changes} if is_open else dict(config)
            return found

        return self._database.read(work)

    def claim(self, name: str, runner: str, lease: Lease | None = None) -> Submission | None:
        """Takes a study that waits; the caller holds its lease.

        Args:
            name: The study.
            runner: Id of the runner.
            lease: The caller's, to be given up if the study has ended; None to keep it.

        Returns:
            What was submitted; None if it waits no more, was stopped while nobody worked on it, or has killed too many
            runners: then it has ended now.
        """

        def work(connection: Connection, study_id: int) -> Submission | None:
            row, held = _locked(connection, study_id, name)
            if row is None or row.state == SubmissionState.ENDED:
                return None
            if row.stop_requested:
                _end(connection, study_id, StudyState.STOPPED)
                _give_up(connection, lease)
                return None
            progress = _progress(connection, study_id)
            died = row.state == SubmissionState.CLAIMED and progress == row.progress
            deaths = row.deaths + 1 if died else 0
            if deaths >= MAX_DEATHS:
                error = f"{deaths} runners in a row have died over it: is there enough memory? See the runners' logs."
                _end(connection, study_id, _failed(row), error)
                _give_up(connection, lease)
                return None
            claimed = {"state": SubmissionState.CLAIMED.value, "runner": runner}
            _update(connection, study_id, deaths=deaths, progress=progress, **claimed)
            return _record(connection.execute(_SELECTED.where(_submission.study_id == study_id)).one(), held)

        return self._names.transact(name, work, write=True)

    def note_changed(self, name: str) -> None:
        """Notes that the submitted changes are made, so that they are not made again."""
        self._names.transact(name, lambda connection, study_id: _update(connection, study_id, changes={}), write=True)

    def release(self, name: str, runner: str, lease: Lease | None = None) -> None:
        """Returns a study to the queue, since its runner leaves; one that shall stop ends instead.

        Args:
            name: The study.
            runner: Id of the runner.
            lease: The caller's, to be given up with it; None to keep it.
        """

        def work(connection: Connection, study_id: int) -> None:
            row, _ = _locked(connection, study_id, name)
            if row is None or row.runner != runner:
                return
            _give_up(connection, lease)
            if row.stop_requested:
                _end(connection, study_id, StudyState.STOPPED)
            else:
                _update(connection, study_id, state=SubmissionState.QUEUED.value, runner=None)

        self._names.transact(name, work, write=True)

    def end(self, name: str, runner: str, error: str | None = None, lease: Lease | None = None) -> None:
        """Notes that a runner is done with a study.

        Args:
            name: The study.
            runner: Id of the runner.
            error: Why it ended early; the study has failed then, unless it was only compared.
            lease: The caller's, to be given up with it; None to keep it.
        """

        def work(connection: Connection, study_id: int) -> None:
            row, _ = _locked(connection, study_id, name)
            if row is not None and row.runner == runner:
                _end(connection, study_id, None if error is None else _failed(row), error)
                _give_up(connection, lease)

        self._names.transact(name, work, write=True)

    def request_stop(self, name: str) -> None:
        """Stops a study: at once if it waits, or else as soon as its runner sees it.

        Raises:
            NotSubmittedError: No runner runs it, or will.
        """

        def work(connection: Connection, study_id: int) -> None:
            row, held = _locked(connection, study_id, name)
            works = held is not None and held.alive
            if row is None or row.state == SubmissionState.ENDED:
                if works:
                    raise NotSubmittedError(
                        f"Study {name!r} is run by {held}, which is no runner of the service: stop it there."
                    )
                raise NotSubmittedError(
                    f"Study {name!r} neither runs nor waits for a runner: there is nothing to stop."
                )
            if works:
                _update(connection, study_id, stop_requested=True)
            else:
                _end(connection, study_id, StudyState.STOPPED)

        self._names.transact(name, work, write=True)

    def stop_requested(self, name: str, runner: str) -> bool:
        """True if a runner shall stop a study that it claimed."""

        def work(connection: Connection, study_id: int) -> bool:
            where = sa.and_(_submission.study_id == study_id, _submission.runner == runner)
            return bool(connection.execute(sa.select(_submission.stop_requested).where(where)).scalar())

        return self._names.transact(name, work)


_SELECTED = sa.select(schema.submission, _study.name).join(schema.study)


def enqueue(
    connection: Connection,
    study_id: int,
    changes: Mapping[str, Any] | None = None,
    by: str | None = None,
    comparison: Mapping[str, Any] | None = None,
) -> None:
    """Put a study that was never submitted into the queue, as part of a transaction. See `Queue.submit`."""
    values = _queued(connection, changes, by, comparison)
    connection.execute(sa.insert(schema.submission).values(study_id=study_id, n_events=0, **values))


def _queued(
    connection: Connection, changes: Mapping[str, Any] | None, by: str | None, comparison: Mapping[str, Any] | None
) -> dict[str, Any]:
    return {
        "state": SubmissionState.QUEUED.value,
        "submitted_at": clock(connection),
        "submitted_by": by,
        "runner": None,
        "changes": dict(changes or {}),
        "comparison": None if comparison is None else dict(comparison),
        "stop_requested": False,
        "deaths": 0,
        "progress": -1,
        "error": None,
    }


def _record(row: Row[Any], held: Holder | None) -> Submission:
    return Submission(
        name=row.name,
        state=SubmissionState(row.state),
        submitted_at=datetime.fromtimestamp(row.submitted_at, UTC),
        submitted_by=row.submitted_by,
        runner=row.runner,
        changes=row.changes,
        comparison=row.comparison,
        stop_requested=row.stop_requested,
        error=row.error,
        holder=held,
    )


def _locked(connection: Connection, study_id: int, name: str) -> tuple[Row[Any] | None, Holder | None]:
    """The submission of a study, which nobody else changes until the transaction ends, and who works on the study."""
    # The study's row first, as who acquires the lease does: two that wait for each other would never go on.
    if connection.execute(sa.select(_study.id).where(_study.id == study_id).with_for_update()).first() is None:
        raise StudyNotFoundError(f"Study {name!r} was deleted a moment ago: submit it as a new one.")
    selected = sa.select(schema.submission).where(_submission.study_id == study_id).with_for_update()
    return connection.execute(selected).first(), holder(connection, study_id)


def _give_up(connection: Connection, lease: Lease | None) -> None:
    if lease is not None:
        lease.give_up(connection)


def _update(connection: Connection, study_id: int, **values: Any) -> None:
    connection.execute(sa.update(schema.submission).where(_submission.study_id == study_id).values(**values))


def _failed(row: Row[Any]) -> StudyState | None:
    """Where a study stands whose submission failed; None for as before."""
    return StudyState.FAILED if row.comparison is None else None


def _end(connection: Connection, study_id: int, state: StudyState | None, error: str | None = None) -> None:
    """Take a study out of the queue, and note where it stands now, unless its pipeline has."""
    _update(connection, study_id, state=SubmissionState.ENDED.value, runner=None, error=error, stop_requested=False)
    if state is not None:
        run = schema.search_run
        update = sa.update(run).where(run.c.study_id == study_id)
        if state is StudyState.STOPPED:
            # What has finished just before it was stopped has finished.
            update = update.where(run.c.state != StudyState.FINISHED.value)
        connection.execute(update.values(state=state.value))


def _progress(connection: Connection, study_id: int) -> int:
    """A number that grows as a study gets on: trials ever begun, stages that have finished, and rows of comparisons."""
    begun: int = connection.execute(sa.select(_study.n_trials).where(_study.id == study_id)).scalar_one()
    stage, comparison = schema.stage.c, schema.comparison.c
    finished = sa.and_(stage.study_id == study_id, stage.state == StudyState.FINISHED.value)
    counted = sa.select(sa.func.count())
    ended: int = connection.execute(counted.select_from(schema.stage).where(finished)).scalar_one()
    compared = counted.select_from(schema.comparison).where(comparison.study_id == study_id)
    n_rows: int = connection.execute(compared).scalar_one()
    return begun + ended + n_rows
