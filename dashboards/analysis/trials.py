"""The trials of a study as columns: their front, its growth, and what to draw of them, also of a hundred thousand."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from dashboards.analysis.axes import Axis, Floats, offered, values_of
from studies import StudyRecord, Trial, TrialState
from studies.pareto import non_dominated, volume_of_points
from studies.records.target import Target
from studies.records.trial_columns import STATES, TrialColumns

Places = NDArray[np.intp]
# Points of one cell would cover each other: this many cells are about as fine as dots on a screen.
_CELLS = (150, 90)


@dataclass(frozen=True)
class Growth:
    """Growth of a front, as comparable trials ended."""

    reference: tuple[float, ...]  # the corner that hypervolume is measured from
    counted: NDArray[np.int64]  # [m] comparable trials that had ended, for each that enlarged the front
    volume: Floats  # [m] the hypervolume from then on
    proposer: NDArray[np.int16]  # [m] proposer of that trial
    ended_s: Floats  # [n] seconds from the beginning of the first trial to the end of each
    round: NDArray[np.int32]  # [n] search that each belongs to

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


class Found:
    """The trials of a study, their front and its growth.

    Args:
        columns: The trials.
        objectives: Names of their objectives.
        dense_cost: Cost of the dense model, where it is known.
        uncertainty: Half a 95 % interval around predicted latencies, as a share of them; None if unknown.
        target: What all schedules of the study have in common; None without a target.
        dense_flops: FLOPs of the dense model; where they are not known, those of a dense trial are taken.

    Attributes:
        columns: The trials.
        target: What all schedules of the study have in common; None without a target.
        uncertainty: Half a 95 % interval around predicted latencies, as a share of them; None if unknown.
    """

    def __init__(
        self,
        columns: TrialColumns,
        objectives: Sequence[str],
        dense_cost: float | None = None,
        uncertainty: float | None = None,
        target: Target | None = None,
        dense_flops: float | None = None,
    ) -> None:
        self.columns, self.uncertainty, self.target = columns, uncertainty, target
        self._dense_cost, self._dense_flops = dense_cost, dense_flops
        self.objectives = tuple(objectives)
        self._fronts: dict[tuple[str, str], Places] = {}

    @classmethod
    def of_study(cls, study: StudyRecord, columns: TrialColumns) -> Found:
        """The trials of a study, with the cost of its dense model as far as that is known."""
        profile = study.facts.latency_profile
        uncertainty = None if profile is None else profile.uncertainty
        dense_cost = study.facts.dense_costs.get(study.objectives[-1])
        dense_flops = study.facts.dense_costs.get("flops")
        return cls(columns, study.objectives, dense_cost, uncertainty, Target.of(study.config), dense_flops)

    def __len__(self) -> int:
        return len(self.columns)

    @cached_property
    def axes(self) -> list[Axis]:
        """Axes that the trials can be drawn against."""
        return offered(self.columns, self.objectives)

    @cached_property
    def comparable(self) -> Places:
        """Places of the trials that compare with each other."""
        return np.flatnonzero(self.columns.comparable)

    def values(self, name: str) -> Floats:
        """[n] A quantity of each trial, as it is stored."""
        return values_of(self.columns, self.objectives, name)

    @cached_property
    def flops_saved(self) -> Floats:
        """[n] Share of the dense model's FLOPs that each trial saves; NaN where that is not known."""
        flops, dense = self.values("flops"), self._dense_flops
        if dense is None:
            known = flops[~self.columns.schedule.any(1) & np.isfinite(flops)]
            dense = float(known[0]) if len(known) else np.nan
        return np.asarray(1 - flops / dense)

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
            x_range: Visible range of stored values; None for everything.
            y_range: The same upwards.
            floor: Lower end of a logarithmic axis upwards, at which everything lower is drawn; None for a linear one.
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
    def dense_cost(self) -> float | None:
        """The dense model's value of the second objective; that of the first dense trial if nothing else is known."""
        places = self.comparable[np.argsort(self.columns.finished_at[self.comparable], kind="stable")]
        if self._dense_cost is not None or self.columns.values.shape[1] < 2:
            return self._dense_cost
        dense = places[~self.columns.schedule[places].any(1)]
        return float(self.columns.values[dense[0], 1]) if len(dense) else None

    @cached_property
    def growth(self) -> Growth | None:
        """Growth of the front of two objectives; None before a trial has finished."""
        columns, places = self.columns, self.comparable
        if not len(places) or columns.values.shape[1] < 2:
            return None
        ended = places[np.argsort(columns.finished_at[places], kind="stable")]
        points = columns.values[ended, :2]
        measured = volume_of_points(self.objectives[:2], points, self.dense_cost)
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

    def record(self, place: int) -> Trial:
        """A trial as a value, without its error, its router, and the times of its workers."""
        columns = self.columns
        values = columns.values[place]
        return Trial(
            number=int(columns.number[place]),
            schedule=columns.schedule_at(place),
            values=tuple(values.tolist()) if np.isfinite(values).all() else None,
            state=STATES[columns.state[place]],
            fidelity=float(columns.fidelity[place]),
            proposer=columns.proposers[columns.proposer[place]],
            seconds=float(columns.seconds[place]),
            finished_at=datetime.fromtimestamp(float(columns.finished_at[place]), UTC),
            metrics={
                name: float(column[place]) for name, column in columns.metrics.items() if np.isfinite(column[place])
            },
            constraint_violation=float(columns.constraint_violation[place]),
            round=int(columns.round[place]),
            parents=columns.parents_of(place),
        )

    @property
    def uniform(self) -> list[int]:
        """Places of the trials whose schedule is the same in every block, the dense one included."""
        schedule = self.columns.schedule
        if self.columns.has_halves:
            # Uniform ones whose skipped tokens keep keys and values are no shorter prompt.
            n = self.columns.n_blocks
            schedule = np.concatenate([self.columns.halves[:, : 2 * n], self.columns.halves[:, 2 * n :] + schedule], 1)
        return [int(place) for place in np.flatnonzero(np.ptp(schedule, axis=1) < 1e-6)] if schedule.size else []

    def proposer(self, number: int) -> str | None:
        """Name of the proposer of a trial; None where it is not among these."""
        place = self.columns.place(number)
        return None if place is None else str(self.columns.proposers[self.columns.proposer[place]])

    def records(self, places: Sequence[int] | Places) -> list[Trial]:
        """Trials as values."""
        return [self.record(int(place)) for place in places]


def _cells(values: Floats, n: int) -> NDArray[np.int64]:
    low, high = float(values.min()), float(values.max())
    return np.minimum(n - 1, ((values - low) / max(high - low, 1e-300) * n).astype(np.int64))
