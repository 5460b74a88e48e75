"""Trials by the column: what is drawn of a hundred thousand trials must not become a hundred thousand objects first."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from itertools import chain, compress
from typing import Any

import numpy as np
import sqlalchemy as sa
from numpy.typing import NDArray
from optuna.distributions import FloatDistribution
from sqlalchemy.engine import Connection, Row

from studies.optuna_storage.constraints import attributed_violation
from studies.optuna_storage.provenance import ended_by_search
from studies.optuna_storage.storage import StudyStorage
from studies.records.trial import Trial, TrialState
from studies.sql import schema
from studies.sql.packing import PARAM_BYTES, unpack_ids
from studies.store.names import Part, StudyNames
from studies.store.trials import ENDED, block_names

Floats = NDArray[np.float64]
_trial, _run = schema.trial.c, schema.search_run.c
_READ = ("number", "state", "params", "objective_values", "user_attributes", "system_attributes", "completed_at")
_NUMBER, _PARAMS, _ATTRIBUTES = (_READ.index(name) for name in ("number", "params", "user_attributes"))
# In the order of the numbers in `TrialColumns.state`.
STATES = tuple(ENDED.values())
_STATE_NUMBERS = {optuna_state.value: STATES.index(state) for optuna_state, state in ENDED.items()}
# Trials that others have overtaken are asked for by number, up to so many.
_MOST_GAPS = 500
# Texts decoded as one: more are no faster, and other threads wait for them.
_DECODED_AT_ONCE = 500
_NOTHING: Mapping[str, Any] = {}


@dataclass(frozen=True)
class WorkColumns:
    """When workers were at trials, see `WorkSpan`; those of one trial in their order."""

    trial: NDArray[np.int64]  # [m] Number of the trial
    worker: NDArray[np.int16]  # [m] Place of the worker in `TrialColumns.workers`
    began_at: Floats  # [m] Seconds since 1970
    seconds: Floats  # [m] How long

    def __len__(self) -> int:
        return len(self.trial)


@dataclass(frozen=True)
class TrialColumns:
    """Every trial of a study that a search has ended, by number; see `Trial` for what the columns hold.

    Attributes:
        number: [n] Position in the study.
        state: [n] Place of the state in `STATES`.
        values: [n, objectives] NaN where a trial failed.
        schedule: [n, blocks] Share of tokens skipped.
        fidelity: [n] Share of the search set.
        constraint_violation: [n] By how much constraints are broken.
        seconds: [n] Time of the evaluation.
        finished_at: [n] Seconds since 1970.
        round: [n] Which search.
        proposer: [n] Place of the proposer in `proposers`.
        parents: [n, most] Numbers of the trials that a schedule was made from, then -1.
        work: When workers were at it.
        proposers: Names, in the order in which they first proposed.
        workers: Names, in the order in which they first had a trial.
        metrics: [n] for each metric that any trial has; NaN where one has not.
        left_aside: Numbers of the trials that have ended and are no search's, see `LeftAside`; they have no columns.
    """

    number: NDArray[np.int64]
    state: NDArray[np.int8]
    values: Floats
    schedule: NDArray[np.float32]
    fidelity: Floats
    constraint_violation: Floats
    seconds: Floats
    finished_at: Floats
    round: NDArray[np.int32]
    proposer: NDArray[np.int16]
    parents: NDArray[np.int32]
    work: WorkColumns
    proposers: tuple[str, ...] = ()
    workers: tuple[str, ...] = ()
    metrics: Mapping[str, Floats] = field(default_factory=dict)
    left_aside: NDArray[np.int64] = field(default_factory=lambda: np.empty(0, np.int64))

    def __len__(self) -> int:
        return len(self.number)

    @property
    def n_blocks(self) -> int:
        """Blocks of the schedules; 0 without trials."""
        return int(self.schedule.shape[1])

    @property
    def overall_sparsity(self) -> Floats:
        """[n] Mean of the schedule."""
        if not len(self):
            return np.empty(0)
        return np.asarray(self.schedule.mean(1, dtype=np.float64))

    @property
    def comparable(self) -> NDArray[np.bool_]:
        """[n] See `Trial.is_comparable`."""
        finished = self.state == STATES.index(TrialState.FINISHED)
        kept = finished & (self.fidelity == 1.0) & (self.constraint_violation <= 0) & np.isfinite(self.values).all(1)
        return np.asarray(kept, dtype=bool)

    @property
    def worker(self) -> NDArray[np.int16]:
        """[n] Place in `workers` of the one that was at the trial last; -1 where that is not known."""
        last = np.full(len(self), -1, np.int16)
        # Of several assignments to one place the last one holds.
        last[np.searchsorted(self.number, self.work.trial)] = self.work.worker
        return last

    def parents_of(self, place: int) -> tuple[int, ...]:
        """Numbers of the trials that the schedule at a place was made from."""
        return tuple(number for number in self.parents[place].tolist() if number >= 0)

    @property
    def ended(self) -> NDArray[np.int64]:
        """Numbers of all trials that have ended, those left aside among them, in their order."""
        return np.union1d(self.number, self.left_aside) if len(self.left_aside) else self.number

    def place(self, number: int) -> int | None:
        """Place of a trial in the columns; None if it has not ended."""
        at = int(np.searchsorted(self.number, number))
        return at if at < len(self) and self.number[at] == number else None


def columns_of(trials: Sequence[Trial], n_objectives: int) -> TrialColumns:
    """Trials that were read one by one, as columns.

    Args:
        trials: Trials of one study.
        n_objectives: Number of the study's objectives.
    """
    trials = sorted(trials, key=lambda trial: trial.number)
    said = [
        {
            "proposer": trial.proposer,
            "metrics": trial.metrics,
            "fidelity": trial.fidelity,
            "seconds": trial.seconds,
            "round": trial.round,
            "parents": trial.parents,
            "work": [(span.worker, span.began_at.timestamp(), span.seconds) for span in trial.work],
        }
        for trial in trials
    ]
    return _columns(
        [trial.number for trial in trials],
        [STATES.index(trial.state) for trial in trials],
        [None if trial.values is None else np.array(trial.values, "<f8").tobytes() for trial in trials],
        [_seconds(trial.finished_at) for trial in trials],
        np.array([trial.constraint_violation for trial in trials], dtype=np.float64),
        said,
        np.array([trial.schedule for trial in trials] or np.empty((0, 0)), dtype=np.float32),
        n_objectives,
    )


class Columns(Part):
    """Trials of studies, read by the column.

    Args:
        names: The studies by name.
        storage: The same studies for Optuna's tools.
    """

    def __init__(self, names: StudyNames, storage: StudyStorage) -> None:
        super().__init__(names)
        self._storage = storage

    def of(self, name: str, known: TrialColumns | None = None) -> TrialColumns:
        """Every trial that a search has ended.

        Args:
            name: The study.
            known: What was read of the same study before: only the others are read then.

        Raises:
            StudyNotFoundError: There is no such study.
        """

        def work(connection: Connection, study_id: int) -> TrialColumns:
            where = [_trial.study_id == study_id, _trial.state.in_(list(_STATE_NUMBERS))]
            if known is not None and len(ended := known.ended):
                where.append(sa.or_(_trial.number > int(ended[-1]), _trial.number.in_(_gaps(ended))))
            selected = sa.select(*(_trial[column] for column in _READ)).where(*where).order_by(_trial.number)
            rows: Sequence[Row[Any]] = connection.execute(selected).all()
            objectives = sa.select(_run.objectives).where(_run.study_id == study_id)
            said = _decoded([row[_ATTRIBUTES] for row in rows])
            ours = [place for place, one in enumerate(said) if ended_by_search(one)]
            schedules, is_schedule = self._schedules(connection, study_id, [rows[place][_PARAMS] for place in ours])
            kept = list(compress(ours, is_schedule))
            n_objectives = len(connection.execute(objectives).scalar_one())
            # Faster than asking each row for each of its parts.
            columns = list(zip(*(rows[place] for place in kept), strict=True)) or [()] * len(_READ)
            numbers, states, _, values, _, system, completed = columns
            found = _columns(
                numbers,
                [_STATE_NUMBERS[state] for state in states],
                values,
                list(map(_seconds, completed)),
                _violations(system),
                [said[place] for place in kept],
                schedules,
                n_objectives,
            )
            ended = np.array([row[_NUMBER] for row in rows], dtype=np.int64)
            return replace(found, left_aside=np.setdiff1d(ended, found.number))

        found = self._names.transact(name, work)
        if known is None or not len(found.ended):
            return found if known is None else known
        merged = _merged(known, found) if len(known) and len(found) else (known if len(known) else found)
        return replace(merged, left_aside=np.union1d(known.left_aside, found.left_aside))

    def _schedules(
        self, connection: Connection, study_id: int, packed: Sequence[bytes]
    ) -> tuple[NDArray[np.float32], list[bool]]:
        """Schedules [n, blocks] of packed parameters, and for each whether it is one."""
        orders: dict[bytes, NDArray[np.intp] | None] = {}
        n_blocks = 0
        for one in packed:
            ids = one[: len(one) // PARAM_BYTES * 4]
            if ids not in orders:
                orders[ids] = self._order(connection, study_id, ids)
                n_blocks = n_blocks or (0 if (order := orders[ids]) is None else len(order))
        is_schedule = []
        values: list[bytes] = []
        order_of: list[NDArray[np.intp]] = []
        for one in packed:
            split = len(one) // PARAM_BYTES * 4
            order = orders[one[:split]]
            is_schedule.append(order is not None and len(order) == n_blocks)
            if order is not None and len(order) == n_blocks:
                values.append(one[split:])
                order_of.append(order)
        if not values:
            return np.empty((0, n_blocks), np.float32), is_schedule
        shares = np.frombuffer(b"".join(values), "<f8").reshape(len(values), n_blocks)
        if len(orders) == 1:
            return shares[:, order_of[0]].astype(np.float32), is_schedule
        return np.take_along_axis(shares, np.array(order_of), 1).astype(np.float32), is_schedule

    def _order(self, connection: Connection, study_id: int, ids: bytes) -> NDArray[np.intp] | None:
        """Places of the blocks among parameters with these ids; None if they are no schedule."""
        spaces, numbers = self._storage.spaces, unpack_ids(ids)
        space = spaces.of(connection, study_id)
        if any(number not in space.by_id for number in numbers):
            space = spaces.of(connection, study_id, again=True)
        pairs = [space.by_id[number] for number in numbers]
        places = {name: place for place, (name, _) in enumerate(pairs)}
        blocks = [places.get(name) for name in block_names(len(pairs))]
        plain = all(isinstance(distribution, FloatDistribution) for _, distribution in pairs)
        if not blocks or not plain or any(place is None for place in blocks):
            return None
        return np.array(blocks, dtype=np.intp)


def _gaps(ended: NDArray[np.int64]) -> list[int]:
    """Numbers below the last one that had not ended: only the latest, since workers do not run that many at once."""
    last = int(ended[-1])
    if len(ended) == last + 1:
        return []
    missing = np.setdiff1d(np.arange(last), ended)
    return [int(number) for number in missing[-_MOST_GAPS:]]


def _columns(
    numbers: Sequence[int],
    states: Sequence[int],
    values: Sequence[bytes | None],
    finished_at: Sequence[float],
    constraint_violation: Floats,
    said: Sequence[Mapping[str, Any]],
    schedule: NDArray[np.float32],
    n_objectives: int,
) -> TrialColumns:
    """Columns from one entry for each trial; `said` has what its attributes say."""
    n, none = len(numbers), np.full(n_objectives, np.nan).tobytes()
    packed = [none if (own is None or len(own) != len(none)) else own for own in values]
    names: dict[str, int] = {}
    proposer = [names.setdefault(str(one["proposer"]), len(names)) for one in said]
    figures = [one["metrics"] for one in said]
    workers: dict[str, int] = {}
    spans = [
        (number, workers.setdefault(str(worker), len(workers)), began_at, seconds)
        for number, one in zip(numbers, said, strict=True)
        for worker, began_at, seconds in one.get("work", ())
    ]
    return TrialColumns(
        number=np.array(numbers, dtype=np.int64),
        state=np.array(states, dtype=np.int8),
        values=np.frombuffer(b"".join(packed), "<f8").reshape(n, n_objectives),
        schedule=schedule,
        fidelity=np.array([one["fidelity"] for one in said], dtype=np.float64),
        constraint_violation=constraint_violation,
        seconds=np.array([one["seconds"] for one in said], dtype=np.float64),
        finished_at=np.array(finished_at, dtype=np.float64),
        round=np.array([one.get("round", 0) for one in said], dtype=np.int32),
        proposer=np.array(proposer, dtype=np.int16),
        parents=_padded([one.get("parents", ()) for one in said]),
        work=_work(spans),
        proposers=tuple(names),
        workers=tuple(workers),
        metrics={
            metric: np.array([one.get(metric, np.nan) for one in figures], dtype=np.float64)
            for metric in dict.fromkeys(metric for one in figures for metric in one)
        },
    )


def _seconds(at: datetime | None) -> float:
    """Seconds since 1970; 0 where a time is not known."""
    return 0.0 if at is None else at.timestamp()


def _work(spans: Sequence[tuple[int, int, float, float]]) -> WorkColumns:
    trial, worker, began_at, seconds = zip(*spans, strict=True) if spans else ((), (), (), ())
    return WorkColumns(
        trial=np.array(trial, dtype=np.int64),
        worker=np.array(worker, dtype=np.int16),
        began_at=np.array(began_at, dtype=np.float64),
        seconds=np.array(seconds, dtype=np.float64),
    )


def _padded(numbers: Sequence[Sequence[int]]) -> NDArray[np.int32]:
    """Lists of numbers as the rows of a table, filled up with -1."""
    lengths = np.array([len(own) for own in numbers], dtype=np.intp)
    table = np.full((len(numbers), lengths.max(initial=0)), -1, np.int32)
    table[np.arange(table.shape[1]) < lengths[:, None]] = list(chain.from_iterable(numbers))
    return table


def _decoded(texts: Sequence[str | None]) -> list[Mapping[str, Any]]:
    """Decoded attributes; empty where there are none."""
    found: list[Mapping[str, Any]] = []
    for start in range(0, len(texts), _DECODED_AT_ONCE):
        part = ["null" if text is None else text for text in texts[start : start + _DECODED_AT_ONCE]]
        found += [one or _NOTHING for one in json.loads(f"[{','.join(part)}]")]
    return found


def _violations(attributes: Sequence[str | None]) -> Floats:
    """By how much constraints are broken."""
    broken = np.zeros(len(attributes))
    places = [place for place, text in enumerate(attributes) if text is not None]
    for place, one in zip(places, _decoded([attributes[place] for place in places]), strict=True):
        broken[place] = attributed_violation(one)
    return broken


def _merged(first: TrialColumns, second: TrialColumns) -> TrialColumns:
    order = np.argsort(np.concatenate([first.number, second.number]), kind="stable")
    proposers, of_proposers = _named_together(first.proposers, second.proposers)
    workers, of_workers = _named_together(first.workers, second.workers)
    most = max(first.parents.shape[1], second.parents.shape[1])

    def joined(a: NDArray[Any], b: NDArray[Any]) -> Any:
        return np.concatenate([a, b])[order]

    def metric(columns: TrialColumns, name: str) -> Floats:
        return columns.metrics.get(name, np.full(len(columns), np.nan))

    plain = (
        "number",
        "state",
        "values",
        "schedule",
        "fidelity",
        "constraint_violation",
        "seconds",
        "finished_at",
        "round",
    )
    return TrialColumns(
        **{name: joined(getattr(first, name), getattr(second, name)) for name in plain},
        proposer=joined(first.proposer, of_proposers[second.proposer]),
        parents=joined(_widened(first.parents, most), _widened(second.parents, most)),
        # Whole trials follow whole trials: the order within each stays.
        work=WorkColumns(
            trial=np.concatenate([first.work.trial, second.work.trial]),
            worker=np.concatenate([first.work.worker, of_workers[second.work.worker]]),
            began_at=np.concatenate([first.work.began_at, second.work.began_at]),
            seconds=np.concatenate([first.work.seconds, second.work.seconds]),
        ),
        proposers=proposers,
        workers=workers,
        metrics={
            name: joined(metric(first, name), metric(second, name))
            for name in dict.fromkeys([*first.metrics, *second.metrics])
        },
    )


def _named_together(first: tuple[str, ...], second: tuple[str, ...]) -> tuple[tuple[str, ...], NDArray[np.int16]]:
    """All names, and the place among them of each of the second ones."""
    names = {name: place for place, name in enumerate(dict.fromkeys([*first, *second]))}
    return tuple(names), np.array([names[name] for name in second], dtype=np.int16)


def _widened(table: NDArray[np.int32], most: int) -> NDArray[np.int32]:
    return np.pad(table, ((0, 0), (0, most - table.shape[1])), constant_values=-1)
