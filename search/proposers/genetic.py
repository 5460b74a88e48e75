"""Proposals from DEAP's genetic operators: a steady-state NSGA-II over schedules."""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence
from typing import Any

from deap import base, tools

from search.space import ScheduleSpace

_ETA = 15.0


class _Fitness(base.Fitness):  # type: ignore[misc]
    """Two objectives, both minimised. A class of our own: DEAP's `creator` keeps global state that Ray cannot ship."""

    weights = (-1.0, -1.0)


class _Individual(list[float]):
    """Levels with a fitness, in the shape that DEAP's operators work on."""

    def __init__(self, levels: Iterable[float]) -> None:
        super().__init__(levels)
        self.fitness: Any = _Fitness()


class GeneticProposer:
    """NSGA-II (Deb et al. 2002) without generations: every result may enter the population at once.

    Children come from two parents by bounded simulated binary crossover and bounded polynomial mutation, or from one by
    moving sparsity from one block to another, which keeps the overall sparsity (EvoPress, arXiv 2410.14649).

    Args:
        space: Where schedules come from.
        seed: Of all random choices.
        population_size: How many individuals may be parents.
    """

    name = "deap"

    def __init__(self, space: ScheduleSpace, seed: int, population_size: int = 32) -> None:
        self._space = space
        self._population_size = population_size
        self._seed = seed
        self._number = -1
        self._rng = random.Random(seed)
        self._queue = space.anchors()
        self._population: list[_Individual] = []

    def ask(self, number: int) -> tuple[int, ...]:
        """See `Proposer.ask`."""
        if number != self._number:
            self._number, self._rng = number, random.Random(f"{self._seed}/{number}")
        if self._queue:
            return self._queue.pop(0)
        if len(self._population) < self._population_size // 2:
            return self._space.sample(self._rng)
        # DEAP draws from the global generator: lend it ours, so that a seed means the same whatever else ran before.
        state = random.getstate()
        random.setstate(self._rng.getstate())
        try:
            child = self._child()
        finally:
            self._rng.setstate(random.getstate())
            random.setstate(state)
        return self._space.repair(child, self._rng)

    def tell(self, levels: Sequence[int], values: Sequence[float]) -> None:
        """See `Proposer.tell`."""
        individual = _Individual(levels)
        individual.fitness.values = tuple(values)
        self._queue = [waiting for waiting in self._queue if waiting != tuple(levels)]
        self._population = tools.selNSGA2([*self._population, individual], self._population_size)

    def _child(self) -> list[float]:
        mother, father = (_Individual(self._parent()) for _ in range(2))
        if random.random() < 0.35:
            return self._switch_levels(mother)
        tools.cxSimulatedBinaryBounded(mother, father, eta=_ETA, low=0.0, up=float(self._space.top))
        # A rate above one over the length, as each mutation must reach the next grid point to count.
        tools.mutPolynomialBounded(mother, eta=_ETA, low=0.0, up=float(self._space.top), indpb=2.0 / len(mother))
        return mother

    def _parent(self) -> _Individual:
        """The better of two at random: by domination, then by crowding distance."""
        one, other = random.choice(self._population), random.choice(self._population)
        if one.fitness.dominates(other.fitness):
            return one
        if other.fitness.dominates(one.fitness):
            return other
        return max(one, other, key=lambda individual: individual.fitness.crowding_dist)

    def _switch_levels(self, levels: _Individual) -> list[float]:
        """Move one to four steps of sparsity from one block to another, once to three times."""
        for _ in range(random.randint(1, 3)):
            giver, taker = random.sample(range(len(levels)), 2) if len(levels) > 1 else (0, 0)
            amount = min(random.randint(1, 4), levels[giver], self._space.top - levels[taker])
            levels[giver] -= amount
            levels[taker] += amount
        return levels
