"""Trials by the column: what is drawn of a hundred thousand trials must not become a hundred thousand objects first."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from itertools import chain
from typing import Any

import numpy as np
from numpy.typing import NDArray

from studies.records.halves import joined, n_blocks, named
from studies.records.trial import Trial, TrialState

Floats = NDArray[np.float64]
# In the order of the numbers in `TrialColumns.state`.
STATES = (TrialState.FINISHED, TrialState.PRUNED, TrialState.FAILED)


@dataclass(frozen=True)
class WorkColumns:
    """Times at which workers were at trials, see `WorkSpan`; those of one trial in their order."""

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
        schedule: [n, blocks] Share of tokens skipped; the mean of each block's halves, where they skip apart.
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
        halves: [n, 3 blocks] See `Halves`; no columns in a study without.
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
    halves: NDArray[np.float32] = field(default_factory=lambda: np.empty((0, 0), np.float32))
    left_aside: NDArray[np.int64] = field(default_factory=lambda: np.empty(0, np.int64))

    def __len__(self) -> int:
        return len(self.number)

    @property
    def n_blocks(self) -> int:
        """Blocks of the schedules; 0 without trials."""
        return int(self.schedule.shape[1])

    @property
    def has_halves(self) -> bool:
        """True if halves skip apart, or skipped tokens keep keys and values, in any schedule of the study."""
        return bool(self.halves.shape[1])

    def schedule_at(self, place: int) -> tuple[float, ...]:
        """The schedule at a place, as trials have it."""
        numbers = self.halves[place] if self.has_halves else self.schedule[place]
        rounded = tuple(round(float(share), 6) for share in numbers)
        return joined(rounded) if self.has_halves else rounded

    @property
    def overall_sparsity(self) -> Floats:
        """[n] Mean of the schedule, to a millionth: what is kept of a schedule in single precision is not exact."""
        if not len(self):
            return np.empty(0)
        return np.asarray(self.schedule.mean(1, dtype=np.float64).round(6))

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
    has_halves = any(n_blocks(trial.schedule) < len(trial.schedule) for trial in trials)
    schedules = [list(named(trial.schedule, has_halves).values()) for trial in trials]
    return build_columns(
        [trial.number for trial in trials],
        [STATES.index(trial.state) for trial in trials],
        [None if trial.values is None else np.array(trial.values, "<f8").tobytes() for trial in trials],
        [seconds_since_1970(trial.finished_at) for trial in trials],
        np.array([trial.constraint_violation for trial in trials], dtype=np.float64),
        said,
        np.array(schedules or np.empty((0, 0)), dtype=np.float32),
        n_objectives,
        has_halves,
    )


def build_columns(
    numbers: Sequence[int],
    states: Sequence[int],
    values: Sequence[bytes | None],
    finished_at: Sequence[float],
    constraint_violation: Floats,
    said: Sequence[Mapping[str, Any]],
    numbers_of_schedules: NDArray[np.float32],
    n_objectives: int,
    has_halves: bool,
) -> TrialColumns:
    """Columns from one entry for each trial; `said` has what its attributes say."""
    schedule, halves = numbers_of_schedules, np.empty((len(numbers), 0), np.float32)
    if has_halves:
        halves, blocks = schedule, schedule.shape[1] // 3
        schedule = ((halves[:, :blocks] + halves[:, blocks : 2 * blocks]) / 2).astype(np.float32)
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
        halves=halves,
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


def seconds_since_1970(at: datetime | None) -> float:
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


def merge_columns(first: TrialColumns, second: TrialColumns) -> TrialColumns:
    """Merges the columns of two disjoint parts of a study, by number."""
    order = np.argsort(np.concatenate([first.number, second.number]), kind="stable")
    proposers, of_proposers = _named_together(first.proposers, second.proposers)
    workers, of_workers = _named_together(first.workers, second.workers)
    most = max(first.parents.shape[1], second.parents.shape[1])

    def joined(a: NDArray[Any], b: NDArray[Any]) -> Any:
        return np.concatenate([a, b])[order]

    def metric(columns: TrialColumns, name: str) -> Floats:
        return columns.metrics.get(name, np.full(len(columns), np.nan))

    plain = (
        *("number", "state", "values", "schedule", "fidelity", "constraint_violation", "seconds", "finished_at"),
        "round",
        "halves",
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
