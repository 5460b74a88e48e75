"""Proposers that learn nothing: independent draws, a quasi-random sequence, and a grid."""

from __future__ import annotations

import itertools
import math
import random

import numpy as np

from search.errors import ConfigError
from search.problem.space import ScheduleSpace
from search.problem.trial import GridIndices, Proposal
from search.proposers.seeded import SeededProposer, draw_seed
from studies import Trial

_MOST_POINTS = 10_000


class UniformProposer(SeededProposer):
    """Uniform and independent grid indices."""

    def __init__(self, space: ScheduleSpace, seed: int) -> None:
        super().__init__("random", space, seed)

    def _propose(self, number: int, rng: random.Random) -> Proposal | None:
        return self._repaired([rng.randint(0, self._space.top) for _ in self._space.free_genes], rng)


class SobolProposer(SeededProposer):
    """Scrambled Sobol sequence: trial n gets point n, repeats the points n of other scramblings."""

    def __init__(self, space: ScheduleSpace, seed: int) -> None:
        super().__init__("qmc", space, seed)

    def _propose(self, number: int, rng: random.Random) -> Proposal | None:
        # It takes long to load.
        from scipy.stats import qmc

        seed = draw_seed(random.Random(f"{self._seed}/sequence/{self._repeats}"))
        sequence = qmc.Sobol(len(self._space.free_genes), rng=np.random.default_rng(seed))
        if number:
            sequence.fast_forward(number)
        [point] = sequence.random(1)
        return self._repaired(np.floor(point * (self._space.top + 1)).tolist(), rng)


class GridProposer(SeededProposer):
    """Even grid; each point is proposed once, in an order that follows from the seed.

    Unlike in Optuna's grid sampler, trials of all proposers count as visits, and equal repaired points count once.

    Args:
        space: Space of schedules. Each free block gets as many sparsities as keep the grid small.
        seed: Seed of the order.

    Raises:
        ConfigError: Even with two sparsities per block there are too many points.
    """

    def __init__(self, space: ScheduleSpace, seed: int) -> None:
        super().__init__("grid", space, seed)
        n_free = len(space.free_genes)
        n_sparsities = min(space.top + 1, math.floor(_MOST_POINTS ** (1 / n_free) + 1e-9))
        if n_sparsities < 2:
            raise ConfigError(
                f"A grid over {n_free} blocks has at least {2**n_free} points: expected at most {_MOST_POINTS}, so at "
                f"most {math.floor(math.log2(_MOST_POINTS))} blocks that may skip. Choose another proposer, or keep "
                "more blocks dense."
            )
        steps = [round(space.top * place / (n_sparsities - 1)) for place in range(n_sparsities)]
        rng = random.Random(f"{seed}/grid")
        points: dict[GridIndices, None] = {}
        for free in itertools.product(steps, repeat=n_free):
            points[space.repair(space.on_all_genes(free), rng)] = None
        self._points = list(points)
        rng.shuffle(self._points)
        self._places = {point: place for place, point in enumerate(self._points)}
        self._unvisited = set(self._places.values())

    def _propose(self, number: int, rng: random.Random) -> Proposal | None:
        """The first unvisited point from place `number` on; None if there is none."""
        n = len(self._points)
        ahead = (place % n for place in range(number, number + n))
        unvisited = (place for place in ahead if place in self._unvisited)
        place = next(itertools.islice(unvisited, self._repeats, None), None)
        return None if place is None else Proposal(self._points[place])

    def _learn(self, trial: Trial) -> None:
        if (place := self._places.get(self._space.grid_indices(trial.schedule))) is not None:
            self._unvisited.discard(place)
