"""A coarse grid over a space of schedules, visited point by point."""

from __future__ import annotations

import itertools
import math
import random

from search.errors import ConfigError
from search.problem.space import ScheduleSpace
from search.problem.trial import GridIndices
from search.proposers.model_proposer import Draft
from studies import Trial

_MOST_POINTS = 10_000


class GridModel:
    """An even grid, visited in an order of the seed, each point once; after that there is nothing left to propose.

    Optuna's own grid sampler counts the points that its own trials visited; here outcomes of all proposers count, and
    points that repair makes the same are one.

    Args:
        space: Where schedules come from. Each free block gets as many sparsities as keep the grid small.
        seed: Of the order.

    Raises:
        ConfigError: Even with two sparsities per block there are too many points.
    """

    def __init__(self, space: ScheduleSpace, seed: int) -> None:
        n_free = len(space.free_blocks)
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
            indices = [0] * space.n_blocks
            for block, index in zip(space.free_blocks, free, strict=True):
                indices[block] = index
            points[space.repair(indices, rng)] = None
        self._space = space
        self._points = list(points)
        rng.shuffle(self._points)
        self._places = {point: place for place, point in enumerate(self._points)}
        self._unvisited = set(self._places.values())

    def propose(self, number: int, repeats: int, rng: random.Random) -> Draft | None:
        """GridIndices of the free blocks at the first point from place `number` on of which nothing was told.

        Args:
            number: Of the trial; trials that run side by side start at places of their own.
            repeats: How many points to pass over, as they were proposed for this trial before.
            rng: Not needed: the order is drawn once.

        Returns:
            None if every point was visited.
        """
        n = len(self._points)
        ahead = (place % n for place in range(number, number + n))
        place = next(itertools.islice((place for place in ahead if place in self._unvisited), repeats, None), None)
        return None if place is None else Draft([self._points[place][block] for block in self._space.free_blocks])

    def tell(self, trial: Trial) -> None:
        """Notes that a point was visited."""
        if (place := self._places.get(self._space.grid_indices(trial.schedule))) is not None:
            self._unvisited.discard(place)
