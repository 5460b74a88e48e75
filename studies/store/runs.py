"""Keeps where the runs of studies stand: state, stages, what proposers remember, and who works on them."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from studies.records.records import ProposerState, StageRecord, StudyState
from studies.sql import schema
from studies.store.lease import Holder, Lease, current_state, holder
from studies.store.names import Part, StudyNames

_run, _stage, _proposer = schema.search_run.c, schema.stage.c, schema.proposer_state.c


class Runs(Part):
    """The runs of studies: one process at a time goes through their stages.

    Args:
        names: The studies by name.
        artifacts: Folder of unfinished work; None for none.
    """

    def __init__(self, names: StudyNames, artifacts: Path | None) -> None:
        super().__init__(names)
        self._artifacts = artifacts

    def lease(self, name: str) -> Lease:
        """Right to work on a study, to be held with `with`; trials of a dead process return to the queue.

        Raises:
            StudyNotFoundError: There is no such study.
        """
        return Lease(self._database, self._names.id(name), name)

    def holder(self, name: str) -> Holder | None:
        """Process that works on a study; None if there is none."""
        held = self._names.transact(name, holder)
        return held if held is not None and held.alive else None

    def set_state(self, name: str, state: StudyState) -> None:
        """Records where a study stands."""

        def work(connection: Connection, study_id: int) -> None:
            connection.execute(sa.update(schema.search_run).where(_run.study_id == study_id).values(state=state.value))

        self._names.transact(name, work, write=True)

    def begin_stage(self, name: str, stage: str) -> None:
        """Records that a stage of the pipeline runs, in the place of its last run."""

        def work(connection: Connection, study_id: int) -> None:
            forget_stages(connection, study_id, [stage])
            row = {"study_id": study_id, "name": stage, "state": StudyState.RUNNING.value}
            connection.execute(sa.insert(schema.stage), {**row, "began_at": datetime.now(UTC)})

        self._names.transact(name, work, write=True)

    def end_stage(self, name: str, stage: str, state: StudyState) -> None:
        """Records how a stage that was begun ended."""

        def work(connection: Connection, study_id: int) -> None:
            own = sa.update(schema.stage).where(_stage.study_id == study_id, _stage.name == stage)
            connection.execute(own.values(state=state.value, ended_at=datetime.now(UTC)))

        self._names.transact(name, work, write=True)

    def forget_stages(self, name: str, stages: Sequence[str]) -> None:
        """Lets stages count as not begun: what they rested on has changed."""
        self._names.transact(name, lambda connection, study_id: forget_stages(connection, study_id, stages), write=True)

    def stages(self, name: str) -> list[StageRecord]:
        """Stages that a study has been through, in the order in which they began."""

        def work(connection: Connection, study_id: int) -> list[StageRecord]:
            selected = sa.select(schema.stage).where(_stage.study_id == study_id).order_by(_stage.began_at)
            held = holder(connection, study_id)
            return [
                StageRecord(row.name, current_state(row.state, held), row.began_at, row.ended_at)
                for row in connection.execute(selected)
            ]

        return self._names.transact(name, work)

    def has_finished(self, name: str, stage: str) -> bool:
        """Tells whether the last run of a stage ended well."""
        return any(one.name == stage and one.state is StudyState.FINISHED for one in self.stages(name))

    def keep_proposer_states(self, name: str, states: Mapping[str, Mapping[str, Any]]) -> None:
        """Keeps the states of these proposers, by name, instead of their earlier ones."""

        def work(connection: Connection, study_id: int) -> None:
            where = sa.and_(_proposer.study_id == study_id, _proposer.proposer.in_(list(states)))
            connection.execute(sa.delete(schema.proposer_state).where(where))
            shared = {"study_id": study_id, "updated_at": datetime.now(UTC)}
            rows = [{**shared, "proposer": proposer, "state": dict(state)} for proposer, state in states.items()]
            connection.execute(sa.insert(schema.proposer_state), rows)

        if states:
            self._names.transact(name, work, write=True)

    def proposer_states(self, name: str) -> list[ProposerState]:
        """States of a study's proposers, by name."""
        states = sa.select(schema.proposer_state).order_by(_proposer.proposer)

        def work(connection: Connection, study_id: int) -> list[ProposerState]:
            selected = states.where(_proposer.study_id == study_id)
            return [ProposerState(row.proposer, row.state, row.updated_at) for row in connection.execute(selected)]

        return self._names.transact(name, work)

    def unfinished_work(self, name: str, stage: str) -> Path | None:
        """Path of the file or folder in which a stage keeps its progress; None for a database in memory.

        The stage removes it at its end.
        """
        if self._artifacts is None:
            return None
        # Databases may share a folder of artifacts.
        place = f"{self._database.url.render_as_string()} {self._names.id(name)}"
        return self._artifacts / "unfinished" / f"{hashlib.sha256(place.encode()).hexdigest()[:16]}-{stage}"


def forget_stages(connection: Connection, study_id: int, stages: Sequence[str]) -> None:
    """Lets stages of a study count as not begun, as part of a transaction."""
    connection.execute(sa.delete(schema.stage).where(_stage.study_id == study_id, _stage.name.in_(list(stages))))
