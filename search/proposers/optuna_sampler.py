"""Adapter for Optuna's samplers: a study in memory that holds the trials of all proposers."""

from __future__ import annotations

import random
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import optuna
from numpy.typing import NDArray
from optuna.distributions import BaseDistribution, FloatDistribution, IntDistribution
from optuna.samplers import BaseSampler, GPSampler, NSGAIIISampler, NSGAIISampler, TPESampler
from optuna.samplers.nsgaii import UniformCrossover
from optuna.trial import FrozenTrial, TrialState, create_trial

from search.problem.curves import DepthCurves, curves_of
from search.problem.space import ScheduleSpace
from search.problem.trial import Proposal
from search.proposers.memory import TrialMemory
from search.proposers.seeded import SeededProposer, draw_seed
from studies import Trial

# Most trials that TPE holds: its time is linear in them.
_MOST = 600
# Trials told before TPE proposes.
_FIRST_TPE = 16
# Share of TPE's proposals that keep the first blocks of a good schedule.
_HEAD_RATE = 0.9
# Members of a population, and most trials that breeding holds.
_POPULATION = 16
_MOST_BRED = 128


class SamplerProposer(SeededProposer):
    """Asks an Optuna sampler for one parameter per free block: its grid index.

    Each request and each trial told gets a new sampler, seeded by the trial, so that proposals follow from the trials
    told, the seed and the number. A sampler must therefore find its state in the study, as if several processes shared
    it. Samplers that leave attributes on the trials they fill in (genetic algorithms note the generation) find these
    on the trials told, too.

    The constraint violation, which includes low fidelity, is a constraint from the first trial on that has one:
    samplers take longer with constraints.

    Args:
        name: Name of the proposer.
        space: Space of schedules.
        seed: Seed of all random choices.
        make: Makes the sampler from its argument `seed`.
        first: Trials told before the sampler is asked.
        most: Size of the study; see `TrialMemory`.
        real: True for real parameters, which repair rounds.
        generation: Number of consecutive trials with equal sampler attributes; 0 where none are needed, None to find
            out.
        curves: Curves over depth whose numbers are the parameters; None for one parameter per free gene.
    """

    def __init__(
        self,
        name: str,
        space: ScheduleSpace,
        seed: int,
        make: Callable[..., BaseSampler],
        *,
        first: int = 1,
        most: int = _MOST,
        real: bool = False,
        generation: int | None = None,
        curves: DepthCurves | None = None,
    ) -> None:
        super().__init__(name, space, seed)
        self._make = make
        self._first = first
        self._generation = generation
        self._memory = TrialMemory(most)
        self._is_constrained = False
        self._study: optuna.Study | None = None
        self._n_told = 0
        self._attributes: dict[str, Any] = {}
        index = FloatDistribution(0.0, space.top) if real else IntDistribution(0, space.top)
        # Some samplers sort parameters by name.
        self._parameters: dict[str, BaseDistribution] = {f"s_{block:04}": index for block in space.free_genes}
        self._curves = curves
        if curves is not None:
            self._parameters = {f"c_{place:04}": FloatDistribution(0.0, 1.0) for place in range(curves.n)}

    def _propose(self, number: int, rng: random.Random) -> Proposal | None:
        if len(self._memory) < self._first:
            return None
        numbers = self._sampled(rng)
        if self._curves is not None:
            return Proposal(self._curves.schedule(numbers, rng))
        return self._repaired(numbers, rng)

    def _sampled(self, rng: random.Random) -> list[float]:
        """The sampler's parameters."""
        seed = draw_seed(rng)
        with silence():
            if self._study is None:
                self._rebuild()
            asked = self._ask(seed)
            if self._generation is None and asked.system_attrs:
                self._generation = 1
                self._rebuild()
                asked = self._ask(seed)
        return [asked.params[name] for name in self._parameters]

    def _learn(self, trial: Trial) -> None:
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
        self._study.sampler = self._make(seed=seed)
        return self._study.tell(self._study.ask(self._parameters), state=TrialState.FAIL)

    def _rebuild(self) -> None:
        n_objectives = len(next(iter(self._memory)).values or ())
        self._study = optuna.create_study(directions=["minimize"] * n_objectives, sampler=self._make(seed=0))
        self._n_told, self._attributes = 0, {}
        self._look_ahead()
        for trial in self._memory:
            self._add(trial)

    def _add(self, trial: Trial) -> None:
        assert self._study is not None
        indices = self._space.grid_indices(trial.schedule)
        numbers = self._space.of_free_genes(indices) if self._curves is None else self._curves.numbers(indices)
        self._study.add_trial(
            create_trial(
                params=dict(zip(self._parameters, numbers, strict=True)),
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


class ParzenProposer(SamplerProposer):
    """Multi-objective TPE (Ozaki et al. 2022) under constraints (Watanabe and Hutter 2022).

    Blocks are modelled jointly at a target sparsity, and else one by one, Optuna's default for several objectives. Most
    proposals then keep the first blocks of one of the best trials, which need not be computed again and fit together.
    In a deep space, curves over depth are modelled in the place of blocks.
    """

    def __init__(self, space: ScheduleSpace, seed: int) -> None:
        self._is_joint = space.has_target
        make = partial(TPESampler, n_startup_trials=1, multivariate=self._is_joint, constant_liar=False)
        super().__init__("tpe", space, seed, make, first=_FIRST_TPE, generation=0, curves=curves_of(space))

    def _sampled(self, rng: random.Random) -> list[float]:
        sampled = super()._sampled(rng)
        if self._is_joint or self._curves is not None or rng.random() >= _HEAD_RATE:
            return sampled
        cut = rng.randrange(len(sampled))
        kept = self._space.grid_indices(rng.choice(self._memory.best()).schedule)
        return [*self._space.of_free_genes(kept)[:cut], *sampled[cut:]]


class _Crossover(UniformCrossover):
    """Optuna's default crossover, with the parents that it crossed last: `[parents, blocks]`."""

    crossed: NDArray[np.float64] | None = None

    def crossover(self, parents_params: NDArray[np.float64], *args: Any) -> NDArray[np.float64]:
        self.crossed = parents_params
        return super().crossover(parents_params, *args)


class BreedingProposer(SamplerProposer):
    """NSGA-II (Deb et al. 2002) or NSGA-III (Deb and Jain 2014); names the parents of its proposals."""

    def __init__(
        self, name: str, sampler: type[NSGAIISampler] | type[NSGAIIISampler], space: ScheduleSpace, seed: int
    ) -> None:
        def make(seed: int) -> BaseSampler:
            self._crossover = _Crossover()
            return sampler(seed=seed, population_size=_POPULATION, crossover=self._crossover)

        super().__init__(name, space, seed, make, first=_POPULATION, most=_MOST_BRED, generation=_POPULATION)

    def _propose(self, number: int, rng: random.Random) -> Proposal | None:
        proposal = super()._propose(number, rng)
        # A child of no crossover names no parents.
        if proposal is None or self._crossover.crossed is None:
            return proposal
        crossed = [map(round, parent) for parent in self._crossover.crossed.tolist()]
        parents = dict.fromkeys(tuple(self._space.on_all_genes(parent)) for parent in crossed)
        return replace(proposal, parents=tuple(parents))


nsga2_proposer = partial(BreedingProposer, "nsga2", NSGAIISampler)
nsga3_proposer = partial(BreedingProposer, "nsga3", NSGAIIISampler)


class GaussianProcessProposer(SamplerProposer):
    """Expected hypervolume improvement under Gaussian processes, fitted to the front and the latest trials.

    Parameters are real: over whole numbers Optuna searches block by block, far slower. Time is cubic in the trials; a
    proposal takes about a second.
    """

    _most_repeats = 3

    def __init__(self, space: ScheduleSpace, seed: int) -> None:
        make = partial(GPSampler, n_startup_trials=1)
        super().__init__("gp", space, seed, make, first=10, most=128, real=True, generation=0)


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
