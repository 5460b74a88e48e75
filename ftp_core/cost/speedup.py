"""Speed-ups of variants over the dense model, with intervals, from times that were taken in turns."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ftp_core.errors import DataError

# Limits of further turns: so many times the least number, and milliseconds of all turns together.
_MOST_TIMES, PATIENCE_MS = 4, 90_000.0
# Half the width of an interval, as a share of the speed-up, that is precise enough.
PRECISE = 0.025


@dataclass(frozen=True)
class Speedup:
    """Speed of a variant as a multiple of the dense model's.

    Attributes:
        ratio: Median over turns of the dense model's time by the variant's in the same turn.
        low: Lower end of the interval; None where too few turns were taken for one (fewer than six at 95 %).
        high: Upper end of it.
        turns: Number of turns.
    """

    ratio: float
    low: float | None
    high: float | None
    turns: int

    @property
    def half_width(self) -> float:
        """Half the width of the interval as a share of the ratio; infinite without an interval."""
        return math.inf if self.low is None or self.high is None else (self.high - self.low) / (2 * self.ratio)


def paired_speedup(dense_ms: Sequence[float], variant_ms: Sequence[float], confidence: float = 0.95) -> Speedup:
    """The median of the ratios within turns, and its distribution-free interval.

    A drifting load slows the dense model and the variant of one turn alike, so that their ratio is steadier than a
    ratio of two medians. The ends of the interval are order statistics of the ratios: it holds the median with at least
    the confidence asked for, whatever the distribution (Conover 1999, section 3.2).

    Args:
        dense_ms: Times of the dense model, one a turn.
        variant_ms: Times of the variant in the same turns.
        confidence: Least probability that the interval holds the true median, in (0, 1).

    Raises:
        DataError: There are no times, not as many of both, or some that are not positive.
    """
    dense, variant = np.asarray(dense_ms, dtype=float), np.asarray(variant_ms, dtype=float)
    if dense.shape != variant.shape or not dense.size:
        raise DataError(
            f"There are {dense.size} times of the dense model and {variant.size} of the variant: expected one of each "
            "in every turn, and at least one turn."
        )
    if not (np.isfinite(dense) & np.isfinite(variant) & (dense > 0) & (variant > 0)).all():
        raise DataError("Times must be finite and above 0: time more than the clock can tell apart.")
    ratios = np.sort(dense / variant)
    rank = median_rank(len(ratios), confidence)
    low, high = (None, None) if rank is None else (float(ratios[rank - 1]), float(ratios[-rank]))
    return Speedup(float(np.median(ratios)), low, high, len(ratios))


def median_rank(n: int, confidence: float = 0.95) -> int | None:
    """Rank of the order statistics, from either end, between which the median lies with a confidence.

    Args:
        n: Number of values.
        confidence: Least probability that the median lies between them, in (0, 1).

    Returns:
        1 for the least and the greatest value; None where even these are too close together.
    """
    # It takes half a second to load.
    from scipy.stats import binom

    # The number of values below the median is binomial.
    return int(binom.ppf((1 - confidence) / 2, n, 0.5)) or None


def needs_more_turns(times_ms: Sequence[Sequence[float]], least: int, patience_ms: float = PATIENCE_MS) -> bool:
    """True if the interval of any speed-up is wider than `PRECISE` to either side, and further turns are affordable.

    Args:
        times_ms: Times of the dense model and of each variant so far, one a turn.
        least: The least number of turns.
        patience_ms: Most time that all turns together may take.
    """
    dense, *variants = times_ms
    ms = sum(map(sum, times_ms))
    if len(dense) >= _MOST_TIMES * least or ms + ms * least / len(dense) > patience_ms:
        return False
    return any(paired_speedup(dense, own).half_width > PRECISE for own in variants)
