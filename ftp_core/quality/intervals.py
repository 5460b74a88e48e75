"""95 % intervals of shares, and of means over tokens."""

from __future__ import annotations

import torch
from torch import Tensor

# Examples drawn at a time for bootstrap intervals: tables of 8 MB.
_DRAWN_AT_ONCE = 2**20


def wilson_interval(right: int, n: int) -> tuple[float, float]:
    """95 % Wilson score interval of a share (Wilson 1927)."""
    # It takes half a second to load.
    from scipy.stats import binomtest

    ends = binomtest(right, n).proportion_ci(0.95, "wilson")
    return float(ends.low), float(ends.high)


def bootstrap_interval(sums: Tensor, counts: Tensor, resamples: int = 1000, seed: int = 0) -> tuple[float, float]:
    """95 % percentile bootstrap interval of a mean over tokens, by drawing whole examples (Efron and Tibshirani 1993).

    Args:
        sums: Sum over each example's tokens `[n]`.
        counts: Tokens of each example `[n]`.
        resamples: Number of resamples, of n examples each.
        seed: Seed of the draws.
    """
    generator, n = torch.Generator().manual_seed(seed), len(sums)
    sums, counts = sums.double().cpu(), counts.double().cpu()
    at_once, means = max(1, _DRAWN_AT_ONCE // n), []
    for start in range(0, resamples, at_once):
        drawn = torch.randint(n, (min(at_once, resamples - start), n), generator=generator)
        means.append(sums[drawn].sum(1) / counts[drawn].sum(1))
    low, high = torch.cat(means).quantile(torch.tensor([0.025, 0.975], dtype=torch.double)).tolist()
    return low, high
