"""Curves over depth that stand for schedules of many blocks with few numbers.

Neighbouring blocks of a deep model lose alike where they skip. So some proposers find out how much each part of its
depth may skip, which takes few evaluations, and leave it to others to tell single blocks apart.

Dimensions: G free genes, K numbers of a curve.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from search.problem.initial_design import EARLY_BLOCKS, reaching
from search.problem.space import ScheduleSpace
from search.problem.trial import GridIndices

KNOTS = 4
"""Numbers of a curve, of which each half of blocks has its own."""
# Most free genes that a search of few evaluations tells apart from the first one on.
_MOST_GENES = 24


def curves_of(space: ScheduleSpace) -> DepthCurves | None:
    """Curves for a space of more genes than a search of few evaluations tells apart; None for others."""
    return DepthCurves(space) if len(space.free_genes) > _MOST_GENES else None


class DepthCurves:
    """Curves that are straight between a few knots, which are as far from each other in depth.

    The first blocks, where no plateau and no ramp skips either, skip nothing if the target is met without them.

    Args:
        space: Space of schedules.

    Attributes:
        n: K, the numbers of all curves together.
    """

    def __init__(self, space: ScheduleSpace) -> None:
        self._space = space
        self.n = KNOTS * space.genes.per_block

    def schedule(self, numbers: Sequence[float], rng: random.Random) -> GridIndices:
        """The schedule of curves whose numbers are shares of the highest sparsity; with a target, of that height.

        Args:
            numbers: K shares; what is not between 0 and 1 is brought there.
            rng: Chooses blocks that give or take what rounding leaves over.
        """
        shares_G = self._hats @ np.clip(np.asarray(numbers, dtype=float), 0.0, 1.0)
        weights = self._space.on_all_genes(shares_G.tolist())
        at_target = reaching(self._space, weights) if self._space.has_target else None
        return self._space.repair(at_target or [share * self._space.top for share in weights], rng)

    def numbers(self, indices: GridIndices) -> list[float]:
        """Shares whose curves are nearest to a schedule, by squares `[K]`."""
        shares_G = np.array(self._space.of_free_genes(indices)) / self._space.top
        nearest: list[float] = np.clip(self._inverse @ shares_G, 0.0, 1.0).tolist()
        return nearest

    @cached_property
    def _hats(self) -> NDArray[np.float64]:
        """What each number adds to each free gene `[G, K]`: all at its knot, nothing at the next ones."""
        genes = self._space.genes
        first, last = min(EARLY_BLOCKS, self._space.n_blocks - 1), self._space.n_blocks - 1
        hats_GK = np.zeros((len(genes.free), self.n))
        for row, gene in enumerate(genes.free):
            block = genes.blocks[gene]
            if block < first:
                continue
            at = (block - first) / max(1, last - first) * (KNOTS - 1)
            knot = min(int(at), KNOTS - 2)
            column = gene % genes.per_block * KNOTS + knot
            hats_GK[row, column : column + 2] = 1 - (at - knot), at - knot
        return hats_GK

    @cached_property
    def _inverse(self) -> NDArray[np.float64]:
        return np.asarray(np.linalg.pinv(self._hats), dtype=np.float64)
