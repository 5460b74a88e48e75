"""DEAP's genetic operators as an Optuna sampler, for any search space."""

from __future__ import annotations

import math
import random
import threading
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.samplers import BaseSampler, RandomSampler
from optuna.samplers._base import _process_constraints_after_trial
from optuna.search_space import IntersectionSearchSpace
from optuna.storages import BaseStorage
from optuna.study import Study, StudyDirection
from optuna.trial import FrozenTrial, TrialState

from search.proposers.operators import Crossover, Gene, Individual, Population, Selection, Variation, parent
from studies.optuna_storage.attributes import constraint_violation

# A trial's parameters with a choice, by name, as Optuna stores them: numbers, or places among the choices.
_Stored = tuple[tuple[str, float], ...]

# Most tries for a child that is not in the population.
_MOST_TRIES = 8


class DEAPSampler(BaseSampler):
    """Steady-state genetic algorithm: every trial may become a parent as soon as it is told.

    The population is what NSGA-II or NSGA-III keeps of the study's complete trials, whoever ran them, so that several
    processes may share a study. Until there is one, parameters are random. Like `optuna.samplers.NSGAIISampler` it
    varies the parameters that all complete trials have in common, and draws the others at random; where constraints (of
    `Trial.set_constraint`, or of `constraints_func`) are violated, the smaller violation wins whatever the values.
    Trials with an infinite value are no parents: they compare with no other.

    Args:
        population_size: Most trials in the population; early in a study there are fewer.
        seed: Seed of all random choices.
        selection: Survival selection: `nsga2` or, for three objectives and more, `nsga3`.
        crossover: Crossover: `sbx`, `uniform`, `one_point`, or `mixed`, which draws one for each child.
        crossover_rate: Probability of crossover.
        mutation_rate: Probability that a parameter mutates; None for two parameters a child on average.
        switch_rate: Probability of level switches instead, which move an amount between parameters of equal numeric
            distributions and keep their mean.
        constraints_func: Constraints of a finished trial; those greater than 0 are violated.

    Raises:
        ValueError: A name is unknown, a rate not in [0, 1], or the population smaller than 2.
    """

    def __init__(
        self,
        population_size: int = 50,
        seed: int | None = None,
        *,
        selection: Selection = "nsga2",
        crossover: Crossover = "mixed",
        crossover_rate: float = 0.9,
        mutation_rate: float | None = None,
        switch_rate: float = 0.2,
        constraints_func: Callable[[FrozenTrial], Sequence[float]] | None = None,
    ) -> None:
        # Refuses wrong settings now, not at the first trial.
        Population[_Stored](population_size, selection)
        self._population_size = population_size
        self._selection: Selection = selection
        self._variation = Variation(crossover, crossover_rate, mutation_rate, switch_rate)
        self._constraints_func = constraints_func
        self._seed = seed
        self._rng = random.Random(seed)
        self._random_sampler = RandomSampler(seed)
        self._progress: _Progress | None = None
        self._lock = threading.Lock()

    def __getstate__(self) -> dict[str, Any]:
        """Everything but the lock, and but what the study's storage knows better."""
        return {name: value for name, value in self.__dict__.items() if name not in ("_lock", "_progress")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """A copy in another process must not repeat what this one draws, unless a seed was asked for."""
        self.__dict__.update(state, _lock=threading.Lock(), _progress=None)
        if self._seed is None:
            self.reseed_rng()

    def reseed_rng(self) -> None:
        """See `BaseSampler.reseed_rng`."""
        self._rng.seed()
        self._random_sampler.reseed_rng()

    def infer_relative_search_space(self, study: Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        """See `BaseSampler.infer_relative_search_space`."""
        with self._lock:
            shared = self._progress_of(study).space.calculate(study, use_cache=True)
        return {name: distribution for name, distribution in shared.items() if not distribution.single()}

    def sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        """See `BaseSampler.sample_relative`."""
        if not search_space:
            return {}
        genotype = _Genotype(search_space)
        with self._lock:
            return self._child(self._population(study), genotype)

    def sample_independent(
        self, study: Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        """See `BaseSampler.sample_independent`."""
        return self._random_sampler.sample_independent(study, trial, param_name, param_distribution)

    def after_trial(self, study: Study, trial: FrozenTrial, state: TrialState, values: Sequence[float] | None) -> None:
        """See `BaseSampler.after_trial`."""
        if self._constraints_func is not None:
            _process_constraints_after_trial(self._constraints_func, study, trial, state)

    def _progress_of(self, study: Study) -> _Progress:
        if self._progress is None or not self._progress.is_of(study):
            population: Population[_Stored] = Population(self._population_size, self._selection)
            self._progress = _Progress(study._storage, study._study_id, population)
        return self._progress

    def _population(self, study: Study) -> Population[_Stored]:
        """The population after all trials that are complete by now."""
        progress = self._progress_of(study)
        told = progress.newly_complete(study._get_trials(deepcopy=False, use_cache=True))
        if told:
            signs = [-1.0 if direction == StudyDirection.MAXIMIZE else 1.0 for direction in study.directions]
            progress.population.tell([_individual(trial, signs) for trial in told], self._rng)
        return progress.population

    def _child(self, population: Population[_Stored], genotype: _Genotype) -> dict[str, Any]:
        """Parameters of a new trial."""
        stored = {one: values for one in population.members if (values := genotype.stored(one)) is not None}
        candidates = list(stored)
        if len(candidates) < population.n_founders:
            return genotype.parameters([gene.sample(self._rng) for gene in genotype.genes])
        # With parameters beside those of the space, which will be drawn at random, nothing is known yet.
        known = {values for one, values in stored.items() if len(one.genome) == len(values)}
        for _ in range(_MOST_TRIES):
            mother, father = (genotype.numbers(stored[parent(candidates, self._rng)]) for _ in range(2))
            child = genotype.parameters(self._variation.child(mother, father, genotype.genes, self._rng))
            if genotype.stored_of(child) not in known:
                break
        return child


@dataclass
class _Progress:
    """The knowledge of a study so far.

    Attributes:
        storage: Storage of the study.
        study_id: Number of the study in it.
        population: Trials that may be parents.
        space: Parameters that all complete trials have in common.
        n_seen: Number of trials looked at.
        unfinished: Numbers of those among them that had not finished.
    """

    storage: BaseStorage
    study_id: int
    population: Population[_Stored]
    space: IntersectionSearchSpace = field(default_factory=IntersectionSearchSpace)
    n_seen: int = 0
    unfinished: list[int] = field(default_factory=list)

    def is_of(self, study: Study) -> bool:
        """True if this is the study's progress."""
        return self.storage is study._storage and self.study_id == study._study_id

    def newly_complete(self, trials: Sequence[FrozenTrial]) -> list[FrozenTrial]:
        """Trials that are complete, and were not when this was called before.

        Args:
            trials: All trials of the study, by number; another thread may have seen later ones already.
        """
        looked_at = [*self.unfinished, *range(self.n_seen, len(trials))]
        self.n_seen = max(self.n_seen, len(trials))
        self.unfinished = [
            number for number in looked_at if number >= len(trials) or not trials[number].state.is_finished()
        ]
        return [
            trials[number]
            for number in looked_at
            if number < len(trials) and trials[number].state == TrialState.COMPLETE
        ]


class _Genotype:
    """A search space as vectors of numbers, one per parameter."""

    def __init__(self, space: dict[str, BaseDistribution]) -> None:
        self._space = space
        self.genes = [_gene(distribution) for distribution in space.values()]

    def stored(self, individual: Individual[_Stored]) -> tuple[float, ...] | None:
        """An individual's parameters, as they are stored; None if it has not all of them."""
        stored = dict(individual.genome)
        return tuple(stored[name] for name in self._space) if self._space.keys() <= stored.keys() else None

    def stored_of(self, parameters: dict[str, Any]) -> tuple[float, ...]:
        """Parameters, as they would be stored."""
        return tuple(distribution.to_internal_repr(parameters[name]) for name, distribution in self._space.items())

    def numbers(self, stored: Iterable[float]) -> list[float]:
        """The vector of stored parameters."""
        return [_number(distribution, value) for distribution, value in zip(self._space.values(), stored, strict=True)]

    def parameters(self, numbers: Iterable[float]) -> dict[str, Any]:
        """The parameters of a vector."""
        named = zip(self._space.items(), numbers, strict=True)
        return {name: _value(distribution, number) for (name, distribution), number in named}


def _individual(trial: FrozenTrial, signs: Iterable[float]) -> Individual[_Stored]:
    stored = tuple(
        (name, distribution.to_internal_repr(trial.params[name]))
        for name, distribution in sorted(trial.distributions.items())
        if not distribution.single()
    )
    values = tuple(sign * value for sign, value in zip(signs, trial.values, strict=True))
    return Individual(stored, values, constraint_violation(trial.constraints))


def _gene(distribution: BaseDistribution) -> Gene:
    """Gene of a parameter: a step on a grid, a logarithm, or the parameter itself."""
    if isinstance(distribution, CategoricalDistribution):
        return Gene.steps(len(distribution.choices), nominal=True)
    assert isinstance(distribution, FloatDistribution | IntDistribution)
    if distribution.log:
        margin = 0.5 if isinstance(distribution, IntDistribution) else 0.0
        return Gene(math.log(distribution.low - margin), math.log(distribution.high + margin), peers=distribution)
    if distribution.step is None:
        return Gene(distribution.low, distribution.high, peers=distribution)
    return Gene.steps(round((distribution.high - distribution.low) / distribution.step) + 1, peers=distribution)


def _number(distribution: BaseDistribution, stored: float) -> float:
    """The number of a parameter that Optuna stored."""
    if isinstance(distribution, CategoricalDistribution):
        return stored
    assert isinstance(distribution, FloatDistribution | IntDistribution)
    if distribution.log:
        return math.log(stored)
    return stored if distribution.step is None else (stored - distribution.low) / distribution.step


def _value(distribution: BaseDistribution, number: float) -> Any:
    """The parameter of a number that counts."""
    if isinstance(distribution, CategoricalDistribution):
        return distribution.choices[round(number)]
    assert isinstance(distribution, FloatDistribution | IntDistribution)
    if distribution.log:
        value = math.exp(number)
    else:
        value = number if distribution.step is None else distribution.low + round(number) * distribution.step
    value = min(distribution.high, max(distribution.low, value))
    return round(value) if isinstance(distribution, IntDistribution) else float(value)
