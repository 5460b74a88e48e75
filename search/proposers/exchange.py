"""A descent by exchanges: one gene skips less, another one more, at the same cost."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from search.proposers.knapsack import Counts, Floats

# Exchanges tried at a time, and how often without success.
_AT_A_TIME, _MOST_FAILURES = 256, 3


def descended(
    start: Counts,
    harm: Callable[[Counts], Floats],
    costs: Floats,
    most: float,
    rng: np.random.Generator,
    reach: float = math.inf,
) -> Counts:
    """Indices `[N]` that few exchanges between two genes improve, from some on.

    Of random exchanges the best one is made, again and again.

    Args:
        start: Indices that cost at most the limit.
        harm: Harm of indices `[C, N]`.
        costs: Cost of each gene at each index `[N, L]`.
        most: The limit.
        rng: Draws the exchanges.
        reach: Most steps that all genes together may be away from the start.
    """
    at, n, failures = start, len(start), 0
    least = float(harm(at[None])[0])
    stride = max(1, costs.shape[1] // 4)
    rows = np.arange(_AT_A_TIME)
    while failures < _MOST_FAILURES and at.any():
        givers, takers = rng.choice(np.flatnonzero(at), _AT_A_TIME), rng.integers(n, size=_AT_A_TIME)
        fewer = np.maximum(at[givers] - rng.integers(1, stride + 1, size=_AT_A_TIME), 0)
        left = most - costs[np.arange(n), at].sum() + costs[givers, at[givers]] + costs[takers, at[takers]]
        enough = costs[takers] <= (left - costs[givers, fewer])[:, None] + 1e-9 * abs(most)
        moved = np.repeat(at[None], _AT_A_TIME, axis=0)
        moved[rows, givers] = fewer
        moved[rows, takers] = enough.argmax(1)
        moved = moved[enough.any(1) & (givers != takers) & (np.abs(moved - start).sum(1) <= reach)]
        if not len(moved):
            return at
        harms = harm(moved)
        best = int(harms.argmin())
        if harms[best] < least - 1e-9:
            at, least, failures = moved[best], float(harms[best]), 0
        else:
            failures += 1
    return at
