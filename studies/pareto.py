"""The Pareto front of a study: which trials no other beats, how much they cover, and which one to take."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import moocore
import numpy as np
from numpy.typing import NDArray

from studies.records.objectives import KL
from studies.records.records import StudyRecord
from studies.records.trial import Trial

# Overall sparsities within so much of each other are the same: half a grid step, and rounding.
HALF_STEP = 0.026
# In nats per token: a model that differs from the dense one by less is hardly told apart from it.
_KL_FLOOR = 0.02
# A front whose hypervolume grows by no larger a share has become flat.
WORTHWHILE_GROWTH = 0.01
# A model that differs by more is ruined: its perplexity is about e times as high, or worse.
_RUINED_KL = 1.0


def _comparable(trials: Sequence[Trial]) -> list[Trial]:
    return [trial for trial in trials if trial.is_comparable]


def _points(trials: Sequence[Trial]) -> NDArray[np.float64]:
    return np.array([trial.values for trial in trials], dtype=float)


def front(trials: Sequence[Trial]) -> list[Trial]:
    """The non-dominated trials, lowest first objective first; of trials with equal values the earliest."""
    comparable = _comparable(trials)
    if not comparable:
        return []
    kept = moocore.is_nondominated(_points(comparable))
    points = [trial for trial, keep in zip(comparable, kept, strict=True) if keep]
    return sorted(points, key=lambda trial: trial.values or ())


def reference_point(trials: Sequence[Trial]) -> tuple[float, ...]:
    """The corner that hypervolume is measured from: a tenth of the range beyond the worst value of each objective.

    Raises:
        ValueError: No trial has finished.
    """
    comparable = _comparable(trials)
    if not comparable:
        raise ValueError("No trial has finished: there is nothing to measure hypervolume from.")
    return _beyond(_points(comparable))


def hypervolume(trials: Sequence[Trial], reference: Sequence[float]) -> float:
    """Volume that the front dominates, up to `reference`; higher is better."""
    points = front(trials)
    return float(moocore.hypervolume(_points(points), ref=list(reference))) if points else 0.0


@dataclass(frozen=True)
class FrontVolume:
    """Measures the hypervolume of a study's front: the same wherever it is shown, and whatever is concluded from it.

    KL counts as log(KL + 0.02), as for the knee: on a linear scale a better model at a KL of 0.05 would not show beside
    one of several nats.

    Attributes:
        reference: The corner up to which the front dominates, in the objectives' own units.
        of_log_kl: Whether the first objective is KL; otherwise all objectives count as they are.
    """

    reference: tuple[float, ...]
    of_log_kl: bool = True

    @property
    def corner(self) -> tuple[float, ...]:
        """The reference on the scale that volume is measured on."""
        return tuple(self.scaled([self.reference])[0].tolist())

    def scaled(self, values: Sequence[Sequence[float]] | NDArray[np.float64]) -> NDArray[np.float64]:
        """Objective values on the scale that volume is measured on, `[n, objectives]`."""
        points = np.array(values, dtype=float)
        return _with_log_kl(points) if self.of_log_kl else points

    def of(self, trials: Sequence[Trial]) -> float:
        """The hypervolume of the front of some trials."""
        points = front(trials)
        if not points:
            return 0.0
        return float(moocore.hypervolume(self.scaled(_points(points)), ref=list(self.corner)))

    def history(self, trials: Sequence[Trial]) -> list[float]:
        """The hypervolume after each comparable trial."""
        history: list[float] = []
        best: list[Trial] = []
        for trial in _comparable(trials):
            candidate = front([*best, trial])
            # A trial that does not enter the front changes nothing.
            changed = any(point is trial for point in candidate)
            best = candidate if changed else best
            history.append(self.of(best) if changed or not history else history[-1])
        return history


def front_volume(
    objectives: Sequence[str], trials: Sequence[Trial], dense_cost: float | None = None
) -> FrontVolume | None:
    """How the hypervolume of a study's front is measured; None before a trial has finished.

    Of KL against a cost that is where a pruned model is of use: below 1 nat, and below the dense model's cost. Of other
    objectives it is up to a tenth of the range beyond the worst value of each.

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


def volume_of_points(objectives: Sequence[str], points: NDArray[np.float64], dense_cost: float | None) -> FrontVolume:
    """See `front_volume`, of objective values `[n, objectives]` that compare with each other, at least one."""
    if points.shape[1] != 2 or objectives[0] != KL:
        return FrontVolume(_beyond(points), of_log_kl=False)
    return FrontVolume((_RUINED_KL, _beyond(points)[1] if dense_cost is None else dense_cost))


def study_volume(study: StudyRecord, trials: Sequence[Trial]) -> FrontVolume | None:
    """See `front_volume`, with the dense model's cost as the study's search found it."""
    known = study.facts.get("dense_costs", {})
    return front_volume(study.objectives, trials, known.get(study.objectives[-1]))


def front_growth(before: float, after: float) -> float | None:
    """Share by which the hypervolume of a front grew; None where it began at nothing."""
    return None if before <= 0 else after / before - 1


def best_point(points: Sequence[Trial], target_sparsity: float | None = None) -> Trial:
    """The point of a front to take before anything was measured: the best at a target sparsity, or else the knee.

    A front of few points can bend at the dense model, which is no find: then it is the knee of the others.

    Args:
        points: A front, as `front` returns it.
        target_sparsity: Overall sparsity to have, if any; see `closest_to_sparsity`.

    Raises:
        ValueError: The front is empty.
    """
    if target_sparsity is not None:
        return closest_to_sparsity(points, target_sparsity)
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
    """Which point lies furthest below the line between the ends of a front of KL against a cost.

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
        values: KL and cost of each point, finite, none of which another beats in both.

    Returns:
        Its place among them.

    Raises:
        ValueError: The front is empty.
    """
    if not values:
        raise ValueError("The front is empty: no trial has finished.")
    points = np.array(values, dtype=float)
    usable = np.flatnonzero(points[:, 0] <= _RUINED_KL)
    if not len(usable):
        usable = np.arange(len(points))
    is_line = len(usable) >= 3
    ends = _with_log_kl(points[usable] if is_line else points)
    most = np.maximum(ends.max(0), [math.log(2 * _KL_FLOOR), -math.inf])
    span = most - ends.min(0)
    scaled = (_with_log_kl(points[usable]) - ends.min(0)) / np.where(span > 0, span, 1.0)
    # On the line between (0, 1) and (1, 0) the coordinates add up to 1.
    below = 1.0 - scaled.sum(1)
    best = below.argmax() if is_line and below.max() > 0 else np.square(scaled).sum(1).argmin()
    return int(usable[best])


def _beyond(points: NDArray[np.float64]) -> tuple[float, ...]:
    """The corner a tenth of the range beyond the worst of `[n, objectives]` values."""
    worst, best = points.max(0), points.min(0)
    return tuple((worst + 0.1 * np.where(worst > best, worst - best, 1.0)).tolist())


def _with_log_kl(points: NDArray[np.float64]) -> NDArray[np.float64]:
    """Objective values, with log(KL + 0.02) in place of KL."""
    values = points.copy()
    # The KL of the dense schedule is 0 up to rounding, which may be on either side.
    values[:, 0] = np.log(np.maximum(values[:, 0], 0.0) + _KL_FLOOR)
    return values


def closest_to_sparsity(points: Sequence[Trial], target: float) -> Trial:
    """The point with the lowest first objective among those at a target overall sparsity.

    Args:
        points: A front, as `front` returns it.
        target: Overall sparsity. Points within half a grid step count as being at it; if there are none, those nearest.

    Raises:
        ValueError: The front is empty.
    """
    if not points:
        raise ValueError("The front is empty: no trial has finished.")
    nearest = min(abs(point.overall_sparsity - target) for point in points)
    reach = max(HALF_STEP, nearest + 1e-9)
    return min(
        (point for point in points if abs(point.overall_sparsity - target) <= reach),
        key=lambda point: point.values or (),
    )
