"""Statements about rows of studies and trials, each part of a transaction that somebody else has begun."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

import sqlalchemy as sa
from optuna.exceptions import UpdateFinishedTrialError
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState
from sqlalchemy.engine import Connection, Row

from studies import schema
from studies.packing import pack_floats, pack_params, pack_steps
from studies.space import Spaces

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
_SELECT_UPDATABLE = _SELECT_TRIAL.with_for_update()
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


def next_number(connection: Connection, study_id: int) -> int:
    """The number of a new trial; the study's row stays locked until the transaction ends, so there are no gaps.

    Raises:
        KeyError: There is no such study.
    """
    count: int | None = connection.execute(_NEXT_NUMBER, {"of_study": study_id}).scalar()
    if count is None:
        raise no_study(study_id)
    return count - 1


def insert_trial(connection: Connection, study_id: int, number: int, columns: Mapping[str, Any]) -> int:
    """Add a trial with the number that `next_number` gave; its id."""
    inserted = connection.execute(_INSERT_TRIAL, {"study_id": study_id, "number": number, **columns})
    assert inserted.inserted_primary_key is not None
    trial_id: int = inserted.inserted_primary_key[0]
    return trial_id


def begun_columns() -> dict[str, Any]:
    """Columns of a trial that runs from now on, and has no parameters yet."""
    return {"state": TrialState.RUNNING.value, "params": b"", "started_at": now()}


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
        "started_at": None if trial.datetime_start is None else trial.datetime_start.isoformat(),
        "completed_at": None if trial.datetime_complete is None else trial.datetime_complete.isoformat(),
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


def write_params(connection: Connection, trial_id: int, packed: bytes) -> None:
    """Write a running trial's parameters, unless they are written already: saying it twice does no harm."""
    connection.execute(_WRITE_PARAMS, {"trial_id": trial_id, "n_bytes": len(packed), "packed": packed})


def no_study(study_id: int) -> KeyError:
    """What Optuna expects where a study is missing."""
    return KeyError(f"There is no study with id {study_id}.")


def _no_trial(trial_id: int) -> KeyError:
    return KeyError(f"There is no trial with id {trial_id}.")


def now() -> str:
    """The time as Optuna writes it: local, without a zone."""
    return datetime.now().isoformat()
