"""A descent by exchanges: one gene skips less, another one more, at the same cost."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from search.problem.gene_costs import CostSums, Counts, Floats

# Exchanges tried at a time, and how often without success.
_AT_A_TIME, _MOST_FAILURES = 256, 3


def descended(
    start: Counts,
    harm: Callable[[Counts], Floats],
    costs: CostSums,
    most: float,
    rng: np.random.Generator,
    reach: float = math.inf,
) -> Counts:
    """Indices `[N]` that few exchanges between two genes improve, from some on.

    Of random exchanges the best one is made, again and again. Where both genes of a block cost less together, exchanges
    are between two blocks, too.

    Args:
        start: Indices that cost at most the limit.
        harm: Harm of indices `[C, N]`.
        costs: Changes of the cost by genes.
        most: The most that they may add up to.
        rng: Draws the exchanges.
        reach: Most steps that all genes together may be away from the start.
    """
    at, failures = start, 0
    least, slack = float(harm(at[None])[0]), 1e-9 * abs(most)
    while failures < _MOST_FAILURES and at.any():
        moved = _between_genes(at, costs, most + slack, rng)
        if costs.together is not None:
            moved = np.concatenate([moved, _between_blocks(at, costs, most + slack, rng)])
            moved = moved[costs.of_each(moved) <= most + slack]
        moved = moved[np.abs(moved - start).sum(1) <= reach]
        if not len(moved):
            return at
        harms = harm(moved)
        best = int(harms.argmin())
        if harms[best] < least - 1e-9:
            at, least, failures = moved[best], float(harms[best]), 0
        else:
            failures += 1
    return at


def _between_genes(at: Counts, costs: CostSums, most: float, rng: np.random.Generator) -> Counts:
    """Random exchanges `[C, N]`: one gene skips less, and another one as little more as the limit allows."""
    rows, n = costs.beside(at), len(at)
    givers, takers = rng.choice(np.flatnonzero(at), _AT_A_TIME), rng.integers(n, size=_AT_A_TIME)
    fewer = np.maximum(at[givers] - _strides(costs, rng), 0)
    left = most - costs.of(at) + rows[givers, at[givers]] + rows[takers, at[takers]] - rows[givers, fewer]
    enough = rows[takers] <= left[:, None]
    moved = np.repeat(at[None], _AT_A_TIME, axis=0)
    every = np.arange(_AT_A_TIME)
    moved[every, givers] = fewer
    moved[every, takers] = enough.argmax(1)
    possible: Counts = moved[enough.any(1) & (givers != takers)]
    return possible


def _between_blocks(at: Counts, costs: CostSums, most: float, rng: np.random.Generator) -> Counts:
    """The same of both genes of a block at once, which move by the same number of steps."""
    table, n_indices = costs.of_blocks(), costs.alone.shape[1]
    both, blocks = at.reshape(-1, 2), np.arange(len(table))
    now = table[blocks, both[:, 0] * n_indices + both[:, 1]]
    givers, takers = rng.choice(np.flatnonzero(both.any(1)), _AT_A_TIME), rng.integers(len(both), size=_AT_A_TIME)
    fewer = np.maximum(both[givers] - _strides(costs, rng)[:, None], 0)
    left = most - now.sum() + now[givers] + now[takers] - table[givers, fewer[:, 0] * n_indices + fewer[:, 1]]
    more = np.minimum(both[takers][:, None] + np.arange(n_indices)[:, None], n_indices - 1)
    enough = table[takers[:, None], more[..., 0] * n_indices + more[..., 1]] <= left[:, None]
    moved = np.repeat(both[None], _AT_A_TIME, axis=0)
    every = np.arange(_AT_A_TIME)
    moved[every, givers] = fewer
    moved[every, takers] = more[every, enough.argmax(1)]
    possible: Counts = moved.reshape(_AT_A_TIME, -1)[enough.any(1) & (givers != takers)]
    return possible


def _strides(costs: CostSums, rng: np.random.Generator) -> Counts:
    return rng.integers(1, max(1, costs.alone.shape[1] // 4) + 1, size=_AT_A_TIME)
