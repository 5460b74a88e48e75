"""Times of blocks, and the standard errors of their medians.

Other programs make a time longer, often many times as long, as a thread has to wait for its core. Such times say
nothing of the block and are left out: see `undisturbed`.
"""

from __future__ import annotations

import math
import statistics
from collections import Counter
from collections.abc import Sequence
from typing import Literal

from ftp_core.cost.half_times import Skips
from ftp_core.cost.stopwatch import PassTimes

What = Literal["prefill", "dynamic", "decode"] | Skips
"""Prefills with the static router, prefills with a dynamic one, decoded tokens; or the part skipped in a prefill."""

Point = tuple[What, int]
"""The timed pass, and the kept count of the timed block."""

# Of a normal distribution: standard error of its median, in standard deviations / sqrt(n); interquartile range.
_MEDIAN_ERROR, _NORMAL_IQR = math.sqrt(math.pi / 2), 1.349
# Times longer than so many times the lower decile were disturbed.
_DISTURBED = 1.5
# Fewest times with which a point has a spread of its own; below, it is taken to vary as others of its sort.
_TELLING = 8
# Fewest times with which a kind of block speaks for itself where kinds are alike.
_OWN = 3


class BlockSamples:
    """All times of inputs of one shape.

    Args:
        kinds: Kind of each block, counted from 0.

    Attributes:
        kinds: Kind of each block.
        fixed_ms: Time of each pass outside its blocks, by what was timed.
        keep_ms: Times of the router's decisions, by what was timed.
        mixed_passes: Number of passes in which some block was timed at a point, of those of `add_mixed`.
    """

    def __init__(self, kinds: Sequence[int]) -> None:
        self.kinds = tuple(kinds)
        self.fixed_ms: dict[What, list[float]] = {}
        self.keep_ms: dict[What, list[float]] = {}
        self.mixed_passes: Counter[Point] = Counter()
        self._n_of_kind = [self.kinds.count(kind) for kind in range(max(self.kinds) + 1)]
        self._ms: dict[Point, list[list[float]]] = {}
        self._passes: list[list[tuple[Point, int, float]]] = []

    def add(self, what: What, counts: Sequence[int], times: PassTimes, of: Sequence[bool] | None = None) -> None:
        """Add the times of a pass with some kept counts; `of` marks the blocks whose times count, None for all."""
        own = []
        for index, (kind, count, ms) in enumerate(zip(self.kinds, counts, times.block_ms, strict=True)):
            if of is None or of[index]:
                self._ms.setdefault((what, count), [[] for _ in self._n_of_kind])[kind].append(ms)
                own.append(((what, count), kind, ms))
        if what == "prefill":
            self._passes.append(own)
        self.fixed_ms.setdefault(what, []).append(times.fixed_ms)
        self.keep_ms.setdefault(what, []).extend(ms for ms in times.keep_ms if ms is not None)

    def add_mixed(self, points: Sequence[Point], times: PassTimes) -> None:
        """Add the times of a pass in which each block was timed at a point of its own."""
        for kind, point, ms in zip(self.kinds, points, times.block_ms, strict=True):
            self._ms.setdefault(point, [[] for _ in self._n_of_kind])[kind].append(ms)
        self.mixed_passes.update(set(points))

    def timed(self, what: What) -> set[int]:
        """Kept counts at which some kind of block was timed."""
        return {count for of, count in self._ms if of == what}

    def relative(self, what: What, kind: int, count: int, others: Sequence[float]) -> float:
        """Time of a kind of block as a multiple of another time of that kind, of which `others` has one for each kind.

        A kind that was hardly timed there is taken to be as the kinds are together.
        """
        by_kind = self._ms[what, count]
        own = by_kind[kind] if len(by_kind[kind]) >= _OWN else None
        pairs = [(kind, own)] if own else list(enumerate(by_kind))
        return undisturbed_median([ms / max(1e-12, others[of]) for of, times in pairs for ms in times])

    def covered(self, what: What) -> tuple[int, ...]:
        """Kept counts at which every kind of block was timed, ascending."""
        return tuple(sorted(count for (of, count), by_kind in self._ms.items() if of == what and all(by_kind)))

    def rounds(self, what: What, count: int) -> int:
        """Average number of times of each block at a kept count, over the kind that was timed least often."""
        by_kind = self._ms.get((what, count), [[]])
        return min(len(times) // n for times, n in zip(by_kind, self._n_of_kind, strict=False))

    def disturbed(self, what: What) -> float:
        """Share of the times that were disturbed."""
        every = [times for (of, _), by_kind in self._ms.items() if of == what for times in by_kind]
        n = sum(map(len, every))
        return 1 - sum(len(undisturbed(times)) for times in every) / n if n else 0.0

    def fewest(self, what: What, count: int) -> int:
        """Fewest times of any kind of block at a kept count, of those that were timed at all."""
        return min((len(times) for times in self._ms.get((what, count), []) if times), default=0)

    def median(self, what: What, kind: int, count: int) -> float | None:
        """Median of a kind of block's undisturbed times; None if it was not timed there."""
        times = self._ms.get((what, count), [[]] * (kind + 1))[kind]
        return undisturbed_median(times) if times else None

    def iqr(self, what: What, kind: int, count: int) -> float:
        """Interquartile range of all times of a kind of block."""
        return _iqr(self._ms[what, count][kind])

    def errors(self) -> dict[Point, float]:
        """Relative standard error of a model at each point; infinite as long as nothing was timed twice."""
        usual = {what: self._usual_deviation(what) for what in {what for what, _ in self._ms}}
        found = {}
        for (what, count), by_kind in self._ms.items():
            total, variance = 0.0, 0.0
            for all_times, n in zip(by_kind, self._n_of_kind, strict=True):
                if not all_times:
                    continue
                times = undisturbed(all_times)
                median, deviation = statistics.median(times), _iqr(times) / _NORMAL_IQR
                if len(times) < _TELLING:
                    deviation = max(deviation, usual[what] * median)
                total += n * median
                variance += (n * _MEDIAN_ERROR * deviation) ** 2 / len(times)
            found[what, count] = math.sqrt(variance) / total if total > 0 else 0.0
        return found

    def prediction_error(self) -> float:
        """Relative standard error of a predicted prefill, from varying times and varying paces of whole passes.

        Infinite if unknown yet.
        """
        errors = [error for (what, _), error in self.errors().items() if what == "prefill"]
        if not errors:
            return math.inf
        paces = [
            statistics.median(ms / max(1e-12, self.median(what, kind, count) or 0.0) for (what, count), kind, ms in own)
            for own in self._passes
        ]
        paces = undisturbed(paces)
        pace = _MEDIAN_ERROR * _iqr(paces) / _NORMAL_IQR / math.sqrt(len(paces))
        return math.hypot(math.sqrt(statistics.fmean(error**2 for error in errors)), pace)

    def _usual_deviation(self, what: What) -> float:
        """Relative standard deviation of times at a point, over all points that were timed more than once."""
        apart = []
        for (of, _), by_kind in self._ms.items():
            for all_times in by_kind if of == what else ():
                times = undisturbed(all_times)
                if len(times) > 1 and (median := statistics.median(times)) > 0:
                    # Few times lie closer to their own median than to the true one.
                    wider = math.sqrt(len(times) / (len(times) - 1))
                    apart += [wider * (ms / median - 1) for ms in times]
        return _iqr(apart) / _NORMAL_IQR if apart else math.inf


def undisturbed(times: Sequence[float]) -> list[float]:
    """The times that are not much longer than the shorter ones."""
    if len(times) < 2:
        return list(times)
    longest = _DISTURBED * statistics.quantiles(times, n=10, method="inclusive")[0]
    return [ms for ms in times if ms <= longest]


def undisturbed_median(times: Sequence[float]) -> float:
    """Median of the undisturbed times."""
    return statistics.median(undisturbed(times))


def _iqr(values: Sequence[float]) -> float:
    """Interquartile range; 0 of a single value."""
    if len(values) < 2:
        return 0.0
    low, _, high = statistics.quantiles(values, n=4, method="inclusive")
    return high - low
