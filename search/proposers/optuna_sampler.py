"""An adapter around Optuna's samplers: one study in memory, which outcomes of all proposers enter alike."""

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

# Trials that TPE holds at most: it takes time linear in them.
_MOST = 600
# Trials to know before TPE says more than a random schedule does.
_FIRST_TPE = 16
# Share of TPE's proposals that keep the first blocks of a good schedule.
_HEAD_RATE = 0.9
# Members of a population, and trials that breeding holds at most.
_POPULATION = 16
_MOST_BRED = 128


class SamplerModel:
    """Asks an Optuna sampler for one parameter per block that may skip: its grid index.

    Each proposal and each trial told gets a sampler of its own, seeded by the trial, and what is asked is not kept: so
    proposals follow from the outcomes told, the seed and the number. A sampler must find what it knows in the study,
    as one of many processes that share a study does. Trials enter the study as finished trials. Where a sampler
    leaves attributes on the trials that it is asked for (genetic algorithms note their generation), they bear these,
    too.

    Constraint violations, of which low fidelity is one, are the trials' constraints from the first one on that breaks
    any: samplers take longer over constraints, and those that are always kept teach nothing.

    Args:
        space: Space of schedules.
        seed: Seed of all random choices.
        make: Makes the sampler.
        first: Trials to know before the sampler is asked.
        most: Trials that the study holds at most; see `TrialMemory`.
        most_repeats: How often the sampler is asked again for one trial.
        real: Whether parameters take any value between the steps, which repair rounds.
        marks: Whether outcomes must bear the sampler's attributes; None to find out.
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
        marks: bool | None = None,
    ) -> None:
        self._space = space
        self._seed = seed
        self._make = make
        self._first = first
        self._most_repeats = most_repeats
        self._marks = marks
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
            if self._marks is None and asked.system_attrs:
                self._marks = True
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
        """A trial that the sampler filled in, and that counts for nothing."""
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
                system_attrs=self._attributes,
            )
        )
        self._n_told += 1
        self._look_ahead()

    def _look_ahead(self) -> None:
        """Note the attributes of the next trial: they follow from what was told, and not from who asks first."""
        if self._marks:
            seed = draw_seed(random.Random(f"{self._seed}/told/{self._n_told}"))
            self._attributes = self._ask(seed).system_attrs


class ParzenModel(SamplerModel):
    """Multi-objective TPE (Ozaki et al. 2022) under constraints (Watanabe and Hutter 2022).

    Blocks are modelled jointly where the overall sparsity is given, as there each takes what others give, and one by
    one where it is not, which is Optuna's default for several objectives. Then most proposals keep the first blocks of
    one of the best outcomes: what is drawn for the others fits to them better than to blocks drawn apart, and
    evaluators need not compute them again.

    Args:
        space: Space of schedules.
        seed: Seed of all random choices.
    """

    def __init__(self, space: ScheduleSpace, seed: int) -> None:
        self._is_joint = space.target_sparsity is not None

        def make(seed: int) -> BaseSampler:
            return TPESampler(seed=seed, n_startup_trials=1, multivariate=self._is_joint, constant_liar=False)

        super().__init__(space, seed, make, first=_FIRST_TPE, marks=False)

    def propose(self, number: int, repeats: int, rng: random.Random) -> Draft | None:
        """See `ScheduleModel.propose`."""
        draft = super().propose(number, repeats, rng)
        if draft is None or self._is_joint or rng.random() >= _HEAD_RATE:
            return draft
        cut = rng.randrange(len(draft.grid_indices))
        kept = self._space.grid_indices(rng.choice(self._memory.best()).schedule)
        return Draft([*(kept[block] for block in self._space.free_blocks[:cut]), *draft.grid_indices[cut:]])


class _Crossover(UniformCrossover):
    """Optuna's default crossover, which remembers the parents that it crossed last: [parents, blocks]."""

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


class NSGAIIModel(SamplerModel):
    """NSGA-II (Deb et al. 2002): as many outcomes as the population has members are a generation.

    Args:
        space: Space of schedules.
        seed: Seed of all random choices.
    """

    sampler: type[NSGAIISampler] | type[NSGAIIISampler] = NSGAIISampler

    def __init__(self, space: ScheduleSpace, seed: int) -> None:
        super().__init__(space, seed, self._made, first=_POPULATION, most=_MOST_BRED, marks=True)

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

    def _made(self, seed: int) -> BaseSampler:
        self._crossover = _Crossover()
        return self.sampler(seed=seed, population_size=_POPULATION, crossover=self._crossover)


class NSGAIIIModel(NSGAIIModel):
    """NSGA-III (Deb and Jain 2014), as `NSGAIIModel`."""

    sampler = NSGAIIISampler


class GaussianProcessModel(SamplerModel):
    """Expected hypervolume improvement under Gaussian processes, fitted to a front and the latest outcomes.

    It is climbed over real numbers: over whole ones Optuna searches block by block, far slower. Time is cubic in the
    outcomes, and an answer takes about a second.

    Args:
        space: Space of schedules.
        seed: Seed of all random choices.
    """

    def __init__(self, space: ScheduleSpace, seed: int) -> None:
        super().__init__(space, seed, _gp_sampler, first=10, most=128, most_repeats=2, real=True, marks=False)


def _gp_sampler(seed: int) -> BaseSampler:
    return GPSampler(seed=seed, n_startup_trials=1)


@contextmanager
def silence() -> Iterator[None]:
    """Keeps Optuna's notes on experimental arguments and new studies from the user, and its settings as they were."""
    verbosity = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        optuna.logging.set_verbosity(verbosity)
