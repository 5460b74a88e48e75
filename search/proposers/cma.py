"""The model behind the `cmaes` proposer: CMA-ES, made to learn from everybody's outcomes."""

from __future__ import annotations

import math
import random
from typing import Any

from optuna.samplers import CmaEsSampler

from search.problem.space import ScheduleSpace
from search.problem.trial import Outcome
from search.proposers.memory import OutcomeMemory
from search.proposers.parameters import BlockParameters, Draft, draw_seed, new_study

# Weight of the sum in the augmented Tchebycheff function (Knowles 2006, equation 2).
_AUGMENTATION = 0.05
# A whole evaluation of a legal schedule is never scalarised to this much.
_WORSE_THAN_ALL = 2.0
# How many proposals keep the first blocks of a good schedule, and of how many outcomes the good ones are found.
_HEAD_RATE = 0.5
_MOST_KEPT = 128


class CmaModel:
    """CMA-ES with margin (Hamano et al. 2022) on one figure made of all objectives.

    That figure is the first objective if the overall sparsity is given, which leaves little to trade. Otherwise it is
    the augmented Tchebycheff function (Knowles 2006) of the objectives, each scaled to the range that outcomes had
    so far, under weights from the seed: a search for one point of the front.

    So many outcomes as the population has members are a generation, whoever proposed them: those of others are injected
    as it is (Hansen 2011). Half of the proposals keep the first blocks of the good schedule that is nearest to them:
    evaluators need not compute these again. Optuna keeps the state of CMA-ES in attributes of trials, and here it goes
    from generation to generation.
    """

    def __init__(self, space: ScheduleSpace, seed: int) -> None:
        self._parameters = BlockParameters(space)
        self._space = space
        self._seed = seed
        self._population_size = 4 + math.floor(3 * math.log(len(space.free_blocks)))
        self._state: dict[str, Any] = {}
        self._n_generations = 0
        self._generation: list[Outcome] = []
        self._memory = OutcomeMemory(_MOST_KEPT)
        self._bounds: list[tuple[float, float]] | None = None

    def propose(self, number: int, repeats: int, rng: random.Random) -> Draft | None:
        """Levels of the free blocks for trial `number`; None while random ones are as good."""
        if len(self._space.free_blocks) == 1:  # Nothing can covary with itself alone.
            return None
        study, trial = new_study()
        # A trial of no generation only carries the state.
        carrier = Outcome((0,) * self._space.n_blocks, (0.0,))
        study.add_trial(self._parameters.trial(carrier, system_attrs=self._state))
        levels = self._parameters.levels(self._sampler(rng), study, trial)
        known = [self._parameters.of(outcome) for outcome in self._memory.best()]
        if not known or rng.random() >= _HEAD_RATE:
            return Draft(levels)
        nearest = min(known, key=lambda one: sum(abs(a - b) for a, b in zip(one, levels, strict=True)))
        cut = rng.randrange(len(levels))
        return Draft(nearest[:cut] + levels[cut:])

    def tell(self, outcome: Outcome) -> None:
        """Learn from an outcome of finite figures."""
        if len(self._space.free_blocks) == 1:
            return
        self._memory.add(outcome)
        if outcome.penalty == 0:
            bounds = self._bounds or [(value, value) for value in outcome.values]
            self._bounds = [
                (min(low, value), max(high, value)) for (low, high), value in zip(bounds, outcome.values, strict=True)
            ]
        self._generation.append(outcome)
        if len(self._generation) < self._population_size:
            return
        study, trial = new_study()
        for one in self._generation:
            attributes = {
                "cmawm:generation": self._n_generations,
                "x_for_tell": [one.levels[block] / self._space.top for block in self._space.free_blocks],
            }
            attributes |= self._state
            study.add_trial(self._parameters.trial(one, [self._figure(one)], system_attrs=attributes))
        rng = random.Random(f"{self._seed}/update/{self._n_generations}")
        self._sampler(rng).sample_relative(study, trial, self._parameters.distributions)
        asked = study.get_trials()[0].system_attrs
        self._state = {key: value for key, value in asked.items() if key.startswith("cmawm:optimizer")}
        self._n_generations += 1
        self._generation = []

    def _sampler(self, rng: random.Random) -> CmaEsSampler:
        return CmaEsSampler(seed=draw_seed(rng), with_margin=True, popsize=self._population_size)

    def _figure(self, outcome: Outcome) -> float:
        if outcome.penalty > 0 or self._bounds is None:
            return _WORSE_THAN_ALL + outcome.penalty
        scaled = [
            (value - low) / (high - low) if high > low else 0.0
            for value, (low, high) in zip(outcome.values, self._bounds, strict=True)
        ]
        if self._space.target_sparsity is not None:
            return scaled[0]
        rng = random.Random(f"{self._seed}/weights")
        shares = [rng.expovariate(1.0) for _ in scaled]
        weighted = [share / sum(shares) * value for share, value in zip(shares, scaled, strict=True)]
        return max(weighted) + _AUGMENTATION * sum(weighted)
