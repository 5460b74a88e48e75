"""CMA-ES, made to learn from the outcomes of all proposers."""

from __future__ import annotations

import math
import random

import numpy as np
from cmaes import CMAwM
from numpy.typing import NDArray

from search.problem.curves import curves_of
from search.problem.space import ScheduleSpace
from search.problem.trial import Proposal
from search.proposers.memory import TrialMemory
from search.proposers.seeded import SeededProposer, draw_seed
from studies import Trial

# Weight of the sum in the augmented Tchebycheff function (Knowles 2006, equation 2).
_AUGMENTATION = 0.05
# A whole evaluation of a legal schedule is never scalarised to this much.
_WORSE_THAN_ALL = 2.0
# Share of proposals that keep the first blocks of a good schedule, and number of outcomes that good ones are found in.
_HEAD_RATE = 0.5
_MOST_KEPT = 128
# Standard deviation at first, as a share of the range of a block: Optuna's.
_SIGMA = 1 / 6


class CmaProposer(SeededProposer):
    """CMA-ES with margin (Hamano et al. 2022) on one figure made of all objectives.

    That figure is the first objective if there is a target, which leaves little to trade. Otherwise it is
    the augmented Tchebycheff function (Knowles 2006) of the objectives, each scaled to the range that outcomes had
    so far, under weights from the seed: a search for one point of the front.

    As many outcomes as the population has members are a generation, whichever proposer they come from: those of others
    are injected as they are (Hansen 2011). Half of the proposals keep the first blocks of the good schedule that is
    nearest to them: evaluators need not compute these again. In a deep space, it searches curves over depth instead.
    """

    def __init__(self, space: ScheduleSpace, seed: int) -> None:
        super().__init__("cmaes", space, seed)
        self._curves = curves_of(space)
        self._optimizer: CMAwM | None = None
        self._generation: list[Trial] = []
        self._memory = TrialMemory(_MOST_KEPT)
        self._bounds: list[tuple[float, float]] | None = None

    def _propose(self, number: int, rng: random.Random) -> Proposal | None:
        if len(self._space.free_genes) == 1:  # Nothing can covary with itself alone.
            return None
        draws = np.random.RandomState(draw_seed(rng))
        optimizer = self._optimizer or self._started(draws.randint(1, 2**31 - 2))
        # Optuna's sampler of this algorithm draws so: what it proposed for a seed is proposed here.
        optimizer.reseed_rng(draws.randint(1, 2**16))
        shares, _ = optimizer.ask()
        if self._curves is not None:
            return Proposal(self._curves.schedule(shares, rng))
        indices = [math.floor(share * self._space.top + 0.5) for share in shares.tolist()]
        known = [self._free(trial) for trial in self._memory.best()]
        if not known or rng.random() >= _HEAD_RATE:
            return self._repaired(indices, rng)
        nearest = min(known, key=lambda one: sum(abs(a - b) for a, b in zip(one, indices, strict=True)))
        cut = rng.randrange(len(indices))
        return self._repaired(nearest[:cut] + indices[cut:], rng)

    def _learn(self, trial: Trial) -> None:
        if len(self._space.free_genes) == 1:
            return
        self._memory.add(trial)
        assert trial.values is not None
        if trial.total_violation == 0:
            bounds = self._bounds or [(value, value) for value in trial.values]
            self._bounds = [
                (min(low, value), max(high, value)) for (low, high), value in zip(bounds, trial.values, strict=True)
            ]
        self._generation.append(trial)
        if len(self._generation) < self._population_size:
            return
        # Each proposal seeds it anew, and an update draws nothing: this seed shows nowhere.
        self._optimizer = self._optimizer or self._started(0)
        self._optimizer.tell([(self._point(one), self._figure(one)) for one in self._generation])
        self._generation = []

    @property
    def _n_parameters(self) -> int:
        return len(self._space.free_genes) if self._curves is None else self._curves.n

    @property
    def _population_size(self) -> int:
        return 4 + math.floor(3 * math.log(self._n_parameters))

    def _started(self, seed: int) -> CMAwM:
        n = self._n_parameters
        return CMAwM(
            mean=np.full(n, 0.5),
            sigma=_SIGMA,
            bounds=np.tile([0.0, 1.0], (n, 1)),
            steps=np.full(n, 0.0 if self._curves is not None else 1 / self._space.top),
            n_max_resampling=10 * n,
            seed=seed,
            population_size=self._population_size,
        )

    def _point(self, trial: Trial) -> NDArray[np.float64]:
        """The parameters of a trial's schedule, each from 0 to 1."""
        if self._curves is not None:
            return np.array(self._curves.numbers(self._space.grid_indices(trial.schedule)))
        return np.array(self._free(trial)) / self._space.top

    def _free(self, trial: Trial) -> list[int]:
        return self._space.of_free_genes(self._space.grid_indices(trial.schedule))

    def _figure(self, trial: Trial) -> float:
        if trial.values is None or trial.total_violation > 0 or self._bounds is None:
            return _WORSE_THAN_ALL + trial.total_violation
        scaled = [
            (value - low) / (high - low) if high > low else 0.0
            for value, (low, high) in zip(trial.values, self._bounds, strict=True)
        ]
        if self._space.has_target:
            return scaled[0]
        rng = random.Random(f"{self._seed}/weights")
        shares = [rng.expovariate(1.0) for _ in scaled]
        weighted = [share / sum(shares) * value for share, value in zip(shares, scaled, strict=True)]
        return max(weighted) + _AUGMENTATION * sum(weighted)
