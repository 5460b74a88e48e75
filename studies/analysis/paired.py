"""Comparisons of two models on the same items: better, worse, or not told apart."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

Judgement = Literal["better", "worse", "not told apart"]
# Of the tests and the intervals.
_ALPHA = 0.05
_RESAMPLES = 2000


@dataclass(frozen=True)
class PairedKl:
    """Difference of two models' KL on the same items.

    Attributes:
        difference: KL of the first one less that of the second, nats per token.
        low: Lower end of its 95 % bootstrap interval.
        high: Upper end of it.
    """

    difference: float
    low: float
    high: float

    @property
    def judgement(self) -> Judgement:
        """What holds of the first one: better where its KL is lower beyond chance."""
        return "better" if self.high < 0 else "worse" if self.low > 0 else "not told apart"


@dataclass(frozen=True)
class PairedAccuracy:
    """Right answers of two models to the same items.

    Attributes:
        first_only: Items that the first one alone has right.
        second_only: Items that the second one alone has right.
        p_value: Exact two-sided probability of a split at least as uneven, were both as good (McNemar 1947).
    """

    first_only: int
    second_only: int
    p_value: float

    @property
    def judgement(self) -> Judgement:
        """What holds of the first one."""
        if self.p_value >= _ALPHA:
            return "not told apart"
        return "better" if self.first_only > self.second_only else "worse"


def paired_kl(first: Sequence[float], second: Sequence[float], n_tokens: Sequence[int], seed: int = 0) -> PairedKl:
    """Compares the KL of two models, items being drawn for both together (Efron and Tibshirani 1993).

    Args:
        first: KL of the first model on each item, nats per token.
        second: The same of the second one.
        n_tokens: Tokens of each item, by which means are weighted.
        seed: Seed of the draws.

    Raises:
        ValueError: There is no item, or there are not as many of each.
    """
    if not len(first) == len(second) == len(n_tokens) > 0:
        raise ValueError(f"{len(first)}, {len(second)} and {len(n_tokens)} figures are not of the same items.")
    weights = np.asarray(n_tokens, dtype=float)
    gaps = weights * (np.asarray(first, dtype=float) - np.asarray(second, dtype=float))
    drawn = np.random.default_rng(seed).integers(len(gaps), size=(_RESAMPLES, len(gaps)))
    differences = gaps[drawn].sum(1) / weights[drawn].sum(1)
    low, high = np.quantile(differences, [_ALPHA / 2, 1 - _ALPHA / 2]).tolist()
    return PairedKl(float(gaps.sum() / weights.sum()), low, high)


def paired_accuracy(first: Sequence[int | None], second: Sequence[int | None]) -> PairedAccuracy | None:
    """Compares right answers of two models to the same items; None without items that both chose in.

    Args:
        first: For each item 1 where the first model is right, 0 where it is wrong, None without a choice.
        second: The same of the second one.

    Raises:
        ValueError: There are not as many of both.
    """
    # It takes half a second to load.
    from scipy.stats import binomtest

    both = [(one, other) for one, other in zip(first, second, strict=True) if one is not None and other is not None]
    if not both:
        return None
    first_only, second_only = (sum(pair == wanted for pair in both) for wanted in ((1, 0), (0, 1)))
    n = first_only + second_only
    return PairedAccuracy(first_only, second_only, float(binomtest(first_only, n).pvalue) if n else 1.0)
