"""95 % intervals of figures over examples: of shares, and of means over tokens."""

from __future__ import annotations

import math

import torch
from torch import Tensor

# Examples drawn at a time for bootstrap intervals: tables of 8 MB.
_DRAWN_AT_ONCE = 2**20


def wilson_interval(right: int, n: int, z: float = 1.96) -> tuple[float, float]:
    """Wilson score interval of a share (Wilson 1927): right at 0 and 1, where the normal one has no width."""
    share, extra = right / n, z * z / n
    centre = (share + extra / 2) / (1 + extra)
    half = z * math.sqrt(share * (1 - share) / n + extra / (4 * n)) / (1 + extra)
    # At the ends rounding would leave the share itself outside by an ulp.
    return max(0.0, min(share, centre - half)), min(1.0, max(share, centre + half))


def bootstrap_interval(sums: Tensor, counts: Tensor, resamples: int = 1000, seed: int = 0) -> tuple[float, float]:
    """95 % percentile bootstrap interval of a mean over tokens, drawing whole examples (Efron and Tibshirani 1993).

    Tokens of one example go together, so that it is examples that are drawn. Some resamples are drawn at a time, so
    that memory does not grow with their number; the draws are the same however many that are.

    Args:
        sums: Sum over each example's tokens `[n]`.
        counts: Tokens of each example `[n]`.
        resamples: How often to draw n examples.
        seed: Of the draws.
    """
    generator, n = torch.Generator().manual_seed(seed), len(sums)
    sums, counts = sums.double().cpu(), counts.double().cpu()
    at_once, means = max(1, _DRAWN_AT_ONCE // n), []
    for start in range(0, resamples, at_once):
        drawn = torch.randint(n, (min(at_once, resamples - start), n), generator=generator)
        means.append(sums[drawn].sum(1) / counts[drawn].sum(1))
    low, high = torch.cat(means).quantile(torch.tensor([0.025, 0.975], dtype=torch.double)).tolist()
    return low, high
