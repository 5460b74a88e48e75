"""Models that learn nothing: independent grid indices, and a quasi-random sequence."""

from __future__ import annotations

import random

import numpy as np

from search.problem.space import ScheduleSpace
from search.proposers.model_proposer import Draft, draw_seed
from studies import Trial


class UniformModel:
    """Draws every block on its own, all grid indices alike."""

    def __init__(self, space: ScheduleSpace, seed: int) -> None:
        self._space = space

    def propose(self, number: int, repeats: int, rng: random.Random) -> Draft | None:
        """See `ScheduleModel.propose`."""
        return Draft([rng.randint(0, self._space.top) for _ in self._space.free_blocks])

    def tell(self, trial: Trial) -> None:
        """Learn nothing."""


class SobolModel:
    """A scrambled Sobol sequence: trial n gets its point n, and a point of another scrambling for each repeat."""

    def __init__(self, space: ScheduleSpace, seed: int) -> None:
        self._space = space
        self._seed = seed

    def propose(self, number: int, repeats: int, rng: random.Random) -> Draft | None:
        """See `ScheduleModel.propose`."""
        # It takes long to load.
        from scipy.stats import qmc

        seed = draw_seed(random.Random(f"{self._seed}/sequence/{repeats}"))
        sequence = qmc.Sobol(len(self._space.free_blocks), rng=np.random.default_rng(seed))
        if number:
            sequence.fast_forward(number)
        [point] = sequence.random(1)
        return Draft(np.floor(point * (self._space.top + 1)).tolist())

    def tell(self, trial: Trial) -> None:
        """Learn nothing."""
