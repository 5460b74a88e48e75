"""Proposals from Optuna's samplers.

Optuna's study is used as what a sampler reads, never as what is asked: outcomes of all proposers enter it alike, and no
proposal leaves a trace. So proposals follow from what was told, and from the seed and the number.
"""

from __future__ import annotations

import random
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Protocol

import numpy as np
import optuna
from numpy.typing import NDArray
from optuna.samplers import (
    GPSampler,
    NSGAIIISampler,
    NSGAIISampler,
    QMCSampler,
    RandomSampler,
    TPESampler,
)
from optuna.samplers.nsgaii import UniformCrossover
from optuna.trial import FrozenTrial

from search.problem.space import ScheduleSpace
from search.problem.trial import Outcome, Proposal
from search.proposers.cma import CmaModel
from search.proposers.grid import GridOrder
from search.proposers.memory import OutcomeMemory
from search.proposers.parameters import STUDY_NAME, BlockParameters, Draft, draw_seed, new_study

# How many outcomes must be known before a model says more than a random schedule does.
_FIRST_TPE = 16
_FIRST_GP = 10
# How many outcomes are held at most: TPE takes time linear in them, a Gaussian process cubic.
_MOST_TPE = 600
_MOST_GP = 128
_POPULATION = 16
# A sampler that answers so often with what is known already has run dry for this trial.
_MOST_REPEATS = 8
_MOST_REPEATS_GP = 2  # an answer takes about a second
# How many of TPE's proposals keep the first blocks of a good schedule.
_HEAD_RATE = 0.9


class SampledProposer:
    """Asks an Optuna sampler for one integer level per block that may skip.

    Args:
        space: Where schedules come from; proposals outside it are repaired.
        seed: Of all random choices.
        sampler: `tpe`, `gp`, `nsga2`, `nsga3`, `cmaes`, `qmc`, `random` or `grid`.

    Raises:
        ConfigError: The space has too many blocks for a grid.
    """

    leads = False

    def __init__(self, space: ScheduleSpace, seed: int, sampler: str = "tpe") -> None:
        self.name = sampler
        self._space = space
        self._seed = seed
        self._number = -1
        self._repeats = 0
        with _silence():
            self._model = _MODELS[sampler](space, seed) if space.free_blocks and space.top else None

    def ask(self, number: int) -> Proposal:
        """See `Proposer.ask`."""
        self._repeats = self._repeats + 1 if number == self._number else 0
        self._number = number
        rng = random.Random(f"{self.name}/{self._seed}/{number}/{self._repeats}")
        if self._model is None:
            return Proposal(self._space.repair([0] * self._space.n_blocks, rng))
        draft = None
        if self._repeats < _MOST_REPEATS:
            with _silence():
                draft = self._model.propose(number, self._repeats, rng)
        if draft is None:
            return Proposal(self._space.sample(rng))
        levels: list[float] = [0] * self._space.n_blocks
        for block, level in zip(self._space.free_blocks, draft.levels, strict=True):
            levels[block] = level
        return Proposal(self._space.repair(levels, rng), draft.parents)

    def tell(self, outcome: Outcome) -> None:
        """See `Proposer.tell`."""
        if self._model is None or not self._space.contains(outcome.levels):
            return
        if outcome.is_finite:
            with _silence():
                self._model.tell(outcome)


@contextmanager
def _silence() -> Iterator[None]:
    """Keeps Optuna's notes on experimental arguments and new studies from the user, and its settings as they were."""
    verbosity = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        optuna.logging.set_verbosity(verbosity)


class _Model(Protocol):
    """Proposes levels of the free blocks."""

    def propose(self, number: int, repeats: int, rng: random.Random) -> Draft | None:
        """Levels for trial `number`, asked for `repeats` times before; None while random ones are as good."""

    def tell(self, outcome: Outcome) -> None:
        """Learn from an outcome of finite figures."""


class _Parzen:
    """Multi-objective TPE (Ozaki et al. 2022); penalties are constraints (Watanabe and Hutter 2022).

    Blocks are modelled jointly where the overall sparsity is given, as there each takes what others give, and one by
    one where it is not, which is Optuna's default for several objectives. Then most proposals keep the first blocks of
    one of the best outcomes: what is drawn for the others fits to them better than to blocks drawn apart, and
    evaluators need not compute them again.
    """

    def __init__(self, space: ScheduleSpace, seed: int) -> None:
        self._jointly = space.target_sparsity is not None
        self._parameters = BlockParameters(space)
        self._memory = OutcomeMemory(_MOST_TPE)
        self._study: tuple[optuna.Study, FrozenTrial] | None = None

    def propose(self, number: int, repeats: int, rng: random.Random) -> Draft | None:
        if self._study is None or len(self._memory) < _FIRST_TPE:
            return None
        study, trial = self._study
        sampler = TPESampler(seed=draw_seed(rng), n_startup_trials=1, multivariate=self._jointly, constant_liar=False)
        # A study caches its trials until it is asked itself, a newly opened one has all of them.
        study = optuna.load_study(study_name=STUDY_NAME, storage=study._storage, sampler=sampler)
        levels = self._parameters.levels(sampler, study, trial, self._jointly)
        if self._jointly or rng.random() >= _HEAD_RATE:
            return Draft(levels)
        cut = rng.randrange(len(levels))
        return Draft(self._parameters.of(rng.choice(self._memory.best()))[:cut] + levels[cut:])

    def tell(self, outcome: Outcome) -> None:
        if self._memory.add(outcome) or self._study is None:
            self._study = new_study(len(outcome.values))
            news = list(self._memory)
        else:
            news = [outcome]
        for one in news:
            self._study[0].add_trial(self._parameters.trial(one, constraints={"penalty": one.penalty}))


class _GaussianProcess:
    """Expected hypervolume improvement under Gaussian processes, fitted to a front and the latest outcomes.

    It is climbed over real numbers, which repair rounds: over integers Optuna searches block by block, far slower.
    """

    def __init__(self, space: ScheduleSpace, seed: int) -> None:
        self._parameters = BlockParameters(space, real=True)
        self._memory = OutcomeMemory(_MOST_GP)

    def propose(self, number: int, repeats: int, rng: random.Random) -> Draft | None:
        outcomes = list(self._memory)
        if len(outcomes) < _FIRST_GP or repeats > _MOST_REPEATS_GP:
            return None
        study, trial = new_study(len(outcomes[0].values))
        # Each constraint costs a process of its own, and one that is kept everywhere has nothing to teach.
        is_constrained = any(outcome.penalty > 0 for outcome in outcomes)
        for one in outcomes:
            study.add_trial(
                self._parameters.trial(one, constraints={"penalty": one.penalty} if is_constrained else None)
            )
        return Draft(self._parameters.levels(GPSampler(seed=draw_seed(rng), n_startup_trials=1), study, trial))

    def tell(self, outcome: Outcome) -> None:
        self._memory.add(outcome)


class _Crossover(UniformCrossover):
    """Optuna's default one, which remembers what it crossed last: [parents, blocks]; Optuna keeps it nowhere."""

    crossed: NDArray[np.float64] | None = None

    def crossover(
        self,
        parents_params: NDArray[np.float64],
        rng: np.random.RandomState,
        study: optuna.Study,
        search_space_bounds: NDArray[np.float64],
    ) -> NDArray[np.float64]:
        self.crossed = parents_params
        return super().crossover(parents_params, rng, study, search_space_bounds)


class _Parents(list[FrozenTrial]):
    """A generation that remembers which of them was copied: the one parent of a child that comes of no crossover."""

    copied: FrozenTrial | None = None

    def __getitem__(self, place: Any) -> Any:
        self.copied = super().__getitem__(place)
        return self.copied


class _NSGAII(NSGAIISampler):
    """NSGA-II whose generations are handed to it."""

    generation: Sequence[FrozenTrial] = ()
    parents: _Parents

    def get_trial_generation(self, study: optuna.Study, trial: FrozenTrial) -> int:
        return 1

    def get_population(self, study: optuna.Study, generation: int) -> list[FrozenTrial]:
        return list(self.generation)

    def get_parent_population(self, study: optuna.Study, generation: int) -> list[FrozenTrial]:
        return self.parents


class _NSGAIII(NSGAIIISampler):
    """NSGA-III whose generations are handed to it."""

    generation: Sequence[FrozenTrial] = ()
    parents: _Parents
    get_trial_generation = _NSGAII.get_trial_generation
    get_population = _NSGAII.get_population
    get_parent_population = _NSGAII.get_parent_population


class _Generations:
    """A genetic algorithm; so many outcomes as the population has members are a generation, whoever proposed them."""

    def __init__(self, space: ScheduleSpace, seed: int, sampler: type[_NSGAII] | type[_NSGAIII]) -> None:
        self._sampler = sampler
        self._seed = seed
        self._parameters = BlockParameters(space)
        self._study: tuple[optuna.Study, FrozenTrial] | None = None
        self._n_told = 0
        self._generation: list[FrozenTrial] = []
        self._parents: list[FrozenTrial] = []

    def propose(self, number: int, repeats: int, rng: random.Random) -> Draft | None:
        if self._study is None or not self._parents:
            return None
        crossover = _Crossover()
        sampler = self._at_work(draw_seed(rng), crossover)
        levels = self._parameters.levels(sampler, *self._study)
        parents = [] if crossover.crossed is None else crossover.crossed.tolist()
        if not parents and sampler.parents.copied is not None:
            parents = [[sampler.parents.copied.params[name] for name in self._parameters.distributions]]
        return Draft(levels, tuple(dict.fromkeys(map(self._parameters.of_all_blocks, parents))))

    def tell(self, outcome: Outcome) -> None:
        self._study = self._study or new_study(len(outcome.values))
        trial = self._parameters.trial(outcome, constraints={"penalty": outcome.penalty})
        trial.number = self._n_told = self._n_told + 1
        self._generation.append(trial)
        if len(self._generation) == _POPULATION:
            rng = random.Random(f"{self._seed}/select/{self._n_told}")
            self._parents = self._at_work(draw_seed(rng)).select_parent(self._study[0], 1)
            self._generation = []

    def _at_work(self, seed: int, crossover: _Crossover | None = None) -> _NSGAII | _NSGAIII:
        sampler = self._sampler(seed=seed, population_size=_POPULATION, crossover=crossover)
        sampler.generation, sampler.parents = self._generation, _Parents(self._parents)
        return sampler


class _Random:
    """Every block on its own, all levels alike."""

    def __init__(self, space: ScheduleSpace, seed: int) -> None:
        self._parameters = BlockParameters(space)
        self._study = new_study()

    def propose(self, number: int, repeats: int, rng: random.Random) -> Draft | None:
        return Draft(self._parameters.levels(RandomSampler(draw_seed(rng)), *self._study))

    def tell(self, outcome: Outcome) -> None:
        pass


class _Sequence:
    """A scrambled Sobol sequence: trial n gets its point n; each time that it is asked again, another scrambling's."""

    def __init__(self, space: ScheduleSpace, seed: int) -> None:
        self._parameters = BlockParameters(space)
        self._seed = seed

    def propose(self, number: int, repeats: int, rng: random.Random) -> Draft | None:
        seed = draw_seed(random.Random(f"{self._seed}/sequence/{repeats}"))
        study, trial = new_study()
        sampler = QMCSampler(seed=seed, scramble=True)
        point = self._parameters.levels(sampler, study, trial)
        if number == 0:
            return Draft(point)
        # The sampler counts in an attribute of the study how far along its sequence it is.
        storage = study._storage
        [counter] = storage.get_study_system_attrs(study._study_id)
        storage.set_study_system_attr(study._study_id, counter, number - 1)
        return Draft(self._parameters.levels(sampler, study, trial))

    def tell(self, outcome: Outcome) -> None:
        pass


_MODELS: Mapping[str, Callable[[ScheduleSpace, int], _Model]] = {
    "tpe": _Parzen,
    "gp": _GaussianProcess,
    "nsga2": lambda space, seed: _Generations(space, seed, _NSGAII),
    "nsga3": lambda space, seed: _Generations(space, seed, _NSGAIII),
    "cmaes": CmaModel,
    "qmc": _Sequence,
    "random": _Random,
    "grid": GridOrder,
}
