"""Adapter for Optuna's samplers: a study in memory that holds the trials of all proposers."""

from __future__ import annotations

import random
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import optuna
from numpy.typing import NDArray
from optuna.distributions import BaseDistribution, FloatDistribution, IntDistribution
from optuna.samplers import BaseSampler, GPSampler, NSGAIIISampler, NSGAIISampler, TPESampler
from optuna.samplers.nsgaii import UniformCrossover
from optuna.trial import FrozenTrial, TrialState, create_trial

from search.problem.space import ScheduleSpace
from search.proposers.memory import TrialMemory
from search.proposers.model_proposer import Draft, draw_seed
from studies import Trial

SamplerFactory = Callable[[int], BaseSampler]
"""Makes a sampler from a seed."""

# Most trials that TPE holds: its time is linear in them.
_MOST = 600
# Trials told before TPE proposes.
_FIRST_TPE = 16
# Share of TPE's proposals that keep the first blocks of a good schedule.
_HEAD_RATE = 0.9
# Members of a population, and most trials that breeding holds.
_POPULATION = 16
_MOST_BRED = 128


class SamplerModel:
    """Asks an Optuna sampler for one parameter per free block: its grid index.

    Each request and each trial told gets a new sampler, seeded by the trial, so that proposals follow from the trials
    told, the seed and the number. A sampler must therefore find its state in the study, as if several processes shared
    it. Samplers that leave attributes on the trials they fill in (genetic algorithms note the generation) find these
    on the trials told, too.

    The constraint violation, which includes low fidelity, is a constraint from the first trial on that has one:
    samplers take longer with constraints.

    Args:
        space: Space of schedules.
        seed: Seed of all random choices.
        make: Makes the sampler.
        first: Trials told before the sampler is asked.
        most: Size of the study; see `TrialMemory`.
        most_repeats: Further requests for one trial.
        real: True for real parameters, which repair rounds.
        generation: Number of consecutive trials with equal sampler attributes; 0 where none are needed, None to find
            out.
    """

    def __init__(
        self,
        space: ScheduleSpace,
        seed: int,
        make: SamplerFactory,
        *,
        first: int = 1,
        most: int = _MOST,
        most_repeats: int | None = None,
        real: bool = False,
        generation: int | None = None,
    ) -> None:
        self._space = space
        self._seed = seed
        self._make = make
        self._first = first
        self._most_repeats = most_repeats
        self._generation = generation
        self._memory = TrialMemory(most)
        self._is_constrained = False
        self._study: optuna.Study | None = None
        self._n_told = 0
        self._attributes: dict[str, Any] = {}
        index = FloatDistribution(0.0, space.top) if real else IntDistribution(0, space.top)
        # Some samplers sort parameters by name.
        self._parameters: dict[str, BaseDistribution] = {f"s_{block:04}": index for block in space.free_blocks}

    def propose(self, number: int, repeats: int, rng: random.Random) -> Draft | None:
        """See `ScheduleModel.propose`."""
        if len(self._memory) < self._first or (self._most_repeats is not None and repeats > self._most_repeats):
            return None
        seed = draw_seed(rng)
        with silence():
            if self._study is None:
                self._rebuild()
            asked = self._ask(seed)
            if self._generation is None and asked.system_attrs:
                self._generation = 1
                self._rebuild()
                asked = self._ask(seed)
        return Draft([asked.params[name] for name in self._parameters])

    def tell(self, trial: Trial) -> None:
        """See `ScheduleModel.tell`."""
        is_thinned = self._memory.add(trial)
        breaks_first = trial.total_violation > 0 and not self._is_constrained
        self._is_constrained |= breaks_first
        if is_thinned or breaks_first:
            self._study = None  # until it is asked
        if self._study is not None:
            with silence():
                self._add(trial)

    def _ask(self, seed: int) -> FrozenTrial:
        """A failed trial that the sampler filled in."""
        assert self._study is not None
        self._study.sampler = self._make(seed)
        return self._study.tell(self._study.ask(self._parameters), state=TrialState.FAIL)

    def _rebuild(self) -> None:
        n_objectives = len(next(iter(self._memory)).values or ())
        self._study = optuna.create_study(directions=["minimize"] * n_objectives, sampler=self._make(0))
        self._n_told, self._attributes = 0, {}
        self._look_ahead()
        for trial in self._memory:
            self._add(trial)

    def _add(self, trial: Trial) -> None:
        assert self._study is not None
        indices = self._space.grid_indices(trial.schedule)
        params = {name: indices[block] for name, block in zip(self._parameters, self._space.free_blocks, strict=True)}
        self._study.add_trial(
            create_trial(
                params=params,
                distributions=self._parameters,
                values=trial.values,
                constraints={"violation": trial.total_violation} if self._is_constrained else {},
                system_attrs=dict(self._attributes),  # a trial adds its constraints
            )
        )
        self._n_told += 1
        self._look_ahead()

    def _look_ahead(self) -> None:
        """Notes the attributes of the next trials, which must follow from those told alone."""
        if self._generation and self._n_told % self._generation == 0:
            seed = draw_seed(random.Random(f"{self._seed}/told/{self._n_told}"))
            self._attributes = self._ask(seed).system_attrs


class ParzenModel(SamplerModel):
    """Multi-objective TPE (Ozaki et al. 2022) under constraints (Watanabe and Hutter 2022).

    Blocks are modelled jointly at a target sparsity, and else one by one, Optuna's default for several objectives. Most
    proposals then keep the first blocks of one of the best trials, which need not be computed again and fit together.

    Args:
        space: Space of schedules.
        seed: Seed of all random choices.
    """

    def __init__(self, space: ScheduleSpace, seed: int) -> None:
        self._is_joint = space.target_sparsity is not None

        def make(seed: int) -> BaseSampler:
            return TPESampler(seed=seed, n_startup_trials=1, multivariate=self._is_joint, constant_liar=False)

        super().__init__(space, seed, make, first=_FIRST_TPE, generation=0)

    def propose(self, number: int, repeats: int, rng: random.Random) -> Draft | None:
        """See `ScheduleModel.propose`."""
        draft = super().propose(number, repeats, rng)
        if draft is None or self._is_joint or rng.random() >= _HEAD_RATE:
            return draft
        cut = rng.randrange(len(draft.grid_indices))
        kept = self._space.grid_indices(rng.choice(self._memory.best()).schedule)
        return Draft([*(kept[block] for block in self._space.free_blocks[:cut]), *draft.grid_indices[cut:]])


class _Crossover(UniformCrossover):
    """Optuna's default crossover, with the parents that it crossed last: `[parents, blocks]`."""

    crossed: NDArray[np.float64] | None = None

    def crossover(self, parents_params: NDArray[np.float64], *args: Any) -> NDArray[np.float64]:
        self.crossed = parents_params
        return super().crossover(parents_params, *args)


class BreedingModel(SamplerModel):
    """NSGA-II (Deb et al. 2002) or NSGA-III (Deb and Jain 2014); names the parents of its proposals.

    Args:
        space: Space of schedules.
        seed: Seed of all random choices.
        sampler: Class of the sampler.
    """

    def __init__(self, space: ScheduleSpace, seed: int, sampler: type[NSGAIISampler] | type[NSGAIIISampler]) -> None:
        def make(seed: int) -> BaseSampler:
            self._crossover = _Crossover()
            return sampler(seed=seed, population_size=_POPULATION, crossover=self._crossover)

        super().__init__(space, seed, make, first=_POPULATION, most=_MOST_BRED, generation=_POPULATION)

    def propose(self, number: int, repeats: int, rng: random.Random) -> Draft | None:
        """See `ScheduleModel.propose`; a child of no crossover names no parents."""
        draft = super().propose(number, repeats, rng)
        if draft is None or self._crossover.crossed is None:
            return draft
        parents = []
        for crossed in self._crossover.crossed.tolist():
            indices = [0] * self._space.n_blocks
            for block, index in zip(self._space.free_blocks, crossed, strict=True):
                indices[block] = round(index)
            parents.append(tuple(indices))
        return Draft(draft.grid_indices, tuple(dict.fromkeys(parents)))


def nsga2_model(space: ScheduleSpace, seed: int) -> SamplerModel:
    """NSGA-II."""
    return BreedingModel(space, seed, NSGAIISampler)


def nsga3_model(space: ScheduleSpace, seed: int) -> SamplerModel:
    """NSGA-III."""
    return BreedingModel(space, seed, NSGAIIISampler)


def gaussian_process_model(space: ScheduleSpace, seed: int) -> SamplerModel:
    """Expected hypervolume improvement under Gaussian processes, fitted to the front and the latest trials.

    Parameters are real: over whole numbers Optuna searches block by block, far slower. Time is cubic in the trials; a
    proposal takes about a second.
    """

    def make(seed: int) -> BaseSampler:
        return GPSampler(seed=seed, n_startup_trials=1)

    return SamplerModel(space, seed, make, first=10, most=128, most_repeats=2, real=True, generation=0)


@contextmanager
def silence() -> Iterator[None]:
    """Silences Optuna's logs and warnings; its settings are restored."""
    verbosity = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        optuna.logging.set_verbosity(verbosity)
