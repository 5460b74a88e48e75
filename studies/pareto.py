"""The Pareto front of a study: domination, the archive of a running search, hypervolume, and the knee.

All objectives are minimised. Of KL against a cost, hypervolume and knee take KL as log(KL + 0.02), and a model beyond a
KL of 1 nat as ruined.
"""

from __future__ import annotations

import math
from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

import moocore
import numpy as np
from numpy.typing import ArrayLike, NDArray

from studies.records.measurement import Measurement
from studies.records.objectives import KL
from studies.records.records import StudyRecord
from studies.records.target import Target
from studies.records.trial import Trial, finite_values

Floats = NDArray[np.float64]
_Point = TypeVar("_Point", Trial, Measurement)

# Overall sparsities within so much of each other are the same: half a grid step, and rounding.
HALF_STEP = 0.026
# In nats per token: a model that differs from the dense one by less is hardly told apart from it.
KL_FLOOR = 0.02
# A model that differs by more is ruined: its perplexity is about e times as high, or worse.
RUINED_KL = 1.0
# A front whose hypervolume grows by no larger a share has become flat.
WORTHWHILE_GROWTH = 0.01
# How far the reference point lies beyond the worst values, in units of their range. It has to lie beyond them, lest the
# ends of the front add nothing; a tenth is the custom of Ishibuchi et al. (2011), which BoTorch follows, too.
_REFERENCE_MARGIN = 0.1
# Points that are compared with the front before them at once.
_AT_ONCE = 1000


def non_dominated(points: ArrayLike, keep_equal: bool = False) -> NDArray[np.bool_]:
    """Marks the points of `[n, objectives]` that no other dominates.

    Args:
        points: Objective values, finite.
        keep_equal: Keeps all of equal points rather than the first alone.
    """
    values = np.asarray(points, dtype=float)
    if not len(values):
        return np.zeros(0, dtype=bool)
    return np.asarray(moocore.is_nondominated(values, keep_weakly=keep_equal), dtype=bool)


def dominations(points: ArrayLike) -> NDArray[np.bool_]:
    """Marks in `[n, n]` which point of `[n, objectives]` (row) dominates which (column)."""
    values = np.asarray(points, dtype=float)
    no_worse: NDArray[np.bool_] = np.all(values[:, None] <= values[None], axis=-1)
    return no_worse & ~no_worse.T


def front(trials: Sequence[Trial]) -> list[Trial]:
    """The non-dominated trials, lowest first objective first; of trials with equal values the earliest."""
    comparable = _comparable(trials)
    kept = non_dominated(_points(comparable))
    points = [trial for trial, keep in zip(comparable, kept, strict=True) if keep]
    return sorted(points, key=lambda trial: trial.values or ())


def usable_front(trials: Sequence[Trial]) -> list[Trial]:
    """The front of KL against a cost without ruined models, unless there are no others."""
    points = front(trials)
    return [point for point in points if point.values is not None and point.values[0] <= RUINED_KL] or points


class ParetoArchive:
    """Non-dominated objective values, taken in one by one; memory grows with the front alone."""

    def __init__(self) -> None:
        self._points: Floats | None = None

    def __len__(self) -> int:
        return 0 if self._points is None else len(self._points)

    @property
    def points(self) -> Floats:
        """The front, `[n, objectives]`."""
        return np.empty((0, 0)) if self._points is None else self._points

    def holds(self, values: Sequence[float]) -> bool:
        """Tells if a point of the front has exactly these values."""
        return self._points is not None and bool((self._points == np.asarray(values)).all(1).any())

    def enter(self, values: Sequence[float]) -> bool:
        """Takes in finite objective values that no point of the front equals or dominates; says whether it did."""
        if not finite_values(values):
            return False
        point = np.asarray(values, dtype=float)
        before = self._points
        if before is None:
            self._points = point[None]
            return True
        if bool((before <= point).all(1).any()):
            return False
        self._points = np.concatenate([before[~(point <= before).all(1)], point[None]])
        return True

    def add(self, values: Sequence[float]) -> float:
        """Takes in objective values.

        Returns:
            Share by which they enlarge the hypervolume, in [0, 1]; 0 if they do not enter the front. It is measured on
            the scales of the objectives, from the reference point of the front before and these values. In a
            `FrontVolume`, ruined models and those that cost more than the dense one add nothing, so that a search which
            has found no others would not notice progress.
        """
        before = self._points
        if not self.enter(values):
            return 0.0
        if before is None:
            return 1.0
        # Both volumes are measured from the same corner, which the points that just left count for, too.
        corner = reference_point(np.concatenate([before, self.points[-1:]]))
        volume = _volume(self.points, corner)
        return min(1.0, max(0.0, (volume - _volume(before, corner)) / volume))


def reference_point(points: ArrayLike) -> tuple[float, ...]:
    """The corner that hypervolume is measured from: a tenth of the range beyond the worst value of each objective.

    Args:
        points: Objective values `[n, objectives]`, finite.

    Raises:
        ValueError: There is no point.
    """
    values = np.asarray(points, dtype=float)
    if not len(values):
        raise ValueError("No trial has finished: there is nothing to measure hypervolume from.")
    worst, best = values.max(0), values.min(0)
    return tuple((worst + _REFERENCE_MARGIN * np.where(worst > best, worst - best, 1.0)).tolist())


def hypervolume(trials: Sequence[Trial], reference: Sequence[float]) -> float:
    """Volume that the front dominates, up to `reference`, on the scales of the objectives; higher is better."""
    return FrontVolume(tuple(reference), of_log_kl=False).of(trials)


@dataclass(frozen=True)
class FrontVolume:
    """Measures the hypervolume of a study's front: the same wherever it is shown, and whatever is concluded from it.

    KL counts as log(KL + 0.02), as for the knee: on a linear scale a better model at a KL of 0.05 would not show beside
    one of several nats.

    Attributes:
        reference: The corner up to which the front dominates, in the objectives' own units.
        of_log_kl: True where the first objective is KL; otherwise all objectives count as they are.
    """

    reference: tuple[float, ...]
    of_log_kl: bool = True

    def of(self, trials: Sequence[Trial]) -> float:
        """The hypervolume of the front of some trials."""
        points = _points(_comparable(trials))
        return self._of(points[non_dominated(points)])

    def growth(self, points: Floats) -> Iterator[tuple[int, float]]:
        """The place of each of `[n, objectives]` that enters the front, and the hypervolume from then on."""
        if points.shape[1] == 2:
            yield from self._growth_of_two(points)
            return
        archive = ParetoArchive()
        for place, point in enumerate(points):
            if archive.enter(point):
                yield place, self._of(archive.points)

    def _growth_of_two(self, points: Floats) -> Iterator[tuple[int, float]]:
        """`growth` of two objectives: each point fills the area between it and the stairs of the front before it."""
        corner = np.array([self.reference])
        scaled = np.minimum(self._scaled(points), self._scaled(corner))
        right_end, top = self._scaled(corner)[0].tolist()
        # The stairs from left to right: both objectives, and both on the scale of the volume, up to the corner.
        xs, ys, across, upwards, volume = list[float](), list[float](), list[float](), list[float](), 0.0
        for start in range(0, len(points), _AT_ONCE):
            part = points[start : start + _AT_ONCE]
            # Nearly all points of a long search are dominated by what came before, which whole arrays tell faster.
            levels = np.array([math.inf, *ys])[np.searchsorted(xs, part[:, 0], side="right")]
            for place in (start + np.flatnonzero(levels > part[:, 1])).tolist():
                (x, y), (edge, bottom) = points[place].tolist(), scaled[place].tolist()
                covering = bisect_right(xs, x)
                if covering and ys[covering - 1] <= y:
                    continue
                first = last = bisect_left(xs, x)
                level, left = upwards[first - 1] if first else top, edge
                while last < len(xs) and ys[last] >= y:
                    volume += (across[last] - left) * (level - bottom)
                    left, level, last = across[last], upwards[last], last + 1
                volume += ((across[last] if last < len(xs) else right_end) - left) * (level - bottom)
                for stairs, value in ((xs, x), (ys, y), (across, edge), (upwards, bottom)):
                    stairs[first:last] = [value]
                yield place, volume

    def _of(self, points: Floats) -> float:
        return _volume(self._scaled(points), self._scaled(np.array([self.reference]))[0]) if len(points) else 0.0

    def _scaled(self, points: Floats) -> Floats:
        return _with_log_kl(points) if self.of_log_kl else points


def front_volume(
    objectives: Sequence[str], trials: Sequence[Trial], dense_cost: float | None = None
) -> FrontVolume | None:
    """Decides how the hypervolume of a study's front is measured; None before a trial has finished.

    For KL against a cost it is the part where a pruned model is of use: below 1 nat, and below the dense model's cost.
    For other objectives it reaches up to their reference point.

    Args:
        objectives: Names of the study's objectives.
        trials: Its trials.
        dense_cost: Cost of the dense model; where it is not known, that of the dense trial, or else the corner of all.
    """
    comparable = _comparable(trials)
    if not comparable:
        return None
    if dense_cost is None:
        dense = (trial.values for trial in comparable if trial.values is not None and not any(trial.schedule))
        dense_cost = next((values[-1] for values in dense), None)
    return volume_of_points(objectives, _points(comparable), dense_cost)


def volume_of_points(objectives: Sequence[str], points: Floats, dense_cost: float | None) -> FrontVolume:
    """See `front_volume`, of objective values `[n, objectives]` that compare with each other, at least one."""
    if points.shape[1] != 2 or objectives[0] != KL:
        return FrontVolume(reference_point(points), of_log_kl=False)
    return FrontVolume((RUINED_KL, reference_point(points)[1] if dense_cost is None else dense_cost))


def study_volume(study: StudyRecord, trials: Sequence[Trial]) -> FrontVolume | None:
    """See `front_volume`, with the dense model's cost as the study's search found it."""
    return front_volume(study.objectives, trials, study.facts.dense_costs.get(study.objectives[-1]))


def front_growth(before: float, after: float) -> float | None:
    """Share by which the hypervolume of a front grew; None where it began at nothing."""
    return None if before <= 0 else after / before - 1


def best_point(points: Sequence[Trial], target: Target | None = None) -> Trial:
    """The point of a front to take before anything was measured: the best at a target, or else the knee.

    A front of few points can bend at the dense model, which is no find: then it is the knee of the others.

    Args:
        points: A front, as `front` returns it.
        target: Target of the study, if any. For an overall sparsity see `closest_to_sparsity`; where a cost is the
            target, the whole front keeps it, and the lowest KL is taken.

    Raises:
        ValueError: The front is empty.
    """
    if target is not None and target.sparsity is not None:
        return closest_to_sparsity(points, target.sparsity)
    if target is not None:
        return min(points, key=lambda point: (point.values or (), point.number))
    best = knee(points)
    sparse = [point for point in points if any(point.schedule)]
    return best if any(best.schedule) or not sparse else knee(sparse)


def knee(points: Sequence[Trial]) -> Trial:
    """The point of a front of KL against a cost where it bends most; see `knee_index`.

    Args:
        points: A front, as `front` returns it; its first objective is KL.

    Raises:
        ValueError: The front is empty.
    """
    return points[knee_index([point.values or () for point in points])]


def knee_index(values: Sequence[Sequence[float]]) -> int:
    """Place of the point that lies furthest below the line between the ends of a front of KL against a cost.

    KL spans decades, from noise to ruin, so that on a linear scale a knee sits where nobody would run the model: the
    cheapest points have a KL of several nats, beside which one of 1 looks small. Therefore

    - KL is taken as log(KL + 0.02): a step from 0.1 to 0.2 weighs about as much as one from 0.4 to 0.8, differences far
      below 0.02 weigh nothing, and a KL of 0 has its place;
    - points beyond a KL of 1 nat count only if there are no others. KL saturates there, so that a step towards ruin
      looks cheap on the logarithmic scale, too, and how far a search looked there says nothing of the rest.

    Both objectives are scaled to [0, 1] over the points that count, so the cost's unit does not matter; the scale of KL
    reaches up to 0.02 at least, lest differences that weigh nothing weigh much where there are no others. Where none of
    the points lies below the line, as on a front that bulges outwards, the one closest to the ideal corner is taken; so
    it is where fewer than three count, on the scale of the whole front.

    Args:
        values: KL and cost of each point, finite; no point dominates another.

    Returns:
        Its place among them.

    Raises:
        ValueError: The front is empty.
    """
    if not values:
        raise ValueError("The front is empty: no trial has finished.")
    points = np.array(values, dtype=float)
    usable = np.flatnonzero(points[:, 0] <= RUINED_KL)
    if not len(usable):
        usable = np.arange(len(points))
    is_line = len(usable) >= 3
    ends = _with_log_kl(points[usable] if is_line else points)
    most = np.maximum(ends.max(0), [math.log(2 * KL_FLOOR), -math.inf])
    span = most - ends.min(0)
    scaled = (_with_log_kl(points[usable]) - ends.min(0)) / np.where(span > 0, span, 1.0)
    # On the line between (0, 1) and (1, 0) the coordinates add up to 1.
    below = 1.0 - scaled.sum(1)
    best = below.argmax() if is_line and below.max() > 0 else np.square(scaled).sum(1).argmin()
    return int(usable[best])


def nearest_to_sparsity(points: Sequence[_Point], target: float) -> list[_Point]:
    """The points within half a grid step of a target overall sparsity, in their order; if there are none, the nearest.

    Args:
        points: The points, at least one.
        target: Overall sparsity.
    """
    nearest = min(abs(point.overall_sparsity - target) for point in points)
    reach = max(HALF_STEP, nearest + 1e-9)
    return [point for point in points if abs(point.overall_sparsity - target) <= reach]


def closest_to_sparsity(points: Sequence[Trial], target: float) -> Trial:
    """The point with the lowest first objective among those nearest to a target overall sparsity.

    Args:
        points: A front, as `front` returns it.
        target: Overall sparsity; see `nearest_to_sparsity`.

    Raises:
        ValueError: The front is empty.
    """
    if not points:
        raise ValueError("The front is empty: no trial has finished.")
    return min(nearest_to_sparsity(points, target), key=lambda point: point.values or ())


def log_kl(kl: Floats) -> Floats:
    """KL on the scale that it is compared on: log(KL + 0.02)."""
    # The KL of the dense schedule is 0 up to rounding, which may be on either side.
    return np.asarray(np.log(np.maximum(kl, 0.0) + KL_FLOOR))


def _comparable(trials: Sequence[Trial]) -> list[Trial]:
    return [trial for trial in trials if trial.is_comparable]


def _points(trials: Sequence[Trial]) -> Floats:
    return np.array([trial.values for trial in trials], dtype=float)


def _volume(points: Floats, corner: ArrayLike) -> float:
    return float(moocore.hypervolume(points, ref=np.asarray(corner)))


def _with_log_kl(points: Floats) -> Floats:
    """Objective values, with log(KL + 0.02) in place of KL."""
    values = points.copy()
    values[:, 0] = log_kl(values[:, 0])
    return values
