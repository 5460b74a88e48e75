"""Proposals from Optuna's samplers.

Optuna's study is used as what a sampler reads, never as what is asked: outcomes of all proposers enter it alike, and no
proposal leaves a trace. So proposals follow from what was told, and from the seed and the number.
"""

from __future__ import annotations

import math
import random
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Protocol

import optuna
from optuna.distributions import BaseDistribution, FloatDistribution, IntDistribution
from optuna.samplers import (
    BaseSampler,
    CmaEsSampler,
    GPSampler,
    NSGAIIISampler,
    NSGAIISampler,
    QMCSampler,
    RandomSampler,
    TPESampler,
)
from optuna.trial import FrozenTrial, create_trial

from search.outcome import Levels, Outcome
from search.proposers.grid import GridOrder
from search.proposers.memory import OutcomeMemory
from search.space import ScheduleSpace

# How many outcomes must be known before a model says more than a random schedule does.
_FIRST_TPE = 16
_FIRST_GP = 10
# How many outcomes are held at most: TPE takes time linear in them, a Gaussian process cubic.
_MOST_TPE = 600
_MOST_GP = 128
_POPULATION = 16
# Weight of the sum in the augmented Tchebycheff function (Knowles 2006, equation 2).
_AUGMENTATION = 0.05
# A whole evaluation of a legal schedule is never scalarised to this much.
_WORSE_THAN_ALL = 2.0
# A sampler that answers so often with what is known already has run dry for this trial.
_MOST_REPEATS = 8
_MOST_REPEATS_GP = 2  # an answer takes about a second
_STUDY = "outcomes"
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

    def __init__(self, space: ScheduleSpace, seed: int, sampler: str = "tpe") -> None:
        self.name = sampler
        self._space = space
        self._seed = seed
        self._number = -1
        self._repeats = 0
        with _silence():
            self._model = _MODELS[sampler](space, seed) if space.free_blocks and space.top else None

    def ask(self, number: int) -> Levels:
        """See `Proposer.ask`."""
        self._repeats = self._repeats + 1 if number == self._number else 0
        self._number = number
        rng = random.Random(f"{self.name}/{self._seed}/{number}/{self._repeats}")
        if self._model is None:
            return self._space.repair([0] * self._space.n_blocks, rng)
        free = None
        if self._repeats < _MOST_REPEATS:
            with _silence():
                free = self._model.propose(number, self._repeats, rng)
        if free is None:
            return self._space.sample(rng)
        levels: list[float] = [0] * self._space.n_blocks
        for block, level in zip(self._space.free_blocks, free, strict=True):
            levels[block] = level
        return self._space.repair(levels, rng)

    def tell(self, outcome: Outcome) -> None:
        """See `Proposer.tell`."""
        if self._model is not None and all(math.isfinite(value) for value in (*outcome.values, outcome.penalty)):
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

    def propose(self, number: int, repeats: int, rng: random.Random) -> Sequence[float] | None:
        """Levels for trial `number`, asked for `repeats` times before; None while random ones are as good."""

    def tell(self, outcome: Outcome) -> None:
        """Learn from an outcome of finite figures."""


class _Parameters:
    """The free blocks as Optuna's parameters: steps of sparsity up to the top; `real` ones take any value between."""

    def __init__(self, space: ScheduleSpace, real: bool = False) -> None:
        self._blocks = space.free_blocks
        levels = FloatDistribution(0.0, space.top) if real else IntDistribution(0, space.top)
        # Some samplers sort parameters by name.
        self.distributions: dict[str, BaseDistribution] = {f"s_{block:04}": levels for block in self._blocks}

    def trial(self, outcome: Outcome, values: Sequence[float] | None = None, **attributes: Any) -> FrozenTrial:
        """A finished trial, its penalty as the constraint."""
        return create_trial(
            params={name: outcome.levels[block] for name, block in zip(self.distributions, self._blocks, strict=True)},
            distributions=self.distributions,
            values=list(outcome.values if values is None else values),
            **attributes,
        )

    def of(self, outcome: Outcome) -> list[float]:
        """The levels of the free blocks."""
        return [outcome.levels[block] for block in self._blocks]

    def levels(
        self, sampler: BaseSampler, study: optuna.Study, trial: FrozenTrial, jointly: bool = True
    ) -> list[float]:
        """What a sampler suggests: what it does not suggest jointly, one parameter after the other."""
        params = sampler.sample_relative(study, trial, self.distributions) if jointly else {}
        return [
            params[name] if name in params else sampler.sample_independent(study, trial, name, distribution)
            for name, distribution in self.distributions.items()
        ]


def _new_study(n_objectives: int = 1) -> tuple[optuna.Study, FrozenTrial]:
    """A study in memory, and the running trial in it that samplers suggest parameters for."""
    study = optuna.create_study(study_name=_STUDY, directions=["minimize"] * n_objectives, sampler=RandomSampler(0))
    study.ask()
    return study, study.get_trials()[0]


def _draw_seed(rng: random.Random) -> int:
    return rng.randrange(2**32)


class _Parzen:
    """Multi-objective TPE (Ozaki et al. 2022); penalties are constraints (Watanabe and Hutter 2022).

    Blocks are modelled jointly where the overall sparsity is given, as there each takes what others give, and one by
    one where it is not, which is Optuna's default for several objectives. Then most proposals keep the first blocks of
    one of the best outcomes: what is drawn for the others fits to them better than to blocks drawn apart, and
    evaluators need not compute them again.
    """

    def __init__(self, space: ScheduleSpace, seed: int) -> None:
        self._jointly = space.target_sparsity is not None
        self._parameters = _Parameters(space)
        self._memory = OutcomeMemory(_MOST_TPE)
        self._study: tuple[optuna.Study, FrozenTrial] | None = None

    def propose(self, number: int, repeats: int, rng: random.Random) -> Sequence[float] | None:
        if self._study is None or len(self._memory) < _FIRST_TPE:
            return None
        study, trial = self._study
        sampler = TPESampler(seed=_draw_seed(rng), n_startup_trials=1, multivariate=self._jointly, constant_liar=False)
        # A study caches its trials until it is asked itself, a newly opened one has all of them.
        study = optuna.load_study(study_name=_STUDY, storage=study._storage, sampler=sampler)
        levels = self._parameters.levels(sampler, study, trial, self._jointly)
        if self._jointly or rng.random() >= _HEAD_RATE:
            return levels
        cut = rng.randrange(len(levels))
        return self._parameters.of(rng.choice(self._memory.best()))[:cut] + levels[cut:]

    def tell(self, outcome: Outcome) -> None:
        if self._memory.add(outcome) or self._study is None:
            self._study = _new_study(len(outcome.values))
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
        self._parameters = _Parameters(space, real=True)
        self._memory = OutcomeMemory(_MOST_GP)

    def propose(self, number: int, repeats: int, rng: random.Random) -> Sequence[float] | None:
        outcomes = list(self._memory)
        if len(outcomes) < _FIRST_GP or repeats > _MOST_REPEATS_GP:
            return None
        study, trial = _new_study(len(outcomes[0].values))
        # Each constraint costs a process of its own, and one that is kept everywhere has nothing to teach.
        is_constrained = any(outcome.penalty > 0 for outcome in outcomes)
        for one in outcomes:
            study.add_trial(
                self._parameters.trial(one, constraints={"penalty": one.penalty} if is_constrained else None)
            )
        return self._parameters.levels(GPSampler(seed=_draw_seed(rng), n_startup_trials=1), study, trial)

    def tell(self, outcome: Outcome) -> None:
        self._memory.add(outcome)


class _NSGAII(NSGAIISampler):
    """NSGA-II whose generations are handed to it."""

    generation: Sequence[FrozenTrial] = ()
    parents: Sequence[FrozenTrial] = ()

    def get_trial_generation(self, study: optuna.Study, trial: FrozenTrial) -> int:
        return 1

    def get_population(self, study: optuna.Study, generation: int) -> list[FrozenTrial]:
        return list(self.generation)

    def get_parent_population(self, study: optuna.Study, generation: int) -> list[FrozenTrial]:
        return list(self.parents)


class _NSGAIII(NSGAIIISampler):
    """NSGA-III whose generations are handed to it."""

    generation: Sequence[FrozenTrial] = ()
    parents: Sequence[FrozenTrial] = ()
    get_trial_generation = _NSGAII.get_trial_generation
    get_population = _NSGAII.get_population
    get_parent_population = _NSGAII.get_parent_population


class _Generations:
    """A genetic algorithm; so many outcomes as the population has members are a generation, whoever proposed them."""

    def __init__(self, space: ScheduleSpace, seed: int, sampler: type[_NSGAII] | type[_NSGAIII]) -> None:
        self._sampler = sampler
        self._seed = seed
        self._parameters = _Parameters(space)
        self._study: tuple[optuna.Study, FrozenTrial] | None = None
        self._n_told = 0
        self._generation: list[FrozenTrial] = []
        self._parents: list[FrozenTrial] = []

    def propose(self, number: int, repeats: int, rng: random.Random) -> Sequence[float] | None:
        if self._study is None or not self._parents:
            return None
        return self._parameters.levels(self._at_work(_draw_seed(rng)), *self._study)

    def tell(self, outcome: Outcome) -> None:
        self._study = self._study or _new_study(len(outcome.values))
        trial = self._parameters.trial(outcome, constraints={"penalty": outcome.penalty})
        trial.number = self._n_told = self._n_told + 1
        self._generation.append(trial)
        if len(self._generation) == _POPULATION:
            rng = random.Random(f"{self._seed}/select/{self._n_told}")
            self._parents = self._at_work(_draw_seed(rng)).select_parent(self._study[0], 1)
            self._generation = []

    def _at_work(self, seed: int) -> _NSGAII | _NSGAIII:
        sampler = self._sampler(seed=seed, population_size=_POPULATION)
        sampler.generation, sampler.parents = self._generation, self._parents
        return sampler


class _Evolution:
    """CMA-ES with margin (Hamano et al. 2022) on one figure made of all objectives.

    That figure is the first objective if the overall sparsity is given, which leaves little to trade. Otherwise it is
    the augmented Tchebycheff function (Knowles 2006) of the objectives, each scaled to the range that outcomes had
    so far, under weights from the seed: a search for one point of the front.

    So many outcomes as the population has members are a generation, whoever proposed them: those of others are injected
    as it is (Hansen 2011). Optuna keeps the state of CMA-ES in attributes of trials, and here it goes from generation
    to generation.
    """

    def __init__(self, space: ScheduleSpace, seed: int) -> None:
        self._parameters = _Parameters(space)
        self._space = space
        self._seed = seed
        self._population_size = 4 + math.floor(3 * math.log(len(space.free_blocks)))
        self._state: dict[str, Any] = {}
        self._n_generations = 0
        self._generation: list[Outcome] = []
        self._bounds: list[tuple[float, float]] | None = None

    def propose(self, number: int, repeats: int, rng: random.Random) -> Sequence[float] | None:
        if len(self._space.free_blocks) == 1:  # Nothing can covary with itself alone.
            return None
        study, trial = _new_study()
        # A trial of no generation only carries the state.
        carrier = Outcome((0,) * self._space.n_blocks, (0.0,))
        study.add_trial(self._parameters.trial(carrier, system_attrs=self._state))
        return self._parameters.levels(self._sampler(rng), study, trial)

    def tell(self, outcome: Outcome) -> None:
        if len(self._space.free_blocks) == 1:
            return
        if outcome.penalty == 0:
            bounds = self._bounds or [(value, value) for value in outcome.values]
            self._bounds = [
                (min(low, value), max(high, value)) for (low, high), value in zip(bounds, outcome.values, strict=True)
            ]
        self._generation.append(outcome)
        if len(self._generation) < self._population_size:
            return
        study, trial = _new_study()
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
        return CmaEsSampler(seed=_draw_seed(rng), with_margin=True, popsize=self._population_size)

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


class _Random:
    """Every block on its own, all levels alike."""

    def __init__(self, space: ScheduleSpace, seed: int) -> None:
        self._parameters = _Parameters(space)
        self._study = _new_study()

    def propose(self, number: int, repeats: int, rng: random.Random) -> Sequence[float] | None:
        return self._parameters.levels(RandomSampler(_draw_seed(rng)), *self._study)

    def tell(self, outcome: Outcome) -> None:
        pass


class _Sequence:
    """A scrambled Sobol sequence: trial n gets its point n; each time that it is asked again, another scrambling's."""

    def __init__(self, space: ScheduleSpace, seed: int) -> None:
        self._parameters = _Parameters(space)
        self._seed = seed

    def propose(self, number: int, repeats: int, rng: random.Random) -> Sequence[float] | None:
        seed = _draw_seed(random.Random(f"{self._seed}/sequence/{repeats}"))
        study, trial = _new_study()
        sampler = QMCSampler(seed=seed, scramble=True)
        point = self._parameters.levels(sampler, study, trial)
        if number == 0:
            return point
        # The sampler counts in an attribute of the study how far along its sequence it is.
        storage = study._storage
        [counter] = storage.get_study_system_attrs(study._study_id)
        storage.set_study_system_attr(study._study_id, counter, number - 1)
        return self._parameters.levels(sampler, study, trial)

    def tell(self, outcome: Outcome) -> None:
        pass


_MODELS: Mapping[str, Callable[[ScheduleSpace, int], _Model]] = {
    "tpe": _Parzen,
    "gp": _GaussianProcess,
    "nsga2": lambda space, seed: _Generations(space, seed, _NSGAII),
    "nsga3": lambda space, seed: _Generations(space, seed, _NSGAIII),
    "cmaes": _Evolution,
    "qmc": _Sequence,
    "random": _Random,
    "grid": GridOrder,
}
