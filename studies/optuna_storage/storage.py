"""Optuna's storage interface over one row a trial."""

from __future__ import annotations

import copy
import json
import uuid
from collections.abc import Callable, Container, Sequence
from datetime import UTC, datetime
from typing import Any

import sqlalchemy as sa
from optuna.distributions import BaseDistribution
from optuna.exceptions import DuplicatedStudyError
from optuna.storages import BaseStorage
from optuna.storages._base import DEFAULT_STUDY_NAME_PREFIX
from optuna.study import StudyDirection
from optuna.study._frozen import FrozenStudy
from optuna.study.study import _SYSTEM_ATTR_METRIC_NAMES
from optuna.trial import FrozenTrial, TrialState
from sqlalchemy.engine import Connection, Row

from studies.optuna_storage.finished import FinishedTrials
from studies.optuna_storage.running import RunningTrials
from studies.sql import schema
from studies.sql.database import DEFAULT_PATIENCE_S, Database
from studies.sql.packing import pack_params, pack_steps, split_params, unpack_ids, unpack_steps
from studies.sql.rows import (
    add_trial,
    change_state,
    check_study,
    columns_of,
    insert_study,
    no_study,
    trial_row,
    unfinished_rows,
    updatable_row,
)
from studies.sql.space import Spaces

_UNFINISHED = (TrialState.RUNNING, TrialState.WAITING)

_study, _trial = schema.study.c, schema.trial.c


class StudyStorage(BaseStorage):
    """An Optuna storage in SQLite or PostgreSQL with one row a trial, made for spaces of many parameters.

    `optuna.load_study(study_name=..., storage=StudyStorage(url))`, Optuna's samplers, pruners and visualisations and
    optuna-dashboard work on it as on any other. Many threads and processes may share a database; a storage can be
    pickled. A running trial's parameters reach the database together: with whatever is written or read next through
    this storage, or after a twentieth of a second, so that other processes see them. Everything else is there when the
    call returns.

    Args:
        url: `sqlite:///PATH` or `postgresql+psycopg://USER:PASSWORD@HOST/DATABASE`; or a database that is open already.
        create: Whether a SQLite file that does not exist becomes a database.
        patience_s: Longest absence of a database that answered before, in seconds.

    Raises:
        StorageError: The database cannot be opened. Its schema is made or checked here.
    """

    def __init__(self, url: str | Database, create: bool = True, patience_s: float = DEFAULT_PATIENCE_S) -> None:
        self._database = url if isinstance(url, Database) else Database(url, create, patience_s)
        self._forget()

    def _forget(self) -> None:
        self.spaces = Spaces()
        self._running = RunningTrials(self._database)
        self._finished = FinishedTrials(self._database, self.spaces)

    @property
    def database(self) -> Database:
        """Database of the studies."""
        return self._database

    def __repr__(self) -> str:
        return f"StudyStorage({str(self._database)!r})"

    def __getstate__(self) -> dict[str, Any]:
        return {"_database": self._database}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self._database = state["_database"]
        self._forget()

    def close(self) -> None:
        """Write what waits, and give connections back; they are made anew when they are needed."""
        self._running.release()
        self._database.close()

    remove_session = close

    # Studies

    def create_new_study(self, directions: Sequence[StudyDirection], study_name: str | None = None) -> int:
        """See `BaseStorage.create_new_study`."""
        name = f"{DEFAULT_STUDY_NAME_PREFIX}{uuid.uuid4()}" if study_name is None else study_name
        try:
            return self._database.write(lambda connection: insert_study(connection, name, directions))
        except sa.exc.IntegrityError as error:
            raise DuplicatedStudyError(
                f"A study named {name!r} exists in {self._database}: choose another name, or load that one."
            ) from error

    def delete_study(self, study_id: int) -> None:
        """See `BaseStorage.delete_study`."""

        def work(connection: Connection) -> None:
            if connection.execute(sa.delete(schema.study).where(_study.id == study_id)).rowcount == 0:
                raise no_study(study_id)

        self._database.write(work)
        self._finished.forget(study_id)
        self.spaces.forget(study_id)

    def set_study_user_attr(self, study_id: int, key: str, value: Any) -> None:
        """See `BaseStorage.set_study_user_attr`."""
        self._set_study_attribute(study_id, "user", key, value)

    def set_study_system_attr(self, study_id: int, key: str, value: Any) -> None:
        """See `BaseStorage.set_study_system_attr`."""
        self._set_study_attribute(study_id, "system", key, value)

    def _set_study_attribute(self, study_id: int, kind: str, key: str, value: Any) -> None:
        table = schema.study_attribute
        written = json.dumps(value)

        def work(connection: Connection) -> None:
            check_study(connection, study_id, lock=True)
            where = sa.and_(table.c.study_id == study_id, table.c.kind == kind, table.c.key == key)
            if connection.execute(sa.update(table).where(where).values(value=written)).rowcount == 0:
                connection.execute(sa.insert(table).values(study_id=study_id, kind=kind, key=key, value=written))

        self._database.write(work)

    def get_study_id_from_name(self, study_name: str) -> int:
        """See `BaseStorage.get_study_id_from_name`."""
        found: int | None = self._database.read(
            lambda connection: connection.execute(sa.select(_study.id).where(_study.name == study_name)).scalar()
        )
        if found is None:
            raise KeyError(f"There is no study named {study_name!r} in {self._database}.")
        return found

    def get_study_name_from_id(self, study_id: int) -> str:
        """See `BaseStorage.get_study_name_from_id`."""
        return str(self._study_row(study_id).name)

    def get_study_directions(self, study_id: int) -> list[StudyDirection]:
        """See `BaseStorage.get_study_directions`."""
        return [StudyDirection(number) for number in self._study_row(study_id).directions]

    def _study_row(self, study_id: int) -> Row[Any]:
        row = self._database.read(
            lambda connection: connection.execute(sa.select(schema.study).where(_study.id == study_id)).first()
        )
        if row is None:
            raise no_study(study_id)
        return row

    def get_study_user_attrs(self, study_id: int) -> dict[str, Any]:
        """See `BaseStorage.get_study_user_attrs`."""
        return self._study_attributes(study_id, "user")

    def get_study_system_attrs(self, study_id: int) -> dict[str, Any]:
        """See `BaseStorage.get_study_system_attrs`."""
        return self._study_attributes(study_id, "system")

    def _study_attributes(self, study_id: int, kind: str) -> dict[str, Any]:
        table = schema.study_attribute.c

        def work(connection: Connection) -> dict[str, Any]:
            check_study(connection, study_id)
            where = sa.and_(table.study_id == study_id, table.kind == kind)
            rows = connection.execute(sa.select(table.key, table.value).where(where))
            named = _metric_names(connection, study_id).get(study_id, {}) if kind == "system" else {}
            return named | {row.key: json.loads(row.value) for row in rows}

        return self._database.read(work)

    def get_all_studies(self) -> list[FrozenStudy]:
        """See `BaseStorage.get_all_studies`."""

        def work(connection: Connection) -> list[FrozenStudy]:
            attributes: dict[tuple[int, str], dict[str, Any]] = {}
            for row in connection.execute(sa.select(schema.study_attribute)):
                attributes.setdefault((row.study_id, row.kind), {})[row.key] = json.loads(row.value)
            named = _metric_names(connection)
            return [
                FrozenStudy(
                    study_name=row.name,
                    direction=None,
                    directions=[StudyDirection(number) for number in row.directions],
                    user_attrs=attributes.get((row.id, "user"), {}),
                    system_attrs=named.get(row.id, {}) | attributes.get((row.id, "system"), {}),
                    study_id=row.id,
                )
                for row in connection.execute(sa.select(schema.study).order_by(_study.id))
            ]

        return self._database.read(work)

    # Trials: writing

    def create_new_trial(self, study_id: int, template_trial: FrozenTrial | None = None) -> int:
        """See `BaseStorage.create_new_trial`."""
        known = template_trial is None or self.spaces.knows(study_id, template_trial.distributions)

        def work(connection: Connection) -> tuple[int, FrozenTrial | None]:
            if not known:
                check_study(connection, study_id, lock=True)
            columns = {"state": TrialState.RUNNING.value, "params": b"", "started_at": datetime.now(UTC)}
            if template_trial is not None:
                columns = columns_of(connection, self.spaces, study_id, template_trial)
            added = add_trial(connection, study_id, columns)
            if added is None:
                raise no_study(study_id)
            return added.id, None if template_trial else self.spaces.frozen(connection, added)

        trial_id, begun = self._database.write_once(work) if known else self._database.write(work)
        if begun is not None:
            self._running.begin(study_id, begun)
        return trial_id

    def set_trial_param(
        self, trial_id: int, param_name: str, param_value_internal: float, distribution: BaseDistribution
    ) -> None:
        """See `BaseStorage.set_trial_param`."""
        value = float(param_value_internal)
        study_id = self._running.study_of(trial_id)
        number = None if study_id is None else self.spaces.known(study_id, param_name, distribution)
        if number is not None and self._running.hold(trial_id, param_name, number, value):
            return
        self._running.release()

        def work(connection: Connection) -> tuple[dict[str, int], list[float]]:
            row = updatable_row(connection, trial_id)
            check_study(connection, row.study_id, lock=True)
            number = self.spaces.intern(connection, row.study_id, param_name, distribution)
            packed_ids, known = split_params(row.params)
            space = self.spaces.of(connection, row.study_id, again=True)
            ids = {space.by_id[id_][0]: id_ for id_ in unpack_ids(packed_ids)}
            values = dict(zip(ids, known, strict=True))
            ids[param_name], values[param_name] = number, value
            packed = pack_params(tuple(ids.values()), tuple(values.values()))
            connection.execute(sa.update(schema.trial).where(_trial.id == trial_id).values(params=packed))
            return ids, list(values.values())

        ids, values = self._database.write(work)
        self._running.written(trial_id, ids, values)

    def set_trial_state_values(self, trial_id: int, state: TrialState, values: Sequence[float] | None = None) -> bool:
        """See `BaseStorage.set_trial_state_values`."""
        held = self._running.held(trial_id)

        def work(connection: Connection) -> FrozenTrial | None:
            row = change_state(connection, trial_id, state, held, values)
            return None if row is None else self.spaces.frozen(connection, row)

        trial = self._database.write_once(work)
        if trial is None:
            return False
        self._running.changed_state(trial_id, state.is_finished())
        if state.is_finished():
            self._finished.keep(trial_id, trial)
        return True

    def set_trial_intermediate_value(self, trial_id: int, step: int, intermediate_value: float) -> None:
        """See `BaseStorage.set_trial_intermediate_value`."""

        def changed(steps: bytes | None) -> bytes | None:
            return pack_steps(unpack_steps(steps) | {step: float(intermediate_value)})

        self._change(trial_id, "intermediate_values", changed)

    def set_trial_user_attr(self, trial_id: int, key: str, value: Any) -> None:
        """See `BaseStorage.set_trial_user_attr`."""
        self._change(trial_id, "user_attributes", lambda text: json.dumps(json.loads(text or "{}") | {key: value}))

    def set_trial_system_attr(self, trial_id: int, key: str, value: Any) -> None:
        """See `BaseStorage.set_trial_system_attr`."""
        self._change(trial_id, "system_attributes", lambda text: json.dumps(json.loads(text or "{}") | {key: value}))

    def _change(self, trial_id: int, column: str, changed: Callable[[Any], Any]) -> None:
        self._running.release()

        def work(connection: Connection) -> None:
            value = changed(getattr(updatable_row(connection, trial_id), column))
            connection.execute(sa.update(schema.trial).where(_trial.id == trial_id).values({column: value}))

        self._database.write(work)

    # Trials: reading

    def get_trial_id_from_study_id_trial_number(self, study_id: int, trial_number: int) -> int:
        """See `BaseStorage.get_trial_id_from_study_id_trial_number`."""
        where = sa.and_(_trial.study_id == study_id, _trial.number == trial_number)
        found: int | None = self._database.read(
            lambda connection: connection.execute(sa.select(_trial.id).where(where)).scalar()
        )
        if found is None:
            raise KeyError(f"There is no trial {trial_number} in the study with id {study_id}.")
        return found

    def get_trial(self, trial_id: int) -> FrozenTrial:
        """See `BaseStorage.get_trial`."""
        held = self._running.held(trial_id)
        trial = self._running.fresh(trial_id) or self._finished.lately(trial_id)

        def work(connection: Connection) -> FrozenTrial:
            row = trial_row(connection, trial_id)
            late = held is not None and len(held) > len(row.params)
            return self.spaces.frozen(connection, row, held if late else None)

        if trial is None:
            trial = self._database.read(work)
        # Trials of one space share the dictionary of its distributions, but who asked for one may change it.
        trial._distributions = dict(trial._distributions)
        return trial

    def get_all_trials(
        self, study_id: int, deepcopy: bool = True, states: Container[TrialState] | None = None
    ) -> list[FrozenTrial]:
        """See `BaseStorage.get_all_trials`."""
        self._running.release()
        if states is not None and not any(state in states for state in TrialState if state not in _UNFINISHED):
            trials = self._unfinished(study_id, states)
        else:
            trials = self._finished.with_unfinished(study_id)
            if states is not None:
                trials = [trial for trial in trials if trial.state in states]
        return copy.deepcopy(trials) if deepcopy else trials

    def _unfinished(self, study_id: int, states: Container[TrialState]) -> list[FrozenTrial]:
        wanted = [state.value for state in _UNFINISHED if state in states]

        def work(connection: Connection) -> list[FrozenTrial]:
            rows = unfinished_rows(connection, study_id, wanted)
            return [self.spaces.frozen(connection, row) for row in rows]

        return self._database.read(work)

    def get_n_trials(self, study_id: int, state: tuple[TrialState, ...] | TrialState | None = None) -> int:
        """See `BaseStorage.get_n_trials`."""

        def work(connection: Connection) -> int:
            check_study(connection, study_id)
            counted = sa.select(sa.func.count()).select_from(schema.trial).where(_trial.study_id == study_id)
            if state is not None:
                wanted = (state,) if isinstance(state, TrialState) else state
                counted = counted.where(_trial.state.in_([one.value for one in wanted]))
            n: int = connection.execute(counted).scalar_one()
            return n

        return self._database.read(work)


def _metric_names(connection: Connection, study_id: int | None = None) -> dict[int, dict[str, list[str]]]:
    """The attribute that names the values of a trial, of one study of schedules or of all: names of its objectives."""
    run = schema.search_run.c
    selected = sa.select(run.study_id, run.objectives)
    rows = connection.execute(selected if study_id is None else selected.where(run.study_id == study_id))
    return {row.study_id: {_SYSTEM_ATTR_METRIC_NAMES: list(row.objectives)} for row in rows}
