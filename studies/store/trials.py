"""Keeps trials of schedules: as rows that Optuna reads as trials with parameters for each block."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import sqlalchemy as sa
from optuna.distributions import FloatDistribution
from optuna.trial import FrozenTrial
from optuna.trial import TrialState as OptunaState
from sqlalchemy.engine import Connection

from studies.errors import StorageError, StudiesError
from studies.optuna_storage.attributes import (
    ENDED_BY_OTHERS,
    begun_by_search,
    constraint_violation,
    ended_by_search,
    violation_attributes,
)
from studies.records.halves import n_blocks, named, parameter_names, read
from studies.records.records import LeftAside
from studies.records.trial import Trial, TrialState, WorkSpan, finite_values
from studies.sql import schema
from studies.sql.packing import pack_floats, pack_params
from studies.sql.rows import N_ENDED, add_trial, check_study, unfinished_rows
from studies.store.names import Part, StudyNames
from studies.store.shared import keep_evaluations

_STATES = {
    TrialState.FINISHED: OptunaState.COMPLETE,
    TrialState.PRUNED: OptunaState.PRUNED,
    TrialState.FAILED: OptunaState.FAIL,
}
# How trials end that count: Optuna's words for ours.
ENDED = {optuna_state: state for state, optuna_state in _STATES.items()}
# Trials read at a time where not all of them are wanted in memory.
_AT_ONCE = 1000
_ALL = sa.select(schema.trial)
_SPARSITY = FloatDistribution(0.0, 1.0)

_study, _trial, _run = schema.study.c, schema.trial.c, schema.search_run.c
HAS_ENDED = _trial.state.in_([state.value for state in ENDED])

_ENDED_COLUMNS = ("state", "objective_values", "user_attributes", "system_attributes", "completed_at")
# A trial that was returned to the queue meanwhile may be ended too: the result is as good.
_FINISH = (
    sa.update(schema.trial)
    .where(
        _trial.study_id == sa.bindparam("of_study"),
        _trial.number == sa.bindparam("of_number"),
        _trial.state.in_([OptunaState.RUNNING.value, OptunaState.WAITING.value]),
    )
    .values({name: sa.bindparam(name) for name in _ENDED_COLUMNS})
)


class Trials(Part):
    """The trials of studies of schedules: those that wait, those that run, and those that have ended.

    Trials that other programs began or ended through Optuna are none of them: nobody knows what was evaluated there,
    and how. They stay as they are, for Optuna's tools.
    """

    def __init__(self, names: StudyNames) -> None:
        super().__init__(names)
        # Numbers of the distributions of parameters, by the study's id and their names.
        self._parameter_ids: dict[tuple[int, tuple[str, ...]], tuple[int, ...]] = {}
        # Whether a study keeps halves.
        self._halved: dict[int, bool] = {}

    def begin(self, name: str, trials: Sequence[Trial]) -> list[Trial]:
        """Records that trials are being evaluated: if the process dies, the next one finds them in the queue.

        Args:
            name: Name of the study.
            trials: Running trials, whatever their numbers.

        Returns:
            The trials, numbered on from the study's last one.
        """
        begun = {"state": OptunaState.RUNNING.value, "started_at": datetime.now(UTC)}
        rows = [(trial.schedule, {**begun, "user_attributes": json.dumps(_begun(trial))}) for trial in trials]
        numbered = zip(trials, self._add(name, rows), strict=True)
        return [trial if trial.number == number else replace(trial, number=number) for trial, number in numbered]

    def finish(self, name: str, trials: Sequence[Trial], context: str | None = None) -> int:
        """Keeps the results of trials that were begun, all or none of them.

        Args:
            name: Name of the study.
            trials: Ended trials.
            context: Hash of all that their evaluations depend on beside the schedule: finished ones are then known to
                every study of the same hash, see `Evaluations.find`. None keeps them to the study.

        Returns:
            How many were kept: a trial that has ended already stays as it is.

        Raises:
            ValueError: One is marked as finished without finite values.
        """
        for trial in trials:
            _check_finite(trial)
        changed = [(trial.number, ended_columns(trial)) for trial in trials]
        whole = [] if context is None else [trial for trial in trials if _is_shared(trial)]

        def work(connection: Connection, study_id: int) -> int:
            kept = 0
            for number, columns in changed:
                bound = {"of_study": study_id, "of_number": number, **columns}
                kept += connection.execute(_FINISH, bound).rowcount
            if context is not None and whole:
                keep_evaluations(connection, context, whole)
            return kept

        alone = len(trials) == 1 and not whole
        return self._names.transact(name, work, write=not alone, once=alone)

    def claim_waiting(self, name: str) -> list[Trial]:
        """Takes the waiting trials of a search, by number: they are running then, and no other process takes them."""

        def work(connection: Connection, study_id: int) -> list[Trial]:
            waiting = sa.and_(_trial.study_id == study_id, _trial.state == OptunaState.WAITING.value)
            rows = connection.execute(sa.select(schema.trial).where(waiting).order_by(_trial.number)).all()
            found = {row.id: _running(self._storage.spaces.frozen(connection, row)) for row in rows}
            claimed = {row_id: trial for row_id, trial in found.items() if trial is not None}
            if claimed:
                begun = {"state": OptunaState.RUNNING.value, "started_at": datetime.now(UTC)}
                connection.execute(sa.update(schema.trial).where(_trial.id.in_(list(claimed))).values(**begun))
            return list(claimed.values())

        return self._names.transact(name, work, write=True)

    def append(self, name: str, trial: Trial) -> None:
        """Keeps a trial that was evaluated elsewhere, in one transaction.

        Raises:
            StorageError: Its number is not the study's next one.
            ValueError: It is marked as finished without finite values.
        """
        _check_finite(trial)
        self._add(name, [(trial.schedule, ended_columns(trial))], trial.number)

    def of(self, name: str) -> list[Trial]:
        """Every trial that a search has ended, by number."""
        study_id = self._names.id(name)
        try:
            found = self._storage.get_all_trials(study_id, deepcopy=False, states=tuple(ENDED))
        except KeyError:
            raise self._names.not_found(name) from None
        records = (_record(trial) for trial in found)
        return [record for record in records if record is not None]

    def each(self, name: str, after: int = -1) -> Iterator[Trial]:
        """Every trial behind a number that a search has ended, read piece by piece: memory never holds all of them."""
        last = after
        while True:

            def work(connection: Connection, study_id: int, last: int = last) -> list[FrozenTrial]:
                selected = sa.select(schema.trial).where(_trial.study_id == study_id, _trial.number > last, HAS_ENDED)
                rows = connection.execute(selected.order_by(_trial.number).limit(_AT_ONCE)).all()
                return [self._storage.spaces.frozen(connection, row) for row in rows]

            found = self._names.transact(name, work)
            if not found:
                return
            last = found[-1].number
            yield from (record for record in map(_record, found) if record is not None)

    def get(self, name: str, number: int) -> Trial:
        """One trial that a search has ended.

        Raises:
            StorageError: There is none of this number.
        """
        found = self.find(name, number)
        if found is None:
            raise StorageError(f"Study {name!r} in {self._database} has no trial {number} that a search ended.")
        return found

    def find(self, name: str, number: int) -> Trial | None:
        """One trial that a search has ended; None if there is none of this number."""

        def work(connection: Connection, study_id: int) -> FrozenTrial | None:
            selected = sa.select(schema.trial).where(_trial.study_id == study_id, _trial.number == number, HAS_ENDED)
            row = connection.execute(selected).one_or_none()
            return None if row is None else self._storage.spaces.frozen(connection, row)

        found = self._names.transact(name, work)
        return None if found is None else _record(found)

    def some(self, name: str, numbers: Sequence[int]) -> list[Trial]:
        """Trials of these numbers that a search has ended, in the order of the numbers; others are left out."""

        def work(connection: Connection, study_id: int) -> list[FrozenTrial]:
            where = sa.and_(_trial.study_id == study_id, _trial.number.in_(numbers), HAS_ENDED)
            return [self._storage.spaces.frozen(connection, row) for row in connection.execute(_ALL.where(where))]

        found = {one.number: _record(one) for one in self._names.transact(name, work)}
        return [record for number in numbers if (record := found.get(number)) is not None]

    def n_ended(self, name: str) -> int:
        """Number of trials that have ended, failed ones and those of other programs included."""
        return self._of_study(name, N_ENDED)

    def left_aside(self, name: str) -> LeftAside:
        """Numbers of trials of the study that no search began or ended."""

        def work(connection: Connection, study_id: int) -> LeftAside:
            rows = unfinished_rows(connection, study_id, [OptunaState.RUNNING.value, OptunaState.WAITING.value])
            others = (row.state for row in rows if _running(self._storage.spaces.frozen(connection, row)) is None)
            unfinished = Counter(others)
            ended = sa.select(sa.func.count()).where(_trial.study_id == study_id, HAS_ENDED, ENDED_BY_OTHERS)
            return LeftAside(
                ended=connection.execute(ended).scalar_one(),
                running=unfinished[OptunaState.RUNNING.value],
                waiting=unfinished[OptunaState.WAITING.value],
            )

        return self._names.transact(name, work)

    def spent(self, name: str, round: int) -> float:
        """Whole evaluations that the trials of one of its searches count as, see `Trial.evaluations`."""
        return sum(trial.evaluations for trial in self.each(name) if trial.round == round)

    def n_begun(self, name: str) -> int:
        """Number of trials that were ever begun: the number that the next one gets."""
        return self._of_study(name, _study.n_trials)

    def _of_study(self, name: str, count: sa.ColumnElement[int]) -> int:
        return self._names.transact(
            name,
            lambda connection, study_id: connection.execute(sa.select(count).where(_study.id == study_id)).scalar_one(),
        )

    def _add(
        self, name: str, rows: Sequence[tuple[Sequence[float], Mapping[str, Any]]], expected: int | None = None
    ) -> list[int]:
        """Adds trials, a single one with the expected number if there is one, and returns their numbers."""

        def work(connection: Connection, study_id: int) -> list[int]:
            numbers = []
            for schedule, columns in rows:
                parameters = named(schedule, self._has_halves(connection, study_id, schedule))
                packed = pack_params(self._intern(connection, study_id, (*parameters,)), (*parameters.values(),))
                added = add_trial(connection, study_id, {"params": packed, **columns}, expected)
                if added is None:
                    raise self._unexpected(connection, name, study_id, expected)
                numbers.append(added.number)
            return numbers

        # The first time, distributions are written too.
        known_id = self._names.known(name)
        known = known_id is not None and all(
            (has_halves := self._halved.get(known_id)) is not None
            and (known_id, parameter_names(n_blocks(schedule), has_halves)) in self._parameter_ids
            for schedule, _ in rows
        )
        once = known and len(rows) == 1
        return self._names.transact(name, work, write=not once, once=once)

    def _unexpected(self, connection: Connection, name: str, study_id: int, expected: int | None) -> StudiesError:
        number = connection.execute(sa.select(_study.n_trials).where(_study.id == study_id)).scalar()
        if number is None or expected is None:
            return self._names.not_found(name, connection)
        has = f"has a trial {expected} already" if number > expected else f"ends with trial {number - 1}"
        return StorageError(
            f"Study {name!r} {has}: trials are numbered without gaps, and the next one is {number}. Is another "
            "process working on it?"
        )

    def _has_halves(self, connection: Connection, study_id: int, schedule: Sequence[float]) -> bool:
        """True if a study keeps the halves of its schedules, also of those that skip whole blocks."""
        if study_id not in self._halved:
            config = connection.execute(sa.select(_run.config).where(_run.study_id == study_id)).scalar() or {}
            self._halved[study_id] = config.get("granularity", "block") != "block" or config.get("kv", "drop") != "drop"
        # Whatever the study says, nothing is lost.
        return self._halved[study_id] or n_blocks(schedule) < len(schedule)

    def _intern(self, connection: Connection, study_id: int, names: tuple[str, ...]) -> tuple[int, ...]:
        """The numbers of the distributions of parameters; the study's row is locked if they are not known here yet."""
        key = (study_id, names)
        ids = self._parameter_ids.get(key)
        if ids is None:
            check_study(connection, study_id, lock=True)
            spaces = self._storage.spaces
            # Other programs may have drawn what they call a block from elsewhere: a search goes on nevertheless.
            ids = tuple(spaces.intern(connection, study_id, name, _SPARSITY, alone=True) for name in names)
            # Only what is in the database whatever becomes of this transaction.
            if all(spaces.known(study_id, name, _SPARSITY) is not None for name in names):
                self._parameter_ids[key] = ids
        return ids


def _check_finite(trial: Trial) -> None:
    if trial.state is TrialState.FINISHED and not finite_values(trial.values):
        raise ValueError(f"Trial {trial.number} is finished, but its values are {trial.values}: record it as failed.")


def _is_shared(trial: Trial) -> bool:
    """True if other studies may take over what a trial found out."""
    return trial.state is TrialState.FINISHED and trial.fidelity == 1.0 and finite_values(tuple(trial.metrics.values()))


def _begun(trial: Trial) -> dict[str, Any]:
    """Attributes of a trial before it has ended, beside its schedule."""
    return {"proposer": trial.proposer, **({"parents": trial.parents} if trial.parents else {})}


def ended_columns(trial: Trial) -> dict[str, Any]:
    """Columns of a row that say how its trial ended."""
    attributes = _begun(trial) | {"fidelity": trial.fidelity, "seconds": trial.seconds, "metrics": dict(trial.metrics)}
    if trial.error is not None:
        attributes["error"] = trial.error
    if trial.round:
        attributes["round"] = trial.round
    if trial.router is not None:
        attributes["router"] = trial.router
    if trial.work:
        attributes["work"] = [(span.worker, span.began_at.timestamp(), span.seconds) for span in trial.work]
    constraints = violation_attributes(trial.constraint_violation)
    return {
        "state": _STATES[trial.state].value,
        "objective_values": None if trial.values is None else pack_floats(trial.values),
        "user_attributes": json.dumps(attributes),
        "system_attributes": json.dumps(constraints) if constraints else None,
        "completed_at": trial.finished_at,
    }


def _running(trial: FrozenTrial) -> Trial | None:
    """A trial that a search began; None for others."""
    schedule, attributes = read(trial.params), trial.user_attrs
    if schedule is None or not begun_by_search(attributes):
        return None
    return Trial(trial.number, schedule, str(attributes["proposer"]), tuple(attributes.get("parents", ())))


def _record(trial: FrozenTrial) -> Trial | None:
    """A trial that a search ended; None for others, and if its parameters are no schedule."""
    schedule, attributes = read(trial.params), trial.user_attrs
    if schedule is None or not ended_by_search(attributes):
        return None
    assert trial.datetime_complete is not None
    return Trial(
        number=trial.number,
        schedule=schedule,
        values=None if trial.values is None else tuple(trial.values),
        state=ENDED[trial.state],
        fidelity=attributes["fidelity"],
        proposer=attributes["proposer"],
        seconds=attributes["seconds"],
        # Optuna's times are local, without a zone.
        finished_at=trial.datetime_complete.astimezone(UTC),
        metrics=attributes["metrics"],
        error=attributes.get("error"),
        round=attributes.get("round", 0),
        router=attributes.get("router"),
        parents=tuple(attributes.get("parents", ())),
        work=tuple(
            WorkSpan(worker, datetime.fromtimestamp(began_at, UTC), seconds)
            for worker, began_at, seconds in attributes.get("work", ())
        ),
        constraint_violation=constraint_violation(trial.constraints),
    )
