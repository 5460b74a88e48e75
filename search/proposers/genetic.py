"""Proposals from genetic operators: a steady-state NSGA-II or NSGA-III over schedules."""

from __future__ import annotations

import random

from search.problem.space import ScheduleSpace
from search.problem.trial import GridIndices, Proposal
from search.proposers.operators import Gene, Individual, Population, Selection, Variation, parent
from studies import Trial

# Most tries for a child that is not in the population.
_MOST_TRIES = 8
# Share of children that keep their mother's first blocks, whose results evaluators may still hold.
_HEAD_RATE = 0.8


class GeneticProposer:
    """Steady-state genetic algorithm: every trial may enter the population at once.

    Args:
        space: Space of schedules.
        seed: Seed of all random choices.
        population_size: Most individuals in the population.
        selection: Survival selection.
        variation: Crossover and mutation.
    """

    name = "deap"
    leads = False

    def __init__(
        self,
        space: ScheduleSpace,
        seed: int,
        population_size: int = 48,
        selection: Selection = "nsga2",
        variation: Variation | None = None,
    ) -> None:
        self._space = space
        self._seed = seed
        self._variation = variation or Variation(head_rate=_HEAD_RATE)
        self._genes = [Gene.steps(space.top + 1, peers="blocks")] * len(space.free_genes)
        self._population: Population[GridIndices] = Population(population_size, selection)
        self._number = -1
        self._rng = random.Random()

    def ask(self, number: int) -> Proposal:
        """See `Proposer.ask`."""
        if number != self._number:
            self._number, self._rng = number, random.Random(f"{self._seed}/{number}")
        members = self._population.members
        if len(members) < self._population.n_founders:
            return Proposal(self._space.sample(self._rng))
        known = {individual.genome for individual in members}
        for _ in range(_MOST_TRIES):
            if (child := self._child()).grid_indices not in known:
                return child
        return Proposal(self._space.sample(self._rng))

    def tell(self, trial: Trial) -> None:
        """See `Proposer.tell`."""
        indices = self._space.grid_indices(trial.schedule)
        if trial.values is None or not self._space.contains(indices):
            return
        rng = random.Random(f"{self._seed}/told {self._population.n_told}")
        self._population.tell([Individual(indices, trial.values, trial.total_violation)], rng)

    def _child(self) -> Proposal:
        mother, father = (parent(self._population.members, self._rng).genome for _ in range(2))
        space = self._space
        numbers = self._variation.child(
            space.of_free_genes(mother), space.of_free_genes(father), self._genes, self._rng
        )
        indices = space.repair(space.on_all_genes(numbers), self._rng)
        return Proposal(indices, tuple(dict.fromkeys((mother, father))))
