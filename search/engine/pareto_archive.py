"""The best outcomes of a search so far, and how much each new one adds to them."""

from __future__ import annotations

import moocore
import numpy as np
from numpy.typing import NDArray

from search.problem.trial import Values
from studies import finite_values

# How far beyond the worst point of the front, in units of its range, volume is measured from.
_MARGIN = 0.1


class FrontArchive:
    """Non-dominated objective values, lower is better; memory grows with the front alone."""

    def __init__(self) -> None:
        self._points: NDArray[np.float64] | None = None

    def __len__(self) -> int:
        return 0 if self._points is None else len(self._points)

    def holds(self, values: Values) -> bool:
        """Whether a point of the front has exactly these values."""
        return self._points is not None and bool((self._points == np.asarray(values)).all(1).any())

    def add(self, values: Values) -> float:
        """Take in objective values.

        Returns:
            By which share they enlarge the hypervolume of the front, measured from beyond its worst point, in [0, 1];
            0 if another point is as good. Values that are not finite are no point.
        """
        if not finite_values(values):
            return 0.0
        point = np.asarray(values, dtype=float)
        before = self._points
        if before is None:
            self._points = point[None]
            return 1.0
        if bool((before <= point).all(1).any()):
            return 0.0
        worse = (point <= before).all(1)
        self._points = np.concatenate([before[~worse], point[None]])
        # Both volumes are measured from the same corner, which the points that just left count for, too.
        everything = np.concatenate([before, point[None]])
        worst, best = everything.max(0), everything.min(0)
        reference = worst + _MARGIN * np.where(worst > best, worst - best, 1.0)
        volume = float(moocore.hypervolume(self._points, ref=reference))
        gain = (volume - float(moocore.hypervolume(before, ref=reference))) / volume
        return min(1.0, max(0.0, gain))
