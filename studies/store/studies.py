"""Keeps how studies of schedules are configured, and what was found out about their surroundings."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import sqlalchemy as sa
from optuna.study import StudyDirection
from sqlalchemy.engine import Connection

from studies.errors import StudyBusyError, StudyExistsError
from studies.records.labels import NO_LABELS, Labels
from studies.records.records import StudyRecord, StudyState, StudySummary
from studies.records.study_facts import Origin, StudyFacts
from studies.sql import schema
from studies.sql.rows import N_ENDED, insert_study
from studies.store.lease import Holder, current_state, holder, holder_columns
from studies.store.names import Part

_run, _study, _lease, _label = schema.search_run.c, schema.study.c, schema.lease.c, schema.label.c
_LABELS = (_label.tags, _label.note, _label.sweep)
# What the name of a study ends with until it takes the place of another one.
_REPLACING = "~replacing"


class Studies(Part):
    """Studies without their trials: configuration, objectives, facts, and the chosen trial."""

    def create(
        self,
        name: str,
        config: Mapping[str, Any],
        objectives: Sequence[str],
        replaces: Collection[Origin] = (),
        labels: Labels = NO_LABELS,
    ) -> StudyRecord:
        """Begins a study; see `begin`."""
        self.begin(name, config, objectives, replaces=replaces, labels=labels)
        return self.get(name)

    def is_taken(self, name: str) -> bool:
        """True if a study has this name, even one that is Optuna's alone."""
        selected = sa.select(_study.id).where(_study.name == name)
        return self._database.read(lambda connection: connection.scalar(selected) is not None)

    def begin_replacement(
        self,
        name: str,
        config: Mapping[str, Any],
        objectives: Sequence[str],
        replaces: Collection[Origin] = (),
        labels: Labels = NO_LABELS,
    ) -> None:
        """Begins a study that has its name through this store alone, until it takes the place of the one that has it.

        The study that has the name stays as it is, for others and in the database, until `take_place`. What an earlier
        replacement left behind whose process has died is removed. For arguments see `begin`.

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
        self.begin(aside, config, objectives, more, replaces, labels)
        self._names.assign(name, ids[-1])

    def is_aside(self, name: str) -> bool:
        """True if a study of this store has not taken the place of the one that has its name."""
        selected = sa.select(_study.name)
        return bool(
            self._names.transact(
                name, lambda connection, study_id: connection.scalar(selected.where(_study.id == study_id)) != name
            )
        )

    def take_place(self, name: str) -> None:
        """Lets a study that was begun as a replacement take the place of the one that has its name, which is deleted.

        Both happen, or neither. Nothing happens to a study that has its place.

        Raises:
            StudyBusyError: A process works on the other study by now.
        """

        def work(connection: Connection, study_id: int) -> None:
            _check_idle(connection, name)
            connection.execute(sa.delete(schema.study).where(_study.name == name))
            connection.execute(sa.update(schema.study).where(_study.id == study_id).values(name=name))

        if self.is_aside(name):
            self._names.transact(name, work, write=True)

    def abandon_replacement(self, name: str) -> None:
        """Removes a study that was begun as a replacement and has not taken its place; nothing happens to any other."""
        if self.is_aside(name):
            self._names.transact(
                name,
                lambda connection, study_id: connection.execute(
                    sa.delete(schema.study).where(_study.id == study_id, _study.name != name)
                ),
                write=True,
            )
            self._names.forget(name)

    def begin(
        self,
        name: str,
        config: Mapping[str, Any],
        objectives: Sequence[str],
        more: Callable[[Connection, int], None] = lambda connection, study_id: None,
        replaces: Collection[Origin] = (),
        labels: Labels = NO_LABELS,
    ) -> None:
        """Begins a study, with more that belongs to it, in one transaction.

        Args:
            name: Unique name.
            config: Configuration.
            objectives: Names of the objective values, in order.
            more: Function that writes what else belongs to it, given a connection and the study's id.
            replaces: Studies whose files the study may write over, beside its own.
            labels: Its tags, its note, and its sweep.

        Raises:
            StudyExistsError: The name is taken.
        """
        facts = StudyFacts(replaces=tuple(replaces)) if replaces else StudyFacts()
        values = {"state": StudyState.CREATED.value, "created_at": datetime.now(UTC), "config": dict(config)}
        values |= {"objectives": list(objectives), "facts": facts.stored()}

        def work(connection: Connection) -> None:
            study_id = insert_study(connection, name, [StudyDirection.MINIMIZE] * len(objectives))
            connection.execute(sa.insert(schema.search_run), {"study_id": study_id, **values})
            if labels != NO_LABELS:
                connection.execute(sa.insert(schema.label), {"study_id": study_id, **_stored(labels)})
            more(connection, study_id)

        try:
            self._database.write(work)
        except sa.exc.IntegrityError as error:
            raise StudyExistsError(
                f"A study named {name!r} exists in {self._database}: choose another --name, continue it with "
                f"`ftp-search resume {name}`, or remove it with `ftp-search delete {name}`."
            ) from error

    def get(self, name: str) -> StudyRecord:
        """A study without its trials.

        Raises:
            StudyNotFoundError: There is none of this name.
        """

        def work(connection: Connection, study_id: int) -> StudyRecord:
            labelled = schema.search_run.outerjoin(schema.label, _label.study_id == _run.study_id)
            selected = sa.select(schema.search_run, *_LABELS).select_from(labelled).where(_run.study_id == study_id)
            row = connection.execute(selected).one()
            return StudyRecord(
                name=name,
                state=current_state(row.state, holder(connection, study_id)),
                created_at=row.created_at,
                config=row.config,
                objectives=tuple(row.objectives),
                facts=StudyFacts.from_stored(row.facts),
                chosen_trial=row.chosen_trial,
                labels=_labels(row),
            )

        return self._names.transact(name, work)

    def summaries(self) -> list[StudySummary]:
        """Every study of schedules, oldest first; those that belong to Optuna alone are left out."""
        return self._database.read(
            lambda connection: [summary(row) for row in connection.execute(summarised(connection))]
        )

    def set_config(self, name: str, config: Mapping[str, Any]) -> None:
        """Replaces a study's configuration."""
        self._update(name, config=dict(config))

    def label(self, name: str, tags: Sequence[str] | None = None, note: str | None = None) -> Labels:
        """Gives a study other tags, or another note.

        Args:
            name: Name of the study.
            tags: All tags that it has from now on; None to leave them.
            note: Note that it has from now on, empty for none; None to leave it.

        Returns:
            The labels that it has now.

        Raises:
            StudyNotFoundError: There is none of this name.
        """

        def work(connection: Connection, study_id: int) -> Labels:
            # The study's row first: of two that label it at once, the second one would find no row to update.
            connection.execute(sa.select(_study.id).where(_study.id == study_id).with_for_update())
            row = connection.execute(sa.select(*_LABELS).where(_label.study_id == study_id)).first()
            known = NO_LABELS if row is None else _labels(row)
            labels = replace(
                known, tags=known.tags if tags is None else tuple(tags), note=known.note if note is None else note
            )
            if row is None:
                connection.execute(sa.insert(schema.label), {"study_id": study_id, **_stored(labels)})
            else:
                written = sa.update(schema.label).where(_label.study_id == study_id).values(**_stored(labels))
                connection.execute(written)
            return labels

        return self._names.transact(name, work, write=True)

    def choose_trial(self, name: str, number: int) -> None:
        """Records the trial that was chosen from the front."""
        self._update(name, chosen_trial=number)

    def update_facts(self, name: str, changes: StudyFacts | Callable[[StudyFacts], StudyFacts]) -> None:
        """Replace what is known of a study by the facts that another record sets; all others stay.

        Args:
            name: Name of the study.
            changes: The record, or a function that makes it from the known one. It is called in the transaction, so
                that nobody changes the facts meanwhile.
        """

        def work(connection: Connection, study_id: int) -> None:
            where = _run.study_id == study_id
            stored = connection.execute(sa.select(_run.facts).where(where).with_for_update()).scalar_one()
            known = StudyFacts.from_stored(stored)
            facts = known.updated(changes(known) if callable(changes) else changes)
            connection.execute(sa.update(schema.search_run).where(where).values(facts=facts.stored()))

        self._names.transact(name, work, write=True)

    def _update(self, name: str, **values: Any) -> None:
        self._names.transact(
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
    # Facts are left out: they may be long.
    columns = (_run.study_id, _study.name, _run.state, _run.created_at, _run.config, _run.objectives)
    selected = sa.select(*columns, *_LABELS, N_ENDED.label("n_trials"), *holder_columns(connection))
    joined = schema.search_run.join(schema.study).outerjoin(schema.lease, _lease.study_id == _run.study_id)
    joined = joined.outerjoin(schema.label, _label.study_id == _run.study_id)
    return selected.select_from(joined).order_by(_study.id)


def held(row: Any) -> Holder | None:
    """Holder of the lease of a study, dead or alive; None if there is none."""
    return None if row.owner is None else Holder(row.owner, row.host, row.pid, row.age_s, row.silent_s)


def summary(row: Any) -> StudySummary:
    """A study as the list shows it."""
    return StudySummary(
        name=row.name,
        state=current_state(row.state, held(row)),
        n_trials=row.n_trials,
        created_at=row.created_at,
        model=str(row.config.get("model", "")),
        data=str(row.config.get("data", "")),
        labels=_labels(row),
    )


def _labels(row: Any) -> Labels:
    """Labels of a study, from a row with `_LABELS`; the columns are empty for one without any."""
    return Labels(tuple(row.tags or ()), row.note or "", row.sweep)


def _stored(labels: Labels) -> dict[str, Any]:
    """The columns of labels."""
    return {"tags": list(labels.tags), "note": labels.note, "sweep": labels.sweep}
