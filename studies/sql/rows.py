"""Statements about rows of studies and trials, each part of a transaction that somebody else has begun."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

import sqlalchemy as sa
from optuna.exceptions import UpdateFinishedTrialError
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState
from sqlalchemy.engine import Connection, Row

from studies.sql import schema
from studies.sql.packing import pack_floats, pack_params, pack_steps
from studies.sql.space import Spaces

_study, _trial = schema.study.c, schema.trial.c

# Built once: SQLAlchemy then compiles each but once.
_expected = sa.bindparam("expected", type_=sa.Integer)
_NEXT_NUMBER = (
    sa.update(schema.study)
    .where(_study.id == sa.bindparam("of_study"), sa.or_(_expected.is_(None), _study.n_trials == _expected))
    .values(n_trials=_study.n_trials + 1)
    .returning(_study.id, (_study.n_trials - 1).label("number"))
)
_COLUMNS = [column for column in schema.trial.columns if column.name not in ("id", "study_id", "number")]
_INSERT_TRIAL = sa.insert(schema.trial).returning(schema.trial)
_numbered = _NEXT_NUMBER.cte("numbered")
# Number and trial in one statement, which SQLite does not know.
_ADD_TRIAL = (
    sa.insert(schema.trial)
    .from_select(
        ["study_id", "number", *(column.name for column in _COLUMNS)],
        sa.select(_numbered.c.id, _numbered.c.number, *(sa.bindparam(f"new_{c.name}", type_=c.type) for c in _COLUMNS)),
    )
    .returning(schema.trial)
)
# How many trials of a study have ended, in a statement that selects from `study`: all that were begun but those that
# wait or run, which an index knows. Counting the ended ones would read every trial.
N_ENDED = (
    _study.n_trials
    - sa.select(sa.func.count())
    .where(_trial.study_id == _study.id, _trial.state.in_(sa.text("0, 4")))
    .correlate(schema.study)
    .scalar_subquery()
)
_SELECT_TRIAL = sa.select(schema.trial).where(_trial.id == sa.bindparam("trial_id"))
_SELECT_UPDATABLE = _SELECT_TRIAL.with_for_update()
_packed, _n_bytes = sa.bindparam("packed", type_=sa.LargeBinary), sa.bindparam("n_bytes", type_=sa.Integer)
_new_state = sa.bindparam("new_state", type_=sa.SmallInteger)
_CHANGE_STATE = (
    sa.update(schema.trial)
    .where(
        _trial.id == sa.bindparam("trial_id"),
        _trial.state.in_(sa.text("0, 4")),
        # Only who takes a trial from the queue lets it run.
        sa.or_(_new_state != TrialState.RUNNING.value, _trial.state == TrialState.WAITING.value),
    )
    .values(
        state=_new_state,
        params=sa.case((sa.func.length(_trial.params) < _n_bytes, _packed), else_=_trial.params),
        **{
            name: sa.func.coalesce(sa.bindparam(f"new_{name}", type_=_trial[name].type), _trial[name])
            for name in ("objective_values", "started_at", "completed_at")
        },
    )
    .returning(schema.trial)
)
_SELECT_UNFINISHED = (
    sa.select(schema.trial)
    .select_from(schema.study)
    .outerjoin(
        schema.trial,
        # The second condition is the partial index's own, which databases recognise only word for word.
        sa.and_(
            _trial.study_id == _study.id,
            _trial.state.in_(sa.text("0, 4")),
            sa.or_(_trial.state == sa.bindparam("one_state"), _trial.state == sa.bindparam("other_state")),
        ),
    )
    .where(_study.id == sa.bindparam("of_study"))
)
_WRITE_PARAMS = (
    sa.update(schema.trial)
    .where(
        _trial.id == sa.bindparam("trial_id"),
        _trial.state.in_(sa.text("0, 4")),
        sa.func.length(_trial.params) < sa.bindparam("n_bytes"),
    )
    .values(params=sa.bindparam("packed"))
)


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


def check_study(connection: Connection, study_id: int, lock: bool = False) -> None:
    """Make sure that a study exists.

    Args:
        connection: In a transaction.
        study_id: Its id.
        lock: Hold its row until the transaction ends; SQLite locks the whole database anyway.

    Raises:
        KeyError: There is no such study.
    """
    selected = sa.select(_study.id).where(_study.id == study_id)
    if connection.execute(selected.with_for_update() if lock else selected).first() is None:
        raise no_study(study_id)


def add_trial(
    connection: Connection, study_id: int, columns: Mapping[str, Any], expected: int | None = None
) -> Row[Any] | None:
    """Add a trial; the study's row stays locked until the transaction ends, so numbers have no gaps.

    Args:
        connection: Connection of `Database.write` or `Database.write_once`.
        study_id: Id of its study.
        columns: All but study and number; those that are missing are null.
        expected: The number that it must get; None for whichever comes next.

    Returns:
        All its columns; None if there is no such study, or its next number is not the expected one.
    """
    numbered = {"of_study": study_id, "expected": expected}
    if connection.dialect.name != "sqlite":
        values = {f"new_{column.name}": columns.get(column.name) for column in _COLUMNS}
        return connection.execute(_ADD_TRIAL, {**numbered, **values}).first()
    next_ = connection.execute(_NEXT_NUMBER, numbered).first()
    if next_ is None:
        return None
    row = {"study_id": study_id, "number": next_.number, **columns}
    return connection.execute(_INSERT_TRIAL, row).one()


def change_state(
    connection: Connection, trial_id: int, state: TrialState, params: bytes | None, values: Sequence[float] | None
) -> Row[Any] | None:
    """Change the state of a trial that has not finished; one that runs already cannot begin to run.

    Args:
        connection: Connection of `Database.write` or `Database.write_once`.
        trial_id: Its id.
        state: The new state.
        params: Its packed parameters, taken over if there are more than the row has.
        values: Its objective values, if it gets any.

    Returns:
        All columns as they are then; None if it runs already.

    Raises:
        KeyError: There is no such trial.
        UpdateFinishedTrialError: It has finished.
    """
    changed = {
        "trial_id": trial_id,
        "new_state": state.value,
        "packed": params,
        "n_bytes": 0 if params is None else len(params),
        "new_objective_values": None if values is None else pack_floats(values),
        "new_started_at": datetime.now(UTC) if state is TrialState.RUNNING else None,
        "new_completed_at": datetime.now(UTC) if state.is_finished() else None,
    }
    row = connection.execute(_CHANGE_STATE, changed).first()
    if row is None:
        updatable_row(connection, trial_id)
    return row


def columns_of(connection: Connection, spaces: Spaces, study_id: int, trial: FrozenTrial) -> dict[str, Any]:
    """Columns of a trial that exists already; its distributions become the study's, whose row must be locked.

    Raises:
        ValueError: The study knows other distributions, which do not go with them.
    """
    ids, values = [], []
    for name, distribution in trial.distributions.items():
        ids.append(spaces.intern(connection, study_id, name, distribution))
        values.append(distribution.to_internal_repr(trial.params[name]))
    return {
        "state": trial.state.value,
        "params": pack_params(ids, values),
        "objective_values": None if trial.values is None else pack_floats(trial.values),
        "intermediate_values": pack_steps(trial.intermediate_values),
        "user_attributes": json.dumps(trial.user_attrs) if trial.user_attrs else None,
        "system_attributes": json.dumps(trial.system_attrs) if trial.system_attrs else None,
        "started_at": trial.datetime_start,
        "completed_at": trial.datetime_complete,
    }


def trial_row(connection: Connection, trial_id: int) -> Row[Any]:
    """All columns of a trial.

    Raises:
        KeyError: There is no such trial.
    """
    row = connection.execute(_SELECT_TRIAL, {"trial_id": trial_id}).first()
    if row is None:
        raise _no_trial(trial_id)
    return row


def updatable_row(connection: Connection, trial_id: int) -> Row[Any]:
    """All columns of a trial that has not finished, locked until the transaction ends.

    Raises:
        KeyError: There is no such trial.
        UpdateFinishedTrialError: It has finished.
    """
    row = connection.execute(_SELECT_UPDATABLE, {"trial_id": trial_id}).first()
    if row is None:
        raise _no_trial(trial_id)
    if TrialState(row.state).is_finished():
        raise UpdateFinishedTrialError(f"Trial#{row.number} has already finished and can not be updated.")
    return row


def unfinished_rows(connection: Connection, study_id: int, states: Sequence[int]) -> list[Row[Any]]:
    """All columns of a study's trials that wait or run, by number.

    Args:
        connection: In a transaction or not.
        study_id: Id of their study.
        states: Wanted ones of these two states.

    Raises:
        KeyError: There is no such study.
    """
    one, other = (states[0], states[-1]) if states else (-1, -1)
    rows = connection.execute(_SELECT_UNFINISHED, {"of_study": study_id, "one_state": one, "other_state": other}).all()
    if not rows:
        raise no_study(study_id)
    # A study without such trials is one row of nulls. Sorted here: asked for an order, SQLite would walk all trials
    # in it rather than use the index of the unfinished ones.
    return sorted((row for row in rows if row.id is not None), key=lambda row: row.number)


def write_params(connection: Connection, trial_id: int, packed: bytes) -> None:
    """Write a running trial's parameters, unless they are written already: saying it twice does no harm."""
    connection.execute(_WRITE_PARAMS, {"trial_id": trial_id, "n_bytes": len(packed), "packed": packed})


def no_study(study_id: int) -> KeyError:
    """Error that Optuna expects where a study is missing."""
    return KeyError(f"There is no study with id {study_id}.")


def _no_trial(trial_id: int) -> KeyError:
    return KeyError(f"There is no trial with id {trial_id}.")
