"""Keeps how studies of schedules are configured, where they stand, and what was found out about their surroundings."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

import sqlalchemy as sa
from optuna.study import StudyDirection
from sqlalchemy.engine import Connection

from studies.errors import StudyBusyError, StudyExistsError
from studies.records.records import ProposerState, StageRecord, StudyRecord, StudyState, StudySummary
from studies.sql import schema
from studies.sql.rows import N_ENDED, insert_study
from studies.store.lease import Holder, Lease, clock, holder
from studies.store.named import NamedStudies
from studies.store.results_folder import Origin

_run, _study, _lease = schema.search_run.c, schema.study.c, schema.lease.c
# What the name of a study ends with until it takes the place of another one.
_REPLACING = "~replacing"


class StudyRuns(NamedStudies):
    """Studies without their trials: configuration, state, stages, facts, proposers, and who works on them."""

    def create_study(
        self, name: str, config: Mapping[str, Any], objectives: Sequence[str], replaces: Collection[Origin] = ()
    ) -> StudyRecord:
        """Begin a study.

        Args:
            name: Unique in this database.
            config: How it is configured.
            objectives: Names of the objective values, in order.
            replaces: Whose files the study may write over, beside its own.

        Raises:
            StudyExistsError: The name is taken.
        """
        self._begin_study(name, config, objectives, replaces=replaces)
        return self.study(name)

    def is_taken(self, name: str) -> bool:
        """Whether a study has a name, be it one of Optuna's alone."""
        selected = sa.select(_study.id).where(_study.name == name)
        return self._database.read(lambda connection: connection.scalar(selected) is not None)

    def begin_replacement(
        self, name: str, config: Mapping[str, Any], objectives: Sequence[str], replaces: Collection[Origin] = ()
    ) -> None:
        """Begin a study that has its name through this store alone, until it takes the place of the one that has it.

        The study that has the name stays as it is, for others and in the database, until `take_place`. What an earlier
        replacement left behind whose process has died is removed.

        Args:
            name: Its name.
            config: How it is configured.
            objectives: Names of the objective values, in order.
            replaces: Whose files the new study may write over, beside its own.

        Raises:
            StudyBusyError: A process works on the study that has the name, or on another replacement of it.
        """
        aside, ids = f"{name}{_REPLACING}", list[int]()

        def more(connection: Connection, study_id: int) -> None:
            _check_idle(connection, name)
            ids.append(study_id)

        def remove(connection: Connection) -> None:
            _check_idle(connection, aside)
            connection.execute(sa.delete(schema.study).where(_study.name == aside))

        self._database.write(remove)
        self._begin_study(aside, config, objectives, more, replaces)
        self._ids[name] = ids[-1]

    def is_aside(self, name: str) -> bool:
        """Whether a study of this store has not taken the place of the one that has its name."""
        selected = sa.select(_study.name)
        return bool(
            self._of_study(
                name, lambda connection, study_id: connection.scalar(selected.where(_study.id == study_id)) != name
            )
        )

    def take_place(self, name: str) -> None:
        """Let a study that was begun as a replacement take the place of the one that has its name, which is deleted.

        Both happen, or neither. Nothing happens to a study that has its place.

        Raises:
            StudyBusyError: A process works on the other study by now.
        """

        def work(connection: Connection, study_id: int) -> None:
            _check_idle(connection, name)
            connection.execute(sa.delete(schema.study).where(_study.name == name))
            connection.execute(sa.update(schema.study).where(_study.id == study_id).values(name=name))

        if self.is_aside(name):
            self._of_study(name, work, write=True)

    def abandon_replacement(self, name: str) -> None:
        """Remove a study that was begun as a replacement and has not taken its place; nothing happens to any other."""
        if self.is_aside(name):
            self._of_study(
                name,
                lambda connection, study_id: connection.execute(
                    sa.delete(schema.study).where(_study.id == study_id, _study.name != name)
                ),
                write=True,
            )
            del self._ids[name]

    def _begin_study(
        self,
        name: str,
        config: Mapping[str, Any],
        objectives: Sequence[str],
        more: Callable[[Connection, int], None] = lambda connection, study_id: None,
        replaces: Collection[Origin] = (),
    ) -> None:
        """Begin a study, with `more` of what belongs to it, in one transaction.

        Raises:
            StudyExistsError: The name is taken.
        """
        values = {
            "state": StudyState.CREATED.value,
            "created_at": datetime.now(UTC),
            "config": dict(config),
            "objectives": list(objectives),
            "facts": {"replaces": [one.to_json() for one in replaces]} if replaces else {},
        }

        def work(connection: Connection) -> None:
            study_id = insert_study(connection, name, [StudyDirection.MINIMIZE] * len(objectives))
            connection.execute(sa.insert(schema.search_run), {"study_id": study_id, **values})
            more(connection, study_id)

        try:
            self._database.write(work)
        except sa.exc.IntegrityError as error:
            raise StudyExistsError(
                f"A study named {name!r} exists in {self}: choose another --name, continue it with "
                f"`ftp-search resume {name}`, or remove it with `ftp-search delete {name}`."
            ) from error

    def study(self, name: str) -> StudyRecord:
        """A study without its trials.

        Raises:
            StudyNotFoundError: There is none of this name.
        """
        row, held = self._of_study(
            name,
            lambda connection, study_id: (
                connection.execute(sa.select(schema.search_run).where(_run.study_id == study_id)).one(),
                holder(connection, study_id),
            ),
        )
        return StudyRecord(
            name=name,
            state=_state(row.state, held),
            created_at=row.created_at,
            config=row.config,
            objectives=tuple(row.objectives),
            facts=row.facts,
            chosen_trial=row.chosen_trial,
        )

    def summaries(self) -> list[StudySummary]:
        """Every study of schedules, oldest first; those that belong to Optuna alone are left out."""
        return self._database.read(
            lambda connection: [summary(row) for row in connection.execute(summarised(connection))]
        )

    def lease(self, name: str) -> Lease:
        """The right to work on a study, to be held with `with`; trials of a dead process return to the queue.

        Raises:
            StudyNotFoundError: There is no such study.
        """
        return Lease(self._database, self._of_study(name, lambda _, study_id: study_id), name)

    def set_state(self, name: str, state: StudyState) -> None:
        """Record where a study stands."""
        self._update(name, state=state.value)

    def set_config(self, name: str, config: Mapping[str, Any]) -> None:
        """Replace a study's configuration."""
        self._update(name, config=dict(config))

    def choose_trial(self, name: str, number: int) -> None:
        """Record which trial was chosen from the front."""
        self._update(name, chosen_trial=number)

    def set_facts(self, name: str, facts: Mapping[str, Any]) -> None:
        """Add facts to those that the study knows; equal keys are replaced."""

        def work(connection: Connection, study_id: int) -> None:
            where = _run.study_id == study_id
            known = connection.execute(sa.select(_run.facts).where(where).with_for_update()).scalar_one()
            connection.execute(sa.update(schema.search_run).where(where).values(facts={**known, **facts}))

        self._of_study(name, work, write=True)

    def begin_stage(self, name: str, stage: str) -> None:
        """Record that a stage of the pipeline runs, in the place of its last run."""
        table = schema.stage

        def work(connection: Connection, study_id: int) -> None:
            connection.execute(sa.delete(table).where(table.c.study_id == study_id, table.c.name == stage))
            row = {"study_id": study_id, "name": stage, "state": StudyState.RUNNING.value}
            connection.execute(sa.insert(table), {**row, "began_at": datetime.now(UTC)})

        self._of_study(name, work, write=True)

    def end_stage(self, name: str, stage: str, state: StudyState) -> None:
        """Record how a stage that was begun ended."""
        table = schema.stage

        def work(connection: Connection, study_id: int) -> None:
            where = sa.and_(table.c.study_id == study_id, table.c.name == stage)
            connection.execute(sa.update(table).where(where).values(state=state.value, ended_at=datetime.now(UTC)))

        self._of_study(name, work, write=True)

    def forget_stages(self, name: str, stages: Sequence[str]) -> None:
        """Let stages count as not begun: what they rested on has changed."""
        table = schema.stage

        def work(connection: Connection, study_id: int) -> None:
            where = sa.and_(table.c.study_id == study_id, table.c.name.in_(list(stages)))
            connection.execute(sa.delete(table).where(where))

        self._of_study(name, work, write=True)

    def stages(self, name: str) -> list[StageRecord]:
        """The stages that a study has been through, in the order in which they began."""
        table = schema.stage

        def work(connection: Connection, study_id: int) -> list[StageRecord]:
            selected = sa.select(table).where(table.c.study_id == study_id).order_by(table.c.began_at)
            held = holder(connection, study_id)
            return [
                StageRecord(row.name, _state(row.state, held), row.began_at, row.ended_at)
                for row in connection.execute(selected)
            ]

        return self._of_study(name, work)

    def keep_proposer_states(self, name: str, states: Mapping[str, Mapping[str, Any]]) -> None:
        """Keep what these proposers, by name, have to remember, instead of what was kept of them before."""
        table = schema.proposer_state

        def work(connection: Connection, study_id: int) -> None:
            where = sa.and_(table.c.study_id == study_id, table.c.proposer.in_(list(states)))
            connection.execute(sa.delete(table).where(where))
            now = datetime.now(UTC)
            rows = [
                {"study_id": study_id, "proposer": proposer, "state": dict(state), "updated_at": now}
                for proposer, state in states.items()
            ]
            connection.execute(sa.insert(table), rows)

        if states:
            self._of_study(name, work, write=True)

    def proposer_states(self, name: str) -> list[ProposerState]:
        """What the proposers of a study keep there, by name."""
        table = schema.proposer_state

        def work(connection: Connection, study_id: int) -> list[ProposerState]:
            selected = sa.select(table).where(table.c.study_id == study_id).order_by(table.c.proposer)
            return [ProposerState(row.proposer, row.state, row.updated_at) for row in connection.execute(selected)]

        return self._of_study(name, work)

    def _update(self, name: str, **values: Any) -> None:
        self._of_study(
            name,
            lambda connection, study_id: connection.execute(
                sa.update(schema.search_run).where(_run.study_id == study_id).values(**values)
            ),
            write=True,
        )


def _check_idle(connection: Connection, name: str) -> None:
    """Raise `StudyBusyError` if a process works on the study that has a name in the database."""
    study_id = connection.execute(sa.select(_study.id).where(_study.name == name).with_for_update()).scalar()
    held = None if study_id is None else holder(connection, study_id)
    if held is not None and held.alive:
        raise StudyBusyError(f"Study {name!r} is being worked on by {held}: wait until it ends, or stop it.")


def summarised(connection: Connection) -> sa.Select[*tuple[Any, ...]]:
    """Selects what `summary` and `held` read, of every study of schedules, oldest first.

    Who works on a study is part of the same statement: another one might see it running and nobody there.
    """
    now = clock(connection)
    ages = (now - _lease.acquired_at).label("age_s"), (now - _lease.renewed_at).label("silent_s")
    # Facts are left out: they may be long.
    columns = (_run.study_id, _study.name, _run.state, _run.created_at, _run.config, _run.objectives)
    selected = sa.select(*columns, N_ENDED.label("n_trials"), _lease.owner, _lease.host, _lease.pid, *ages)
    joined = schema.search_run.join(schema.study).outerjoin(schema.lease, _lease.study_id == _run.study_id)
    return selected.select_from(joined).order_by(_study.id)


def held(row: Any) -> Holder | None:
    """Who holds the lease of a study, dead or alive; None if nobody does."""
    return None if row.owner is None else Holder(row.owner, row.host, row.pid, float(row.age_s), float(row.silent_s))


def summary(row: Any) -> StudySummary:
    """A study as the list shows it."""
    return StudySummary(
        name=row.name,
        state=_state(row.state, held(row)),
        n_trials=row.n_trials,
        created_at=row.created_at,
        model=str(row.config.get("model", "")),
        data=str(row.config.get("data", "")),
    )


def _state(stored: str, held: Holder | None) -> StudyState:
    """Where a study stands: one that runs without anybody who runs it was stopped."""
    state = StudyState(stored)
    if state is StudyState.RUNNING and (held is None or not held.alive):
        return StudyState.STOPPED
    return state
