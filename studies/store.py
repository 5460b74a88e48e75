"""Keeps studies in a SQL database."""

from __future__ import annotations

import difflib
import hashlib
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection, Row

from studies import schema
from studies.errors import StorageError, StudyExistsError, StudyNotFoundError
from studies.location import APPLICATION_ID, check_file, database_file, parse
from studies.records import Measurement, RouterRun, StudyRecord, StudyState, StudySummary, TrialRecord, TrialState

_BUSY_TIMEOUT_MS = 30_000


class StudyStore:
    """Studies in a SQL database; every method that writes is one transaction.

    Args:
        url: `sqlite:///PATH` or `postgresql+psycopg://USER:PASSWORD@HOST/DATABASE`.
        create: Whether a SQLite file that does not exist, or is empty, becomes a database.

    Raises:
        StorageError: The URL is of no supported kind, or the database cannot be opened.
    """

    def __init__(self, url: str, create: bool = True) -> None:
        self._url = parse(url)
        self._ids: dict[str, int] = {}
        file = database_file(self._url)
        fresh = file is not None and not check_file(file, create)
        try:
            self._engine = sa.create_engine(self._url, json_serializer=_strict_json)
        except (ImportError, sa.exc.ArgumentError) as error:
            raise StorageError(f"Cannot open {self}: {error}. Install the driver of that database.") from error
        if self._url.get_backend_name() == "sqlite":
            sa.event.listen(self._engine, "connect", _configure_sqlite)
        try:
            with self._begin() as connection:
                self._prepare(connection)
        except BaseException:
            self._engine.dispose()
            # Another process may have filled the file meanwhile: only what holds nothing is taken away.
            if file is not None and fresh and file.is_file() and file.stat().st_size == 0:
                file.unlink()
            raise

    def __repr__(self) -> str:
        return self._url.render_as_string(hide_password=True)

    def __enter__(self) -> StudyStore:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Give connections back."""
        self._engine.dispose()

    def create_study(self, name: str, config: Mapping[str, Any], objectives: Sequence[str]) -> StudyRecord:
        """Begin a study.

        Args:
            name: Unique in this database.
            config: How it is configured.
            objectives: Names of the objective values, in order.

        Raises:
            StudyExistsError: The name is taken.
        """
        values = {
            "name": name,
            "state": StudyState.CREATED.value,
            "created_at": datetime.now(UTC),
            "config": dict(config),
            "objectives": list(objectives),
            "facts": {},
        }
        try:
            with self._begin() as connection:
                connection.execute(sa.insert(schema.study).values(values))
        except sa.exc.IntegrityError as error:
            raise StudyExistsError(
                f"A study named {name!r} exists in {self}: choose another --name, continue it with "
                f"`ftp-search resume {name}`, or remove it with `ftp-search delete {name}`."
            ) from error
        return self.study(name)

    def study(self, name: str) -> StudyRecord:
        """A study without its trials.

        Raises:
            StudyNotFoundError: There is none of this name.
        """
        with self._begin() as connection:
            row = connection.execute(sa.select(schema.study).where(schema.study.c.name == name)).first()
            if row is None:
                raise self._not_found(connection, name)
        return StudyRecord(
            name=row.name,
            state=StudyState(row.state),
            created_at=row.created_at,
            config=row.config,
            objectives=tuple(row.objectives),
            facts=row.facts,
            chosen_trial=row.chosen_trial,
        )

    def summaries(self) -> list[StudySummary]:
        """Every study, oldest first."""
        counts = (
            sa.select(schema.trial.c.study_id, sa.func.count().label("n")).group_by(schema.trial.c.study_id).subquery()
        )
        columns = (schema.study, sa.func.coalesce(counts.c.n, 0).label("n_trials"))
        joined = schema.study.outerjoin(counts, counts.c.study_id == schema.study.c.id)
        with self._begin() as connection:
            rows = connection.execute(sa.select(*columns).select_from(joined).order_by(schema.study.c.id)).all()
        return [
            StudySummary(
                name=row.name,
                state=StudyState(row.state),
                n_trials=row.n_trials,
                created_at=row.created_at,
                model=str(row.config.get("model", "")),
                data=str(row.config.get("data", "")),
            )
            for row in rows
        ]

    def delete_study(self, name: str) -> None:
        """Remove a study with everything it remembers."""
        with self._begin() as connection:
            connection.execute(sa.delete(schema.study).where(schema.study.c.id == self._id(connection, name)))
        del self._ids[name]

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
        with self._begin() as connection:
            where = schema.study.c.id == self._id(connection, name)
            known = connection.execute(sa.select(schema.study.c.facts).where(where).with_for_update()).scalar_one()
            connection.execute(sa.update(schema.study).where(where).values(facts={**known, **facts}))

    def append_trial(self, name: str, trial: TrialRecord) -> None:
        """Keep a trial.

        Raises:
            StorageError: Its number is taken.
            ValueError: It is marked as finished without finite values.
        """
        finite = trial.values is not None and all(map(math.isfinite, trial.values))
        if trial.state is TrialState.FINISHED and not finite:
            raise ValueError(
                f"Trial {trial.number} is finished, but its values are {trial.values}: record it as failed."
            )
        values = {
            "number": trial.number,
            "state": trial.state.value,
            "schedule": trial.schedule,
            "objective_values": trial.values,
            "fidelity": trial.fidelity,
            "proposer": trial.proposer,
            "seconds": trial.seconds,
            "finished_at": trial.finished_at,
            "metrics": dict(trial.metrics),
            "error": trial.error,
        }
        try:
            with self._begin() as connection:
                connection.execute(sa.insert(schema.trial), {"study_id": self._id(connection, name), **values})
        except sa.exc.IntegrityError as error:
            raise StorageError(
                f"Study {name!r} has a trial {trial.number} already: is another process working on it?"
            ) from error

    def trials(self, name: str) -> list[TrialRecord]:
        """Every trial, by number."""
        with self._begin() as connection:
            where = schema.trial.c.study_id == self._id(connection, name)
            rows = connection.execute(sa.select(schema.trial).where(where).order_by(schema.trial.c.number)).all()
        return [_trial(row) for row in rows]

    def n_trials(self, name: str) -> int:
        """How many trials there are, failed ones included."""
        with self._begin() as connection:
            where = schema.trial.c.study_id == self._id(connection, name)
            n: int = connection.execute(sa.select(sa.func.count()).select_from(schema.trial).where(where)).scalar_one()
        return n

    def replace_measurements(self, name: str, measurements: Sequence[Measurement]) -> None:
        """Keep these measurements instead of those before."""
        with self._begin() as connection:
            study_id = self._id(connection, name)
            connection.execute(sa.delete(schema.measurement).where(schema.measurement.c.study_id == study_id))
            for measurement in measurements:
                figures = asdict(measurement)
                row = {"study_id": study_id, "schedule": figures.pop("schedule"), "figures": figures}
                connection.execute(sa.insert(schema.measurement), row)

    def measurements(self, name: str) -> list[Measurement]:
        """What was measured, in the order in which it was handed over."""
        with self._begin() as connection:
            where = schema.measurement.c.study_id == self._id(connection, name)
            rows = connection.execute(sa.select(schema.measurement).where(where).order_by(schema.measurement.c.id))
            return [Measurement(schedule=row.schedule, **row.figures) for row in rows]

    def add_router_run(self, name: str, run: RouterRun) -> None:
        """Keep a distilled router."""
        with self._begin() as connection:
            row = asdict(run) | {"config": dict(run.config), "curves": dict(run.curves)}
            connection.execute(sa.insert(schema.router_run), {"study_id": self._id(connection, name), **row})

    def router_runs(self, name: str) -> list[RouterRun]:
        """Every router of a study, oldest first.

        Raises:
            StorageError: The weights of one are not those that were stored.
        """
        with self._begin() as connection:
            where = schema.router_run.c.study_id == self._id(connection, name)
            rows = connection.execute(sa.select(schema.router_run).where(where).order_by(schema.router_run.c.id)).all()
        runs = []
        for row in rows:
            fields = row._asdict()
            del fields["id"], fields["study_id"]
            if hashlib.sha256(row.weights).hexdigest() != row.sha256:
                raise StorageError(
                    f"The router of study {name!r} was altered in {self}: its hash is not {row.sha256}. "
                    f"Distil it again with `ftp-search distill {name}`."
                )
            runs.append(RouterRun(**fields))
        return runs

    def latest_router(self, name: str) -> RouterRun | None:
        """The router that was stored last."""
        runs = self.router_runs(name)
        return runs[-1] if runs else None

    @contextmanager
    def _begin(self) -> Iterator[Connection]:
        """A transaction; whatever the database complains about becomes one line that names it."""
        try:
            with self._engine.begin() as connection:
                yield connection
        except sa.exc.IntegrityError:
            raise
        except sa.exc.DBAPIError as error:
            reason = str(error.orig).strip().splitlines()[0] if str(error.orig).strip() else type(error.orig).__name__
            raise StorageError(
                f"The database {self} refused: {reason}. Check that it exists, is writable, and is not locked."
            ) from error
        except sa.exc.StatementError as error:
            # Raised before the database saw it: a value that no column takes, such as NaN in JSON.
            raise StorageError(f"This cannot be stored in {self}: {error.orig}.") from error

    def _prepare(self, connection: Connection) -> None:
        """Make the tables of an empty database, or check those that are there."""
        if connection.dialect.name == "sqlite":
            # Else two processes that begin at once would both find no tables, and both make them.
            connection.exec_driver_sql("BEGIN IMMEDIATE")
        tables = set(sa.inspect(connection).get_table_names())
        if not tables & set(schema.metadata.tables):
            schema.metadata.create_all(connection)
            connection.execute(sa.insert(schema.schema_version).values(version=schema.SCHEMA_VERSION))
            return
        version = None
        if "schema_version" in tables:
            version = connection.execute(sa.select(schema.schema_version.c.version)).scalar()
        if version != schema.SCHEMA_VERSION:
            raise StorageError(
                f"The database {self} has schema version {version}, but this program reads version "
                f"{schema.SCHEMA_VERSION}: use the program that wrote it, or another database."
            )

    def _id(self, connection: Connection, name: str) -> int:
        if name not in self._ids:
            found = connection.execute(sa.select(schema.study.c.id).where(schema.study.c.name == name)).scalar()
            if found is None:
                raise self._not_found(connection, name)
            self._ids[name] = found
        return self._ids[name]

    def _update(self, name: str, **values: Any) -> None:
        with self._begin() as connection:
            where = schema.study.c.id == self._id(connection, name)
            connection.execute(sa.update(schema.study).where(where).values(**values))

    def _not_found(self, connection: Connection, name: str) -> StudyNotFoundError:
        names = list(connection.execute(sa.select(schema.study.c.name)).scalars())
        shown = difflib.get_close_matches(name, names, n=5, cutoff=0.4) or names[:5]
        there = f"there are {', '.join(map(repr, shown))}" if shown else "it holds none"
        more = "; `ftp-search studies` lists all" if len(names) > len(shown) else ""
        return StudyNotFoundError(f"There is no study {name!r} in {self}: {there}{more}.")


def _trial(row: Row[Any]) -> TrialRecord:
    return TrialRecord(
        number=row.number,
        schedule=row.schedule,
        values=row.objective_values,
        state=TrialState(row.state),
        fidelity=row.fidelity,
        proposer=row.proposer,
        seconds=row.seconds,
        finished_at=row.finished_at,
        metrics=row.metrics,
        error=row.error,
    )


def _configure_sqlite(connection: Any, _: Any) -> None:
    cursor = connection.cursor()
    cursor.execute(f"PRAGMA busy_timeout = {_BUSY_TIMEOUT_MS}")
    cursor.execute("PRAGMA foreign_keys = ON")
    # Before the log is on, so that the file's own header says at once whose it is.
    if cursor.execute("PRAGMA application_id").fetchone()[0] != APPLICATION_ID:
        cursor.execute(f"PRAGMA application_id = {APPLICATION_ID}")
    cursor.execute("PRAGMA journal_mode = WAL")
    cursor.close()


def _strict_json(value: Any) -> str:
    # NaN and infinity are not JSON: other programs, and PostgreSQL, refuse them.
    return json.dumps(value, allow_nan=False)
