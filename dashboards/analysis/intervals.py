"""Intervals of what is derived from measurements, and whether two of them overlap."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import fmean, stdev

from studies import Interval, Measurement

# Independent values that have an interval.
_FEWEST = 3
# Upper 97.5 % points of Student's t for 1 to 30 degrees of freedom (NIST/SEMATECH e-Handbook of Statistical Methods,
# section 1.3.6.7.2).
_T = (
    *(12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228),
    *(2.201, 2.179, 2.160, 2.145, 2.131, 2.120, 2.110, 2.101, 2.093, 2.086),
    *(2.080, 2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048, 2.045, 2.042),
)


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
    """The quartiles of what was timed."""
    return m.latency_low_ms, m.latency_high_ms


def speedup_interval(m: Measurement) -> Interval | None:
    """The 95 % interval of a measured speed-up over the dense model; None where it is not known."""
    return None if m.speedup_low is None or m.speedup_high is None else (m.speedup_low, m.speedup_high)


def overlap(a: Interval | None, b: Interval | None) -> bool:
    """Whether two intervals have a point in common; not if one is not known."""
    return a is not None and b is not None and a[0] <= b[1] and b[0] <= a[1]


def mean_interval(
    values: Sequence[float], least: float = -math.inf, most: float = math.inf
) -> tuple[float, Interval | None]:
    """The mean of independent values and its 95 % interval by Student's t.

    The interval of two values is 18 times as wide as they are apart, which says nothing: there is none of fewer than
    three. Nor is there where it would reach below what is possible, as such values are too skewed for Student's t. What
    is beyond the greatest possible value is cut off, which takes nothing from the confidence. Beyond 31 values the
    quantile of 30 degrees of freedom is used, which makes the interval a little wider.

    Args:
        values: The values, at least one.
        least: The least possible value.
        most: The greatest possible value.
    """
    mean = fmean(values)
    if len(values) < _FEWEST:
        return mean, None
    half = _T[min(len(values) - 2, len(_T) - 1)] * stdev(values) / math.sqrt(len(values))
    # Rounding alone is not beyond.
    if mean - half < least - 1e-12:
        return mean, None
    return mean, (max(mean - half, least), min(mean + half, most))
