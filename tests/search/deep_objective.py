"""A model of 30 to 80 blocks as a formula: KL of schedules as SmolLM2-135M's, in less than a millisecond.

Fitted to `benchmarks/tables/smollm2_sensitivities.json`, which `benchmarks/sensitivities.py` measures: the KL of single
blocks, of runs of neighbours, of pairs, and of whole schedules, with the static router. It keeps a prompt's first token
and the latest ones, so that of two blocks the tokens that skip the one with the lower sparsity skip the other one, too.
The formula follows them: each band of tokens skips runs of neighbouring blocks.

- A run costs the sum of what its blocks cost alone, if the tokens come back behind it: they lack what the run would
  have done to them, but are attended to.
- A run that reaches the last block costs less, at worst a quarter of that: these tokens are gone for good. With the
  first block in it, it is a shorter prompt.
- Blocks harm in directions that are not quite orthogonal, so that together they cost more or less than their sum, by as
  much as was measured of pairs.

Where tokens that skip leave their keys and values, or skip one half of a block, the costs of blocks add up, each of its
own measured curve; attention without its MLP costs what both do beyond the MLP alone where it was not measured.

It is 17 % off what was measured (standard deviation), in sample: directions were chosen by the same schedules, and no
others were held out. Other depths have the same
curves over relative depth; a block of 80 costs 30/80 of one of 30. Noise is that of a search set: the items that curves
are means over are drawn again, as many as were measured.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path

import numpy as np

from ftp_core.schedule import SparsitySchedule

TABLE = Path(__file__).resolve().parents[2] / "benchmarks" / "tables" / "smollm2_sensitivities.json"
LEVELS = (0.0, 0.2, 0.4, 0.6, 0.8)
# Tokens of neighbouring priority, which a schedule on the usual grid treats alike.
BAND = 0.05
N_BANDS = 19
# Cost of a run of blocks as a share of the sum of theirs, if its tokens come back: measured in runs of three and more.
COMES_BACK = 0.87
LONG_RUN = 3.0
# What is left of the difference to a run that reaches the end, for each block of 30 that it ends before it.
STAYS_AWAY = 0.85
# What a run that begins with the first block costs as a multiple of that sum, if its tokens keep their keys and values:
# all attend to states that no block has made ready for it.
RUINED = 10.0
# Directions in which blocks harm: random ones, of 3,000 draws those that agree best with what was measured.
N_DIRECTIONS, DIRECTIONS_SEED = 90, 127


@dataclass(frozen=True)
class Sensitivities:
    """What was measured.

    Attributes:
        n_blocks: Blocks of the model.
        n_tokens: Completion tokens of each item `[I]`.
        singles: KL of each item where one block skips `[N, 5, I]`, at each of `LEVELS`; NaN where it was not measured.
        others: Group, sparsities, and KL of each item of what else was measured.
    """

    n_blocks: int
    n_tokens: np.ndarray
    singles: np.ndarray
    others: Sequence[tuple[str, tuple[float, ...], np.ndarray]]

    def mean(self, kl: np.ndarray) -> float:
        """KL per completion token of the KL of each item."""
        return float(np.average(kl, weights=self.n_tokens))

    @cached_property
    def tails(self) -> tuple[np.ndarray, np.ndarray]:
        """First blocks of runs to the end `[S]`, and their KL `[S, 5]` at each of `LEVELS`."""
        found: dict[int, dict[float, float]] = {}
        for _, sparsities, kl in self.others:
            [first, *_] = np.flatnonzero(sparsities)
            if len(set(sparsities[first:])) == 1 and sparsities[first] in LEVELS:
                found.setdefault(int(first), {0.0: 0.0})[sparsities[first]] = self.mean(kl)
        starts = sorted(first for first, own in found.items() if len(own) == len(LEVELS))
        return np.array(starts), np.array([[found[first][level] for level in LEVELS] for first in starts])


@lru_cache
def measured(kind: str = "block") -> Sensitivities:
    """The table's figures of one kind."""
    table = json.loads(TABLE.read_text())
    n_blocks, n_tokens = table["n_blocks"], np.array(table["n_tokens"], dtype=float)
    singles, others = np.full((n_blocks, len(LEVELS), len(n_tokens)), np.nan), []
    singles[:, 0] = 0.0
    for one in table["measured"]:
        if one["kind"] != kind:
            continue
        sparsities = [0.0] * n_blocks
        for block, share in (part.split(":") for part in one["skips"].split()):
            sparsities[int(block)] = float(share)
        if one["group"] == "single":
            [block] = np.flatnonzero(sparsities)
            singles[block, LEVELS.index(sparsities[block])] = one["kl"]
        else:
            others.append((one["group"], tuple(sparsities), np.array(one["kl"])))
    return Sensitivities(n_blocks, n_tokens, singles, others)


class DeepObjective:
    """KL of schedules of a model with any number of blocks.

    Args:
        n_blocks: N.
        draw: Number of the search set; None for the truth, which is the mean over all items.
        share: Share of the search set: its first items.
    """

    def __init__(self, n_blocks: int, draw: int | None = None, share: float = 1.0) -> None:
        self.n_blocks = n_blocks
        known = measured()
        weights = known.n_tokens
        if draw is not None:
            n_items = len(weights)
            items = np.random.default_rng(draw).integers(n_items, size=n_items)[: round(share * n_items)]
            weights = weights * np.bincount(items, minlength=n_items)
        scale = known.n_blocks / n_blocks
        depths = np.clip(scale * (np.arange(n_blocks) + 0.5) - 0.5, 0, known.n_blocks - 1)
        both, mlp, attention = (_curves(measured(kind), weights) for kind in ("both", "mlp", "attention"))
        # What was not measured of halves.
        mlp = np.where(np.isnan(mlp), both, mlp)
        beyond = np.maximum.accumulate(np.maximum(both - mlp, 0.0), axis=1)
        attention = np.where(np.isnan(attention), beyond, attention)
        # What each band of tokens costs where it skips a block `[bands, N]`.
        self._block, self._both, self._mlp, self._attention = (
            scale * _in_bands(curves, depths) for curves in (_curves(known, weights), both, mlp, attention)
        )
        self._to_the_end = self._tail_ratios(known, depths)
        self._per_block = scale
        drawn = np.random.default_rng(DIRECTIONS_SEED).standard_normal((known.n_blocks, N_DIRECTIONS))
        self._directions = drawn / np.linalg.norm(drawn, axis=1, keepdims=True)
        # Costs of this depth at the blocks that were measured: each is shared between the two nearest.
        self._gathered = np.maximum(0.0, 1 - np.abs(depths[:, None] - np.arange(known.n_blocks)))

    def __call__(self, schedule: Sequence[float]) -> float:
        """KL of a schedule."""
        harm = np.sqrt(self.block_costs(schedule) @ self._gathered) @ self._directions
        return float(harm @ harm)

    def block_costs(self, schedule: Sequence[float]) -> np.ndarray:
        """Part of each block in the KL `[N]`, but for what blocks do together."""
        given = SparsitySchedule.of(schedule)
        attention, mlp = _shares_of_bands(given.attention), _shares_of_bands(given.mlp)
        both = np.minimum(attention, mlp)
        gone = np.where(given.keeps_kv, 0.0, both)
        stays = both - gone
        # Attention alone without keys and values: what they are worth comes on top.
        without = np.where(given.keeps_kv, 0.0, np.maximum(self._block - self._both, 0.0))
        return (
            self._block * gone * self._run_ratios(gone > 1e-6)
            + self._both * stays * (1 + (RUINED - 1) * self._from_the_first(stays > 1e-6))
            + (self._attention + without) * (attention - both)
            + self._mlp * (mlp - both)
        ).sum(0)

    def _run_ratios(self, skips: np.ndarray) -> np.ndarray:
        """What a run of blocks costs as a share of its blocks' sum, for each band and block that is skipped."""
        blocks = np.arange(self.n_blocks)
        first = np.maximum.accumulate(np.where(skips, -1, blocks), axis=1) + 1
        last = np.minimum.accumulate(np.where(skips, self.n_blocks, blocks)[:, ::-1], axis=1)[:, ::-1] - 1
        length = self._per_block * (last - first + 1)
        back = 1 - (1 - COMES_BACK) * np.clip((length - 1) / (LONG_RUN - 1), 0.0, 1.0)
        away = self._to_the_end[np.arange(N_BANDS)[:, None], np.clip(first, 0, self.n_blocks - 1)]
        gone = STAYS_AWAY ** (self._per_block * (self.n_blocks - 1 - last))
        return np.where(skips, back + (away - back) * gone, 0.0)

    def _from_the_first(self, skips: np.ndarray) -> np.ndarray:
        """1 in the run of blocks that begins with the first, if it is long; 0 elsewhere `[bands, N]`."""
        in_run = np.logical_and.accumulate(skips, axis=1)
        length = self._per_block * in_run.sum(1, keepdims=True)
        return in_run * np.clip((length - 1) / (LONG_RUN - 1), 0.0, 1.0)

    @staticmethod
    def _tail_ratios(known: Sensitivities, depths: np.ndarray) -> np.ndarray:
        """KL of runs to the end as a share of their blocks' sum `[bands, N]`, by the first block."""
        curves = np.average(known.singles, axis=2, weights=known.n_tokens)
        starts, kls = known.tails
        sums = np.array([curves[start:].sum(0) for start in starts])
        ratios = np.clip(np.diff(kls, axis=1) / np.diff(sums, axis=1), 0.05, 3.0)
        by_depth = np.array([np.interp(depths, starts, own) for own in ratios.T])
        return by_depth[np.minimum((BAND * np.arange(N_BANDS) / 0.2 + 1e-9).astype(int), len(LEVELS) - 2)]


def _curves(known: Sensitivities, weights: np.ndarray) -> np.ndarray:
    """KL of single blocks at each level `[N, 5]`, which does not fall, as it does within the noise."""
    found = np.average(known.singles, axis=2, weights=weights)
    for own in found:
        if not np.isnan(own[1:]).all():
            there = ~np.isnan(own)
            own[:] = np.interp(LEVELS, np.array(LEVELS)[there], own[there])
    return np.maximum.accumulate(np.maximum(found, 0.0), axis=1)


def _in_bands(curves: np.ndarray, depths: np.ndarray) -> np.ndarray:
    """What each band of tokens adds `[bands, N]`, at other depths."""
    stretched = np.array([np.interp(depths, range(len(curves)), own) for own in curves.T])
    # The last piece goes on as steeply as the one before.
    stretched = np.vstack([stretched, 2 * stretched[-1] - stretched[-2]])
    ends = BAND * np.arange(N_BANDS + 1)
    return np.diff(np.array([np.interp(ends, [*LEVELS, 1.0], own) for own in stretched.T]), axis=1).T


def _shares_of_bands(sparsities: Sequence[float]) -> np.ndarray:
    """Share of each band of tokens that skips each block `[bands, N]`."""
    return np.clip((np.array(sparsities) - BAND * np.arange(N_BANDS)[:, None]) / BAND, 0.0, 1.0)
