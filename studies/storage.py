"""Optuna's storage interface over one row a trial."""

from __future__ import annotations

import copy
import gc
import json
import logging
import threading
import uuid
from collections.abc import Container, Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime
from typing import Any

import sqlalchemy as sa
from optuna.distributions import (
    BaseDistribution,
)
from optuna.exceptions import DuplicatedStudyError, UpdateFinishedTrialError
from optuna.storages import BaseStorage
from optuna.storages._base import DEFAULT_STUDY_NAME_PREFIX
from optuna.study import StudyDirection
from optuna.study._frozen import FrozenStudy
from optuna.trial import FrozenTrial, TrialState
from sqlalchemy.engine import Connection, Row

from studies import schema
from studies.database import DEFAULT_PATIENCE_S, Database
from studies.errors import StudiesError
from studies.packing import (
    pack_floats,
    pack_params,
    pack_steps,
    split_params,
    unpack_ids,
    unpack_steps,
)
from studies.space import Spaces

_log = logging.getLogger(__name__)

_UNFINISHED = (TrialState.RUNNING, TrialState.WAITING)
_MANY = 1000
_ENDED_KEPT = 64

_study, _trial = schema.study.c, schema.trial.c

# Built once: SQLAlchemy then compiles each but once.
_NEXT_NUMBER = (
    sa.update(schema.study)
    .where(_study.id == sa.bindparam("of_study"))
    .values(n_trials=_study.n_trials + 1)
    .returning(_study.n_trials)
)
_INSERT_TRIAL = sa.insert(schema.trial)
_SELECT_TRIAL = sa.select(schema.trial).where(_trial.id == sa.bindparam("trial_id"))
_WRITE_PARAMS = (
    sa.update(schema.trial)
    .where(
        _trial.id == sa.bindparam("trial_id"),
        _trial.state.in_(sa.text("0, 4")),
        sa.func.length(_trial.params) < sa.bindparam("n_bytes"),
    )
    .values(params=sa.bindparam("packed"))
)
# How long parameters of a running trial may wait in memory for those that follow them.
_HOLD_S = 0.05


class _Begun:
    """A running trial that was begun here: its parameters, the last of which may not be in the database yet."""

    def __init__(self, study_id: int) -> None:
        self.study_id = study_id
        self.ids: dict[str, int] = {}
        self.values: list[float] = []

    def packed(self) -> bytes:
        return pack_params(tuple(self.ids.values()), self.values)


class _Known:
    """What is kept in memory of a study: finished trials, which never change again."""

    def __init__(self) -> None:
        # By number; None where one has not finished.
        self.finished: list[FrozenTrial | None] = []
        self.unfinished: set[int] = set()
        self.last_id = 0


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
        patience_s: How long a database that answered before may be away, in seconds.

    Raises:
        StorageError: The database cannot be opened. Its schema is made or checked here.
    """

    def __init__(self, url: str | Database, create: bool = True, patience_s: float = DEFAULT_PATIENCE_S) -> None:
        self._database = url if isinstance(url, Database) else Database(url, create, patience_s)
        self._forget()

    def _forget(self) -> None:
        # Never held while a transaction is waited for, else two threads could wait for each other.
        self._lock = threading.RLock()
        self._reading = threading.Lock()
        self.spaces = Spaces()
        self._known: dict[int, _Known] = {}
        self._begun: dict[int, _Begun] = {}
        # Of those, the trials whose parameters the database does not have yet.
        self._held: set[int] = set()
        # Trials that ended here lately: whoever ends one asks for it next, and it never changes again.
        self._ended: dict[int, FrozenTrial] = {}
        self._holding: threading.Timer | None = None

    def __repr__(self) -> str:
        return f"StudyStorage({str(self._database)!r})"

    def __getstate__(self) -> dict[str, Any]:
        return {"_database": self._database}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self._database = state["_database"]
        self._forget()

    def close(self) -> None:
        """Write what waits, and give connections back."""
        self._release()
        self._database.close()

    def remove_session(self) -> None:
        """Write what waits, and give connections back; they are made anew when they are needed."""
        self.close()

    # Studies

    def create_new_study(self, directions: Sequence[StudyDirection], study_name: str | None = None) -> int:
        """See `BaseStorage.create_new_study`."""
        name = f"{DEFAULT_STUDY_NAME_PREFIX}{uuid.uuid4()}" if study_name is None else study_name

        def work(connection: Connection) -> int:
            return insert_study(connection, name, directions)

        try:
            return self._database.write(work)
        except sa.exc.IntegrityError as error:
            raise DuplicatedStudyError(
                f"A study named {name!r} exists in {self._database}: choose another name, or load that one."
            ) from error

    def delete_study(self, study_id: int) -> None:
        """See `BaseStorage.delete_study`."""

        def work(connection: Connection) -> None:
            if connection.execute(sa.delete(schema.study).where(_study.id == study_id)).rowcount == 0:
                raise _no_study(study_id)

        self._database.write(work)
        with self._lock:
            self._known.pop(study_id, None)
            self._ended.clear()
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
            _lock_study(connection, study_id)
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
        name: str = self._study_row(study_id).name
        return name

    def get_study_directions(self, study_id: int) -> list[StudyDirection]:
        """See `BaseStorage.get_study_directions`."""
        return [StudyDirection(number) for number in self._study_row(study_id).directions]

    def _study_row(self, study_id: int) -> Row[Any]:
        row = self._database.read(
            lambda connection: connection.execute(sa.select(schema.study).where(_study.id == study_id)).first()
        )
        if row is None:
            raise _no_study(study_id)
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
            _check_study(connection, study_id)
            where = sa.and_(table.study_id == study_id, table.kind == kind)
            rows = connection.execute(sa.select(table.key, table.value).where(where))
            return {row.key: json.loads(row.value) for row in rows}

        return self._database.read(work)

    def get_all_studies(self) -> list[FrozenStudy]:
        """See `BaseStorage.get_all_studies`."""

        def work(connection: Connection) -> list[FrozenStudy]:
            attributes: dict[tuple[int, str], dict[str, Any]] = {}
            for row in connection.execute(sa.select(schema.study_attribute)):
                attributes.setdefault((row.study_id, row.kind), {})[row.key] = json.loads(row.value)
            return [
                FrozenStudy(
                    study_name=row.name,
                    direction=None,
                    directions=[StudyDirection(number) for number in row.directions],
                    user_attrs=attributes.get((row.id, "user"), {}),
                    system_attrs=attributes.get((row.id, "system"), {}),
                    study_id=row.id,
                )
                for row in connection.execute(sa.select(schema.study).order_by(_study.id))
            ]

        return self._database.read(work)

    # Trials: writing

    def create_new_trial(self, study_id: int, template_trial: FrozenTrial | None = None) -> int:
        """See `BaseStorage.create_new_trial`."""

        def work(connection: Connection) -> int:
            return self._insert_trial(connection, study_id, template_trial)

        trial_id = self._database.write(work)
        if template_trial is None:
            self._begun[trial_id] = _Begun(study_id)
        return trial_id

    def _insert_trial(self, connection: Connection, study_id: int, template: FrozenTrial | None) -> int:
        number = next_number(connection, study_id)
        if template is None:
            row: dict[str, Any] = {"state": TrialState.RUNNING.value, "params": b"", "started_at": _now()}
        else:
            ids, values = [], []
            for name, distribution in template.distributions.items():
                ids.append(self.spaces.intern(connection, study_id, name, distribution))
                values.append(distribution.to_internal_repr(template.params[name]))
            row = {
                "state": template.state.value,
                "params": pack_params(ids, values),
                "objective_values": None if template.values is None else pack_floats(template.values),
                "intermediate_values": pack_steps(template.intermediate_values),
                "user_attributes": _attributes(template.user_attrs),
                "system_attributes": _attributes(template.system_attrs),
                "started_at": _written(template.datetime_start),
                "completed_at": _written(template.datetime_complete),
            }
        inserted = connection.execute(_INSERT_TRIAL, {"study_id": study_id, "number": number, **row})
        assert inserted.inserted_primary_key is not None
        trial_id: int = inserted.inserted_primary_key[0]
        return trial_id

    def set_trial_param(
        self, trial_id: int, param_name: str, param_value_internal: float, distribution: BaseDistribution
    ) -> None:
        """See `BaseStorage.set_trial_param`."""
        value = float(param_value_internal)
        if self._hold(trial_id, param_name, value, distribution):
            return
        self._release()

        def work(connection: Connection) -> tuple[dict[str, int], list[float]]:
            row = self._updatable(connection, trial_id)
            _lock_study(connection, row.study_id)
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
        begun = self._begun.get(trial_id)
        if begun is not None:
            begun.ids, begun.values = ids, values

    def _hold(self, trial_id: int, name: str, value: float, distribution: BaseDistribution) -> bool:
        """Keep a new parameter of a trial that was begun here, to be written with others; whether that was possible."""
        with self._lock:
            begun = self._begun.get(trial_id)
            number = None if begun is None else self.spaces.known(begun.study_id, name, distribution)
            if begun is None or number is None or name in begun.ids:
                return False
            begun.ids[name] = number
            begun.values.append(value)
            self._held.add(trial_id)
            if self._holding is None:
                self._holding = threading.Timer(_HOLD_S, self._release_late)
                self._holding.daemon = True
                self._holding.start()
            return True

    def _release_late(self) -> None:
        with self._lock:
            self._holding = None
        try:
            self._release()
        except StudiesError as error:
            # Nobody waits for this thread; the trial's next write says what is wrong.
            _log.warning("Parameters of a running trial are not written yet: %s", error)

    def _release(self) -> None:
        """Write the parameters that wait."""
        with self._lock:
            held = {trial_id: self._begun[trial_id].packed() for trial_id in self._held}
        if not held:
            return

        def work(connection: Connection) -> None:
            for trial_id, packed in held.items():
                _write_params(connection, trial_id, packed)

        self._database.write(work)
        for trial_id, packed in held.items():
            self._released(trial_id, packed)

    def _held_of(self, trial_id: int) -> bytes | None:
        """The parameters of a trial, if some of them wait."""
        with self._lock:
            return self._begun[trial_id].packed() if trial_id in self._held else None

    def _released(self, trial_id: int, packed: bytes) -> None:
        """Note that these parameters are in the database."""
        with self._lock:
            begun = self._begun.get(trial_id)
            if begun is None or begun.packed() == packed:
                self._held.discard(trial_id)

    def set_trial_state_values(self, trial_id: int, state: TrialState, values: Sequence[float] | None = None) -> bool:
        """See `BaseStorage.set_trial_state_values`."""
        held = self._held_of(trial_id)

        def work(connection: Connection) -> FrozenTrial | None:
            row = self._updatable(connection, trial_id)
            if state is TrialState.RUNNING and row.state != TrialState.WAITING.value:
                return None
            changed: dict[str, Any] = {"state": state.value}
            if held is not None and len(held) > len(row.params):
                changed["params"] = held
            if values is not None:
                changed["objective_values"] = pack_floats(values)
            if state is TrialState.RUNNING:
                changed["started_at"] = _now()
            if state.is_finished():
                changed["completed_at"] = _now()
            update = sa.update(schema.trial).where(_trial.id == trial_id).values(**changed).returning(schema.trial)
            return self.spaces.frozen(connection, connection.execute(update).one())

        trial = self._database.write(work)
        if trial is None:
            return False
        with self._lock:
            self._held.discard(trial_id)
            if state.is_finished():
                self._begun.pop(trial_id, None)
                self._ended[trial_id] = trial
                while len(self._ended) > _ENDED_KEPT:
                    self._ended.pop(next(iter(self._ended)))
        return True

    def set_trial_intermediate_value(self, trial_id: int, step: int, intermediate_value: float) -> None:
        """See `BaseStorage.set_trial_intermediate_value`."""
        self._release()

        def work(connection: Connection) -> None:
            row = self._updatable(connection, trial_id)
            steps = unpack_steps(row.intermediate_values) | {step: float(intermediate_value)}
            update = sa.update(schema.trial).where(_trial.id == trial_id)
            connection.execute(update.values(intermediate_values=pack_steps(steps)))

        self._database.write(work)

    def set_trial_user_attr(self, trial_id: int, key: str, value: Any) -> None:
        """See `BaseStorage.set_trial_user_attr`."""
        self._set_trial_attribute(trial_id, "user_attributes", key, value)

    def set_trial_system_attr(self, trial_id: int, key: str, value: Any) -> None:
        """See `BaseStorage.set_trial_system_attr`."""
        self._set_trial_attribute(trial_id, "system_attributes", key, value)

    def _set_trial_attribute(self, trial_id: int, column: str, key: str, value: Any) -> None:
        self._release()

        def work(connection: Connection) -> None:
            row = self._updatable(connection, trial_id)
            attributes = json.loads(getattr(row, column) or "{}") | {key: value}
            update = sa.update(schema.trial).where(_trial.id == trial_id)
            connection.execute(update.values({column: json.dumps(attributes)}))

        self._database.write(work)

    def _updatable(self, connection: Connection, trial_id: int) -> Row[Any]:
        """The row of a trial that has not finished, locked until the transaction ends."""
        row = connection.execute(_SELECT_TRIAL.with_for_update(), {"trial_id": trial_id}).first()
        if row is None:
            raise _no_trial(trial_id)
        if TrialState(row.state).is_finished():
            raise UpdateFinishedTrialError(f"Trial#{row.number} has already finished and can not be updated.")
        return row

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
        held = self._held_of(trial_id)
        trial = self._ended.get(trial_id)

        def work(connection: Connection) -> FrozenTrial:
            row = connection.execute(_SELECT_TRIAL, {"trial_id": trial_id}).first()
            if row is None:
                raise _no_trial(trial_id)
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
        self._release()
        if states is not None and not any(state in states for state in TrialState if state not in _UNFINISHED):
            trials = self._unfinished(study_id, states)
        else:
            trials = self._all(study_id)
            if states is not None:
                trials = [trial for trial in trials if trial.state in states]
        return copy.deepcopy(trials) if deepcopy else trials

    def _unfinished(self, study_id: int, states: Container[TrialState]) -> list[FrozenTrial]:
        wanted = [state.value for state in _UNFINISHED if state in states]

        def work(connection: Connection) -> list[FrozenTrial]:
            _check_study(connection, study_id)
            # The first condition is the partial index's own, which databases recognise only word for word.
            where = sa.and_(_trial.study_id == study_id, _trial.state.in_(sa.text("0, 4")), _trial.state.in_(wanted))
            rows = connection.execute(sa.select(schema.trial).where(where).order_by(_trial.number)).all()
            return [self.spaces.frozen(connection, row) for row in rows]

        return self._database.read(work)

    def _all(self, study_id: int) -> list[FrozenTrial]:
        """Every trial by number: finished ones from memory, the others and new ones from the database."""

        def work(connection: Connection) -> list[FrozenTrial]:
            _check_study(connection, study_id)
            known = self._known.setdefault(study_id, _Known())
            conditions = [_trial.id > known.last_id]
            waiting = sorted(known.unfinished)
            conditions += [_trial.id.in_(waiting[i : i + _MANY]) for i in range(0, len(waiting), _MANY)]
            fresh: dict[int, FrozenTrial] = {}
            for condition in conditions:
                # In the order of ids: if it breaks off, what is known has no gap.
                selected = sa.select(schema.trial).where(_trial.study_id == study_id, condition).order_by(_trial.id)
                for row in connection.execute(selected, execution_options={"yield_per": _MANY}):
                    trial = self.spaces.frozen(connection, row)
                    trial_id, number = trial._trial_id, trial.number
                    known.last_id = max(known.last_id, trial_id)
                    if len(known.finished) <= number:
                        known.finished += [None] * (number + 1 - len(known.finished))
                    if trial.state.is_finished():
                        known.finished[number] = trial
                        known.unfinished.discard(trial_id)
                    else:
                        fresh[number] = trial
                        known.unfinished.add(trial_id)
            if not fresh:
                return [trial for trial in known.finished if trial is not None]
            merged = (fresh.get(i) if trial is None else trial for i, trial in enumerate(known.finished))
            return [trial for trial in merged if trial is not None]

        with self._reading, _without_garbage_collection():
            return self._database.stream(work)

    def get_n_trials(self, study_id: int, state: tuple[TrialState, ...] | TrialState | None = None) -> int:
        """See `BaseStorage.get_n_trials`."""

        def work(connection: Connection) -> int:
            _check_study(connection, study_id)
            counted = sa.select(sa.func.count()).select_from(schema.trial).where(_trial.study_id == study_id)
            if state is not None:
                wanted = (state,) if isinstance(state, TrialState) else state
                counted = counted.where(_trial.state.in_([one.value for one in wanted]))
            n: int = connection.execute(counted).scalar_one()
            return n

        return self._database.read(work)


def insert_study(connection: Connection, name: str, directions: Sequence[StudyDirection]) -> int:
    """Add a study.

    Raises:
        sqlalchemy.exc.IntegrityError: The name is taken.
    """
    row = {"name": name, "directions": [direction.value for direction in directions], "n_trials": 0}
    inserted = connection.execute(sa.insert(schema.study), row)
    assert inserted.inserted_primary_key is not None
    study_id: int = inserted.inserted_primary_key[0]
    return study_id


def next_number(connection: Connection, study_id: int) -> int:
    """The number of a new trial; the study's row stays locked until the transaction ends, so there are no gaps.

    Raises:
        KeyError: There is no such study.
    """
    count: int | None = connection.execute(_NEXT_NUMBER, {"of_study": study_id}).scalar()
    if count is None:
        raise _no_study(study_id)
    return count - 1


def _write_params(connection: Connection, trial_id: int, packed: bytes) -> None:
    """Write a running trial's parameters, unless they are written already: saying it twice does no harm."""
    connection.execute(_WRITE_PARAMS, {"trial_id": trial_id, "n_bytes": len(packed), "packed": packed})


def _lock_study(connection: Connection, study_id: int) -> None:
    """Hold a study's row until the transaction ends; SQLite locks the whole database anyway.

    Raises:
        KeyError: There is no such study.
    """
    if connection.execute(sa.select(_study.id).where(_study.id == study_id).with_for_update()).first() is None:
        raise _no_study(study_id)


def _check_study(connection: Connection, study_id: int) -> None:
    if connection.execute(sa.select(_study.id).where(_study.id == study_id)).first() is None:
        raise _no_study(study_id)


def _no_study(study_id: int) -> KeyError:
    return KeyError(f"There is no study with id {study_id}.")


def _no_trial(trial_id: int) -> KeyError:
    return KeyError(f"There is no trial with id {trial_id}.")


@contextmanager
def _without_garbage_collection() -> Iterator[None]:
    """Reading many trials makes millions of objects, none of them garbage: looking for it takes a third of the time."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def _now() -> str:
    return datetime.now().isoformat()


def _written(moment: datetime | None) -> str | None:
    return None if moment is None else moment.isoformat()


def _attributes(attributes: dict[str, Any]) -> str | None:
    return json.dumps(attributes) if attributes else None
