"""Intervals of what is derived from measurements, and whether two of them overlap."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import fmean, stdev

from studies import Exhibits, Measurement

Interval = tuple[float, float]

_Z = 1.959964
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


def retention_interval(m: Measurement, dense: Measurement | None) -> Interval | None:
    """A 95 % interval of retention from the Wilson intervals of both accuracies; None where it cannot be had.

    The method of variance estimates recovery for a ratio, on the logarithmic scale (Zou and Donner 2008). It takes the
    two accuracies for independent. They are of the same items, which both models tend to have right, so it is wider
    than it would have to be.
    """
    kept = m.retention(dense)
    if not kept or dense is None or m is dense or m.variant == "dense":
        return None
    own, all_kept = accuracy_interval(m), accuracy_interval(dense)
    if own is None or all_kept is None or not own[0] or not all_kept[0] or not m.accuracy or not dense.accuracy:
        return None
    below = math.hypot(math.log(m.accuracy / own[0]), math.log(all_kept[1] / dense.accuracy))
    above = math.hypot(math.log(own[1] / m.accuracy), math.log(dense.accuracy / all_kept[0]))
    return kept * math.exp(-below), kept * math.exp(above)


def paired_retention_interval(m: Measurement, dense: Measurement | None, exhibits: Exhibits | None) -> Interval | None:
    """A 95 % interval of the selected point's retention that knows which items both models have right.

    Args:
        m: The selected point.
        dense: The dense model.
        exhibits: How many items were lost and won; their items must be those of the accuracies.
    """
    if exhibits is None or dense is None or m.accuracy is None or dense.accuracy is None:
        return None
    n = m.n_choice_items or m.n_items
    right, right_dense = round(m.accuracy * n), round(dense.accuracy * n)
    both = right_dense - exhibits.n_lost
    if exhibits.n_items != n or both < 0 or right != both + exhibits.n_won:
        return None
    return paired_ratio_interval(both, exhibits.n_won, exhibits.n_lost)


def paired_ratio_interval(both: int, first_only: int, second_only: int) -> Interval | None:
    """A 95 % interval of the ratio of two shares of the same items (Bonett and Price 2006); None without an item.

    Args:
        both: Items that count for both shares.
        first_only: Items that count for the numerator alone.
        second_only: Items that count for the denominator alone.
    """
    n, first, second = both + first_only + second_only, both + first_only, both + second_only
    if not first or not second:
        return None
    spread = math.sqrt((first_only + second_only + 2) / ((first + 1) * (second + 1)))
    parts = [math.sqrt((1 - (count + 1) / (n + 2)) / (count + 1)) for count in (first, second)]
    z = _Z * spread / sum(parts)
    low_first, high_first = _wilson(first, n, z)
    low_second, high_second = _wilson(second, n, z)
    return low_first / high_second, high_first / low_second


def _wilson(count: int, n: int, z: float) -> Interval:
    centre, half = 2 * count + z * z, z * math.sqrt(z * z + 4 * count * (1 - count / n))
    return (centre - half) / (2 * (n + z * z)), (centre + half) / (2 * (n + z * z))


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
