"""Proposals from the evolutionary search of EvoPress (arXiv 2410.14649), for one overall sparsity or all of them."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from itertools import pairwise

from search.problem.space import ScheduleSpace
from search.problem.trial import GridIndices, Proposal
from search.proposers.seeded import SeededProposer
from studies import Trial

_MOST_SWITCHES = 3
# Bands of overall sparsity without a target.
_N_BANDS = 10
# Trials told before the best of them become parents.
_FIRST = 8
# Most draws of a child that equals a parent.
_MOST_TRIES = 10
# Share of children that keep their parent's first blocks, see `_changing_blocks`.
_HEAD_RATE = 0.85


class EvoPressProposer(SeededProposer):
    """A (1 + lambda) search: children differ from their parent by few switches, and the best becomes the next parent.

    A switch moves sparsity from one block to another and keeps the overall sparsity, so there is a parent per overall
    sparsity: the trial with the lowest constraint violation, then with the best first objective, whoever proposed it.
    It is replaced as soon as a better one is told, without waiting for its other children.

    At a target, be it overall sparsity or a cost, there is one parent. Without, the overall sparsities are parted into
    bands, and `offspring` trials after one another are given to one band; each cycle visits all bands in a new order. A
    child there comes from one of the band's parents that no parent of a higher overall sparsity outdoes; every second
    one is made a little sparser or denser first, which fills the overall sparsities between. Bands without a parent get
    children from the nearest.

    Selection in several steps, cheap evaluations first, is what the engine's fidelities do.

    Args:
        space: Space of schedules.
        seed: Seed of all random choices.
        offspring: Lambda: number of consecutive trials in one band.
    """

    _most_repeats = math.inf

    def __init__(self, space: ScheduleSpace, seed: int, offspring: int = 4) -> None:
        super().__init__("evopress", space, seed)
        self._offspring = offspring
        self._parents: dict[int, Trial] = {}
        # Their grid indices, which every proposal asks for.
        self._grid_indices: dict[int, GridIndices] = {}
        self._n_told = 0
        # By how much a switch moves at most: a fifth of what a block can skip.
        self._stride = max(1, space.top // 5)
        lowest = 0 if not space.limits else sum(space.repair([0] * space.n_genes, random.Random(0)))
        highest = lowest if space.has_target else space.top * len(space.free_genes)
        n_bands = min(_N_BANDS, highest - lowest + 1)
        width = (highest - lowest + 1) / n_bands
        edges = [lowest + math.floor(width * band) for band in range(n_bands)] + [highest + 1]
        self._bands = [range(low, high) for low, high in pairwise(edges)]

    def _propose(self, number: int, rng: random.Random) -> Proposal | None:
        legal = {total: parent for total, parent in self._parents.items() if parent.total_violation == 0}
        parents = legal or self._parents
        if self._n_told < _FIRST or not parents:
            return None
        band = self._band(number)
        known = set(self._grid_indices.values())
        for _ in range(_MOST_TRIES):
            if (child := self._child(parents, band, rng)).grid_indices not in known:
                break
        return child

    def _learn(self, trial: Trial) -> None:
        indices = self._space.grid_indices(trial.schedule)
        self._n_told += 1
        # At a target that is a cost, schedules of any overall sparsity compare.
        total = self._bands[0].start if self._space.has_target else sum(indices)
        parent = self._parents.get(total)
        if parent is None or _order(trial) < _order(parent):
            self._parents[total], self._grid_indices[total] = trial, indices

    def _band(self, number: int) -> range:
        cycle, place = divmod(number // self._offspring, len(self._bands))
        return random.Random(f"{self._seed}/cycle/{cycle}").sample(self._bands, len(self._bands))[place]

    def _child(self, parents: dict[int, Trial], band: range, rng: random.Random) -> Proposal:
        total = self._choose(parents, band, rng)
        parent = self._grid_indices[total]
        indices = list(parent)
        # Asked again for the same trial, the neighbourhood is known already: look further away.
        most_switches = _MOST_SWITCHES + self._repeats
        n_switches = min(rng.randint(1, most_switches), rng.randint(1, most_switches))
        blocks = self._changing_blocks(rng)
        if total not in band:
            self._shift(indices, rng.choice(band) - total, blocks, rng)
            n_switches -= 1
        elif not self._space.has_target and rng.random() < 0.5:
            self._shift(indices, rng.choice((-1, 1)) * rng.randint(1, max(1, len(band) // 2)), blocks, rng)
            n_switches -= 1
        for _ in range(n_switches):
            self._switch(indices, blocks, rng)
        return Proposal(self._space.repair(indices, rng), (parent,))

    def _choose(self, parents: dict[int, Trial], band: range, rng: random.Random) -> int:
        """The overall sparsity, in steps, of the parent that children for a band come from."""
        inside = [total for total in parents if total in band]
        if not inside:
            return min(parents, key=lambda total: (max(band.start - total, total - band.stop), total))
        inside.sort(reverse=True)
        best, front = math.inf, []
        for total in inside:
            if (value := _order(parents[total])[1]) < best:
                best = value
                front.append(total)
        return rng.choice(front)

    def _changing_blocks(self, rng: random.Random) -> tuple[int, ...]:
        """The blocks in which a child may differ from its parent.

        Most children keep the blocks before a random one: evaluators need not compute these again.
        """
        free = self._space.free_genes
        return free[rng.randrange(len(free) - 1) :] if len(free) > 1 and rng.random() < _HEAD_RATE else free

    def _shift(self, indices: list[int], amount: int, blocks: Sequence[int], rng: random.Random) -> None:
        """Make indices sparser, or denser for a negative amount, step by step in random blocks."""
        step = 1 if amount > 0 else -1
        for _ in range(abs(amount)):
            movable = [block for block in blocks if 0 <= indices[block] + step <= self._space.top]
            if not movable:
                return
            indices[rng.choice(movable)] += step

    def _switch(self, indices: list[int], blocks: Sequence[int], rng: random.Random) -> None:
        """Move sparsity from one block to another."""
        givers = [block for block in blocks if indices[block] > 0]
        takers = [block for block in blocks if indices[block] < self._space.top]
        if not givers or not takers:
            return
        giver, taker = rng.choice(givers), rng.choice(takers)
        amount = min(rng.randint(1, self._stride), rng.randint(1, self._stride))
        amount = min(amount, indices[giver], self._space.top - indices[taker])
        if giver != taker:
            indices[giver] -= amount
            indices[taker] += amount


def _order(trial: Trial) -> tuple[float, float]:
    """Constraint violation, then the first objective: the lowest is the best."""
    assert trial.values is not None
    return trial.total_violation, trial.values[0]
