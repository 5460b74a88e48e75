"""What a study's trials add up to, computed on columns: a hundred thousand take no longer than a glance."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from dashboards.analysis.axes import Axis, Floats, offered, values_of
from studies import KNOCK_OUT, StudyRecord, Trial, TrialState
from studies.pareto import log_kl, non_dominated, volume_of_points
from studies.store.columns import STATES, TrialColumns

Places = NDArray[np.intp]
# Points of one cell would cover each other: this many cells are about as fine as dots on a screen.
_CELLS = (150, 90)


@dataclass(frozen=True)
class Growth:
    """Growth of a front, as comparable trials ended.

    Attributes:
        reference: The corner that hypervolume is measured from.
        counted: [m] Comparable trials that had ended, for each that enlarged the front.
        volume: [m] The hypervolume from then on.
        proposer: [m] Proposer of that trial.
        ended_s: [n] Seconds from the beginning of the first trial to the end of each.
        round: [n] Search that each belongs to.
    """

    reference: tuple[float, ...]
    counted: NDArray[np.int64]
    volume: Floats
    proposer: NDArray[np.int16]
    ended_s: Floats
    round: NDArray[np.int32]

    @property
    def n_comparable(self) -> int:
        """Comparable trials in all."""
        return len(self.ended_s)

    @property
    def seconds(self) -> Floats:
        """[m] Seconds from the beginning of the first trial, for each that enlarged the front."""
        return np.asarray(self.ended_s[self.counted - 1])

    def after(self, n: int) -> float:
        """The hypervolume after so many comparable trials."""
        grown = int(np.searchsorted(self.counted, n, side="right"))
        return float(self.volume[grown - 1]) if grown else 0.0


@dataclass(frozen=True)
class Timeline:
    """When each worker was busy.

    Attributes:
        at: [bins] Seconds since the first evaluation began, at the middle of each bin.
        workers: [workers] Their names.
        busy: [workers, bins] Share of the bin's time.
        n_unknown: Evaluated trials of which it is not known who evaluated them.
    """

    at: Floats
    workers: tuple[str, ...]
    busy: Floats
    n_unknown: int


@dataclass(frozen=True)
class Importance:
    """How much each block matters, from a linear fit of log KL.

    Attributes:
        effect: [blocks] By how much log(KL + 0.02) grows as all tokens skip the block rather than none.
        error: [blocks] Standard errors.
        r2: Share of the variance that the fit explains.
        n: Trials that it rests on.
    """

    effect: Floats
    error: Floats
    r2: float
    n: int


@dataclass(frozen=True)
class Ablations:
    """What blocks harm by themselves, or neighbours together.

    Attributes:
        first: [m] First block of each group that was ablated.
        last: [m] Its last block; the same one where a block was ablated by itself.
        kl: [m] KL where that group alone skips.
        sparsity: Share of tokens that skip it then.
    """

    first: Places
    last: Places
    kl: Floats
    sparsity: float


class Found:
    """The trials of a study, and what follows from them.

    Args:
        columns: The trials.
        objectives: Names of their objectives.
        dense_cost: Cost of the dense model, where it is known.
    """

    def __init__(self, columns: TrialColumns, objectives: Sequence[str], dense_cost: float | None = None) -> None:
        self.columns = columns
        self._dense_cost = dense_cost
        self.objectives = tuple(objectives)
        self._fronts: dict[tuple[str, str], Places] = {}

    @classmethod
    def of_study(cls, study: StudyRecord, columns: TrialColumns) -> Found:
        """The trials of a study, with the cost of its dense model as far as that is known."""
        known = study.facts.get("dense_costs", {})
        return cls(columns, study.objectives, known.get(study.objectives[-1]))

    def __len__(self) -> int:
        return len(self.columns)

    @cached_property
    def axes(self) -> list[Axis]:
        """What the trials can be drawn against."""
        return offered(self.columns, self.objectives)

    @cached_property
    def comparable(self) -> Places:
        """Places of the trials that compare with each other."""
        return np.flatnonzero(self.columns.comparable)

    def values(self, name: str) -> Floats:
        """[n] A quantity of each trial, as it is stored."""
        return values_of(self.columns, self.objectives, name)

    def drawable(self, x: str, y: str) -> Places:
        """Places of the comparable trials that have two quantities."""
        kept = np.isfinite(self.values(x)[self.comparable]) & np.isfinite(self.values(y)[self.comparable])
        return self.comparable[kept]

    def incomparable(self, x: str, y: str) -> Places:
        """Places of the finished trials that have two quantities and do not compare with others."""
        finished = self.columns.state == STATES.index(TrialState.FINISHED)
        known = np.isfinite(self.values(x)) & np.isfinite(self.values(y))
        return np.flatnonzero(finished & known & ~self.columns.comparable)

    def front(self, x: str | None = None, y: str | None = None) -> Places:
        """Places of the non-dominated trials in two quantities, by the first; by default the objectives."""
        pair = (x or self.objectives[0], y or self.objectives[-1])
        if pair not in self._fronts:
            places = self.drawable(*pair)
            if len(places):
                losses = np.stack([Axis(name).losses(self.values(name)[places]) for name in pair], 1)
                places = places[non_dominated(losses)]
                places = places[np.argsort(self.values(pair[0])[places], kind="stable")]
            self._fronts[pair] = places
        return self._fronts[pair]

    def representatives(
        self,
        x: str,
        y: str,
        places: Places | None = None,
        x_range: tuple[float, float] | None = None,
        y_range: tuple[float, float] | None = None,
        floor: float | None = None,
    ) -> Places:
        """Places of one trial for each spot of a screen that has any: with them, a plot looks as with all.

        Args:
            x: Quantity across.
            y: Quantity upwards.
            places: Places to choose from, of trials that have both; None for all comparable ones.
            x_range: What is looked at, as it is stored; None for everything.
            y_range: The same upwards.
            floor: Where a logarithmic axis upwards begins, at which everything lower is drawn; None for a linear one.
        """
        places = self.drawable(x, y) if places is None else places
        across, upwards = self.values(x)[places], self.values(y)[places]
        if floor is not None:
            upwards = np.log10(np.maximum(upwards, floor))
            # What lies at the bottom is looked at with it.
            y_range = None if y_range is None else (np.log10(max(min(y_range), floor)), np.log10(max(*y_range, floor)))
        inside = np.ones(len(places), dtype=bool)
        for own, ends in ((across, x_range), (upwards, y_range)):
            if ends is not None:
                inside &= (own >= min(ends)) & (own <= max(ends))
        places, across, upwards = places[inside], across[inside], upwards[inside]
        if not len(places):
            return places
        cell = _cells(across, _CELLS[0]) * _CELLS[1] + _cells(upwards, _CELLS[1])
        # Each proposer has a colour, and stays visible where it has been.
        cell = cell * len(self.columns.proposers) + self.columns.proposer[places]
        _, first = np.unique(cell, return_index=True)
        return np.asarray(places[np.sort(first)])

    @cached_property
    def growth(self) -> Growth | None:
        """How the front of two objectives grew, see `studies.front_volume`; None before a trial has finished."""
        columns, places = self.columns, self.comparable
        if not len(places) or columns.values.shape[1] < 2:
            return None
        ended = places[np.argsort(columns.finished_at[places], kind="stable")]
        points = columns.values[ended, :2]
        dense = points[~columns.schedule[ended].any(1), 1]
        dense_cost = float(dense[0]) if self._dense_cost is None and len(dense) else self._dense_cost
        measured = volume_of_points(self.objectives[:2], points, dense_cost)
        grown = list(measured.growth(points))
        at, volume = np.array([place for place, _ in grown], dtype=np.intp), np.array([one for _, one in grown])
        # Points beyond the corner may enter the front without enlarging it.
        enlarged = np.diff(volume, prepend=0.0) > 0
        at, volume = at[enlarged], volume[enlarged]
        began = float((columns.finished_at[ended] - columns.seconds[ended]).min())
        return Growth(
            reference=measured.reference,
            counted=at + 1,
            volume=volume,
            proposer=columns.proposer[ended][at],
            ended_s=columns.finished_at[ended] - began,
            round=columns.round[ended],
        )

    @cached_property
    def alone(self) -> Ablations | None:
        """What blocks harm by themselves, or neighbours together where no finer ablation was made; None without any."""
        columns = self.columns
        if KNOCK_OUT not in columns.proposers or "kl" not in self.objectives:
            return None
        kl = self.values("kl")
        whole = (columns.fidelity == 1.0) & np.isfinite(kl)
        places = np.flatnonzero(whole & (columns.proposer == columns.proposers.index(KNOCK_OUT)))
        if not len(places):
            return None
        skips = columns.schedule[places] > 0
        # Finer ones first: a search that went on for longer ablated by themselves what it had ablated together.
        order = np.argsort(skips.sum(1), kind="stable")
        known, kept = np.zeros(columns.n_blocks, dtype=bool), []
        for place in order.tolist():
            if not (known & skips[place]).any():
                known |= skips[place]
                kept.append(place)
        skips, places = skips[kept], places[kept]
        last = columns.n_blocks - 1 - skips[:, ::-1].argmax(1)
        sparsity = float(columns.schedule[places].max())
        return Ablations(first=skips.argmax(1), last=last, kl=kl[places], sparsity=sparsity)

    @cached_property
    def importance(self) -> Importance | None:
        """How much each block matters; None where there are too few trials to tell."""
        columns, places = self.columns, self.comparable
        n, blocks = len(places), columns.n_blocks
        if "kl" not in self.objectives or n < 3 * (blocks + 1) or not blocks:
            return None
        known = np.column_stack([np.ones(n), columns.schedule[places].astype(float)])
        wanted = log_kl(self.values("kl")[places])
        inverse = np.linalg.pinv(known.T @ known)
        fitted = inverse @ (known.T @ wanted)
        rest = wanted - known @ fitted
        variance = float(rest @ rest) / max(1, n - blocks - 1)
        spread = float(((wanted - wanted.mean()) ** 2).sum())
        return Importance(
            effect=fitted[1:],
            error=np.sqrt(np.maximum(0.0, variance * np.diag(inverse)[1:])),
            r2=1 - float(rest @ rest) / spread if spread > 0 else 0.0,
            n=n,
        )

    @cached_property
    def _unknown(self) -> Places:
        """Places of the trials that were evaluated, nobody knows by whom."""
        return np.flatnonzero((self.columns.worker < 0) & (self.columns.seconds > 0))

    @cached_property
    def _spans(self) -> tuple[Floats, Floats]:
        """When evaluations began and ended; where no worker noted it, by when they were kept and how long they took."""
        columns, work, rest = self.columns, self.columns.work, self._unknown
        ends = columns.finished_at[rest]
        begins = np.concatenate([work.began_at, ends - columns.seconds[rest]])
        return begins, np.concatenate([work.began_at + work.seconds, ends])

    def _edges(self, bins: int) -> tuple[float, Floats]:
        """When the first evaluation began, and the ends of bins up to when everything was over, in seconds since."""
        begins, ends = self._spans
        kept = self.columns.finished_at
        first, last = min(begins.min(initial=np.inf), kept.min()), max(ends.max(initial=-np.inf), kept.max())
        return float(first), np.linspace(0.0, max(float(last - first), 1e-9), bins + 1)

    def timeline(self, bins: int = 240) -> Timeline | None:
        """When each worker was busy; None where no trial knows its worker."""
        work = self.columns.work
        if not len(work):
            return None
        first, edges = self._edges(bins)
        rows = {}
        for place, worker in enumerate(self.columns.workers):
            own = work.worker == place
            began = work.began_at[own] - first
            # Clocks are not exact: one evaluation may seem to begin before the last one has ended.
            rows[worker] = np.minimum(1.0, _shares(edges, began, began + work.seconds[own]))
        names = sorted(rows, key=_natural)
        return Timeline(_middles(edges), tuple(names), np.array([rows[one] for one in names]), len(self._unknown))

    def busy(self, bins: int = 120) -> tuple[Floats, Floats, Floats]:
        """How many evaluations went on at a time.

        Returns:
            [bins] Seconds since the first one began, at the middle of each bin; [bins] evaluations at a time on
            average; [bins] trials that ended per second.
        """
        columns = self.columns
        if not len(columns):
            return np.empty(0), np.empty(0), np.empty(0)
        (begins, ends), (first, edges) = self._spans, self._edges(bins)
        rate = np.histogram(columns.finished_at - first, edges)[0] / (edges[1] - edges[0])
        return _middles(edges), _shares(edges, begins - first, ends - first), rate

    def record(self, place: int) -> Trial:
        """A trial as a record, without its error, its router, and when workers were at it."""
        columns = self.columns
        values = columns.values[place]
        return Trial(
            number=int(columns.number[place]),
            schedule=tuple(round(float(share), 6) for share in columns.schedule[place]),
            values=tuple(values.tolist()) if np.isfinite(values).all() else None,
            state=STATES[columns.state[place]],
            fidelity=float(columns.fidelity[place]),
            proposer=columns.proposers[columns.proposer[place]],
            seconds=float(columns.seconds[place]),
            finished_at=datetime.fromtimestamp(float(columns.finished_at[place]), UTC),
            metrics={
                name: float(column[place]) for name, column in columns.metrics.items() if np.isfinite(column[place])
            },
            violation=float(columns.violation[place]),
            round=int(columns.round[place]),
            parents=columns.parents_of(place),
        )

    @property
    def uniform(self) -> list[int]:
        """Places of the trials whose schedule is the same in every block, the dense one included."""
        schedule = self.columns.schedule
        return [int(place) for place in np.flatnonzero(np.ptp(schedule, axis=1) < 1e-6)] if schedule.size else []

    def proposer(self, number: int) -> str | None:
        """Who proposed a trial; None where it is not among these."""
        place = self.columns.place(number)
        return None if place is None else str(self.columns.proposers[self.columns.proposer[place]])

    def records(self, places: Sequence[int] | Places) -> list[Trial]:
        """Trials as records."""
        return [self.record(int(place)) for place in places]


def _natural(name: str) -> list[tuple[int, str]]:
    """Orders names by the numbers in them: 2 before 10."""
    # Every other part is a number.
    return [(int(part), "") if place % 2 else (0, part) for place, part in enumerate(re.split(r"(\d+)", name))]


def _cells(values: Floats, n: int) -> NDArray[np.int64]:
    low, high = float(values.min()), float(values.max())
    return np.minimum(n - 1, ((values - low) / max(high - low, 1e-300) * n).astype(np.int64))


def _middles(edges: Floats) -> Floats:
    return np.asarray((edges[:-1] + edges[1:]) / 2)


def _shares(edges: Floats, begins: Floats, ends: Floats) -> Floats:
    """How many of the times from begin to end went on in each bin, on average."""
    # Up to a moment: for each of them the part of it that lies before.
    done = _before(edges, begins) - _before(edges, ends)
    return np.asarray(np.diff(done) / np.diff(edges))


def _before(moments: Floats, instants: Floats) -> Floats:
    """For each moment, the sum of how long ago the instants were that lie before it."""
    ordered = np.sort(instants)
    sums = np.concatenate([[0.0], np.cumsum(ordered)])
    n = np.searchsorted(ordered, moments)
    return np.asarray(n * moments - sums[n])
