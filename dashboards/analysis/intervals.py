"""Intervals of measured figures, of means, and their overlap."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import fmean, stdev

from studies import Measurement
from studies.analysis.retention import Interval

# Least number of independent values that have an interval.
_FEWEST = 3


def accuracy_interval(m: Measurement) -> Interval | None:
    """The 95 % interval of a measured accuracy; None where it is not known."""
    return None if m.accuracy_low is None or m.accuracy_high is None else (m.accuracy_low, m.accuracy_high)


def kl_interval(m: Measurement) -> Interval | None:
    """The 95 % interval of a measured KL; None where it is not known."""
    return None if m.kl_low is None or m.kl_high is None else (m.kl_low, m.kl_high)


def perplexity_interval(m: Measurement) -> Interval | None:
    """The 95 % interval of a measured perplexity; None where it is not known."""
    return None if m.perplexity_low is None or m.perplexity_high is None else (m.perplexity_low, m.perplexity_high)


def latency_quartiles(m: Measurement) -> Interval:
    """The quartiles of a measured latency."""
    return m.latency_low_ms, m.latency_high_ms


def speedup_interval(m: Measurement) -> Interval | None:
    """The 95 % interval of a measured speed-up over the dense model; None where it is not known."""
    return None if m.speedup_low is None or m.speedup_high is None else (m.speedup_low, m.speedup_high)


def overlap(a: Interval | None, b: Interval | None) -> bool:
    """Tells if two intervals have a point in common; False if one is not known."""
    return a is not None and b is not None and a[0] <= b[1] and b[0] <= a[1]


def mean_interval(
    values: Sequence[float], least: float = -math.inf, most: float = math.inf
) -> tuple[float, Interval | None]:
    """The mean of independent values and its 95 % interval by Student's t.

    The interval of two values is 18 times as wide as they are apart, which says nothing: there is none of fewer than
    three. Nor is there where it would reach below what is possible, as such values are too skewed for Student's t. What
    is beyond the greatest possible value is cut off, which takes nothing from the confidence.

    Args:
        values: The values, at least one.
        least: The least possible value.
        most: The greatest possible value.
    """
    mean = fmean(values)
    if len(values) < _FEWEST:
        return mean, None
    # It takes half a second to load, and few reports compare seeds.
    from scipy.stats import t

    half = float(t.ppf(0.975, len(values) - 1)) * stdev(values) / math.sqrt(len(values))
    # Rounding alone is not beyond.
    if mean - half < least - 1e-12:
        return mean, None
    return mean, (max(mean - half, least), min(mean + half, most))
