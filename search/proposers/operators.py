"""Genetic operators and survival selection from DEAP, for anything that is a vector of numbers.

The only module that imports DEAP. It needs no `creator`: its types are global state, which Ray cannot ship.
"""

from __future__ import annotations

import math
import random
import threading
from collections import defaultdict
from collections.abc import Hashable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import groupby
from operator import attrgetter
from types import SimpleNamespace
from typing import Any, Generic, Literal, TypeVar, get_args

import numpy as np
from deap import base, tools

from studies.records.trial import finite_values

Crossover = Literal["sbx", "uniform", "one_point", "mixed"]
Selection = Literal["nsga2", "nsga3"]

_Genome = TypeVar("_Genome", bound=Hashable)

# Crowding distances and norms stay finite for values up to here; infinite ones are taken for it.
_HUGE = 1e100
# The largest share of a gene's range that one level switch moves.
_MOST_SWITCHED = 0.2
# One in so many of those told may be a parent, but these at least: early on, a large population holds mostly bad ones.
_SELECTIVITY = 8
_FEWEST_PARENTS = 12
# What mixed crossover chooses from.
_CROSSOVERS: tuple[Crossover, ...] = ("sbx", "uniform", "one_point")
_GLOBAL_RANDOM = threading.Lock()


@dataclass(frozen=True, slots=True)
class Gene:
    """Range of one number of a vector.

    Attributes:
        low: The lowest number; for a gene on a grid half a step below the lowest step, as for `high`, so that the
            outermost steps are as likely as the others.
        high: The highest number.
        on_grid: True if numbers are rounded to whole ones.
        nominal: True if numbers are names without an order.
        peers: Key of genes that may exchange amounts; None for a gene that does not.
    """

    low: float
    high: float
    on_grid: bool = False
    nominal: bool = False
    peers: Hashable = None

    @classmethod
    def steps(cls, n: int, *, nominal: bool = False, peers: Hashable = None) -> Gene:
        """A gene of the whole numbers 0 to n - 1."""
        return cls(-0.5, n - 0.5, on_grid=True, nominal=nominal, peers=peers)

    def nearest(self, number: float) -> float:
        """The nearest number that counts."""
        if not self.on_grid:
            return min(self.high, max(self.low, number))
        return min(math.floor(self.high), max(math.ceil(self.low), round(number)))

    def sample(self, rng: random.Random) -> float:
        """Any number that counts."""
        return self.nearest(rng.uniform(self.low, self.high))


class _Fitness(base.Fitness):  # type: ignore[misc]
    """Any number of objectives, all minimised."""

    def __init__(self, values: Iterable[float]) -> None:
        values = tuple(max(-_HUGE, min(_HUGE, value)) for value in values)
        self.weights = (-1.0,) * len(values)
        self.crowding_dist = 0.0
        super().__init__(values)


@dataclass(frozen=True, eq=False, slots=True)
class Individual(Generic[_Genome]):
    """Something evaluated, in the shape that DEAP selects from.

    Attributes:
        genome: The vector, or what it stands for.
        values: Objective values, lower is better.
        constraint_violation: The lower one of two individuals' wins; values count between equal ones only.
    """

    genome: _Genome
    values: tuple[float, ...]
    constraint_violation: float = 0.0
    fitness: Any = field(init=False, repr=False)

    def __post_init__(self) -> None:
        """Make the fitness that DEAP reads."""
        object.__setattr__(self, "fitness", _Fitness(self.values))

    def dominates(self, other: Individual[_Genome]) -> bool:
        """Constrained domination (Deb et al. 2002, definition 1)."""
        if self.constraint_violation != other.constraint_violation:
            return self.constraint_violation < other.constraint_violation
        return bool(self.fitness.dominates(other.fitness))


def survivors(
    individuals: Iterable[Individual[_Genome]], size: int, selection: Selection, rng: random.Random
) -> list[Individual[_Genome]]:
    """Survival selection.

    The lowest constraint violation comes first; among equal ones NSGA-II (Deb et al. 2002) or NSGA-III (Deb and
    Jain 2014) decides. Of equal genomes only one stays: the latest with the lowest constraint violation.

    Args:
        individuals: Candidates, earlier ones first.
        size: Most survivors.
        selection: NSGA-II or NSGA-III.
        rng: Source of randomness, for NSGA-III's ties.
    """
    best: dict[_Genome, Individual[_Genome]] = {}
    for individual in individuals:
        known = best.get(individual.genome)
        if known is None or individual.constraint_violation <= known.constraint_violation:
            best[individual.genome] = individual
    chosen: list[Individual[_Genome]] = []
    by_violation = attrgetter("constraint_violation")
    for _, equals in groupby(sorted(best.values(), key=by_violation), key=by_violation):
        if len(chosen) == size:
            break
        chosen += _selected(list(equals), size - len(chosen), selection, rng)
    return chosen


def parent(population: Sequence[Individual[_Genome]], rng: random.Random) -> Individual[_Genome]:
    """The better of two at random: by constrained domination, then by crowding distance."""
    one, other = rng.choice(population), rng.choice(population)
    if one.dominates(other):
        return one
    if other.dominates(one) or other.fitness.crowding_dist > one.fitness.crowding_dist:
        return other
    return one


class Population(Generic[_Genome]):
    """Those that may be parents: the best of all that were told, and the more the more were told.

    Attributes:
        members: Its individuals.

    Args:
        size: Most members.
        selection: Survival selection.

    Raises:
        ValueError: The size is less than 2, or the selection unknown.
    """

    def __init__(self, size: int, selection: Selection) -> None:
        if size < 2:
            raise ValueError(f"population_size is {size}: expected at least 2, as a child has two parents.")
        if selection not in get_args(Selection):
            raise ValueError(f"Unknown selection {selection!r}: use one of {', '.join(get_args(Selection))}.")
        self._size = size
        self._selection: Selection = selection
        self._n_told = 0
        self.members: list[Individual[_Genome]] = []

    @property
    def n_told(self) -> int:
        """Number of individuals with finite values told."""
        return self._n_told

    @property
    def n_founders(self) -> int:
        """Number of members from which on children are bred."""
        return min(self._size // 2, _FEWEST_PARENTS)

    def tell(self, newcomers: Sequence[Individual[_Genome]], rng: random.Random) -> None:
        """Let newcomers compete with the members; `rng` breaks ties. Those whose values are not finite are left out."""
        newcomers = [one for one in newcomers if finite_values((*one.values, one.constraint_violation))]
        self._n_told += len(newcomers)
        room = min(self._size, max(_FEWEST_PARENTS, self._n_told // _SELECTIVITY))
        self.members = survivors([*self.members, *newcomers], room, self._selection, rng)


@dataclass(frozen=True, slots=True)
class Variation:
    """Crossover and mutation.

    A child comes from one parent by level switches, or from two by crossover and mutation.

    Attributes:
        crossover: Bounded simulated binary crossover (Deb and Agrawal 1995) of numbers, with names from either parent;
            or all genes from either parent; or the first ones from one parent and the last ones from the other; or any
            of these, drawn anew for each child.
        crossover_rate: Probability of a second parent.
        mutation_rate: Probability that a gene mutates: a number by bounded polynomial mutation, a name to any one; None
            for two genes a child on average.
        switch_rate: Probability of a child by level switches, if there are genes that may exchange what they hold.
        head_rate: Probability that a child keeps the mother's genes before a random one, and is made in the others
            alone. Where what is computed for the first genes can be used again, such children cost less.
        crossover_eta: Distribution index of simulated binary crossover: the higher, the nearer to the parents.
        mutation_eta: Distribution index of polynomial mutation, alike.

    Raises:
        ValueError: A name is unknown, a rate not in [0, 1], or an index not positive.
    """

    crossover: Crossover = "mixed"
    crossover_rate: float = 0.9
    mutation_rate: float | None = None
    switch_rate: float = 0.2
    head_rate: float = 0.0
    crossover_eta: float = 15.0
    mutation_eta: float = 5.0

    def __post_init__(self) -> None:
        """Check the numbers."""
        if self.crossover not in get_args(Crossover):
            raise ValueError(f"Unknown crossover {self.crossover!r}: use one of {', '.join(get_args(Crossover))}.")
        for name in ("crossover_rate", "mutation_rate", "switch_rate", "head_rate"):
            rate = getattr(self, name)
            if rate is not None and not 0.0 <= rate <= 1.0:
                raise ValueError(f"{name} is {rate!r}: expected a probability in [0, 1].")
        for name in ("crossover_eta", "mutation_eta"):
            if not getattr(self, name) > 0.0:
                raise ValueError(f"{name} is {getattr(self, name)!r}: expected a positive number.")

    def child(
        self, mother: Sequence[float], father: Sequence[float], genes: Sequence[Gene], rng: random.Random
    ) -> list[float]:
        """A new vector of numbers that count.

        Args:
            mother: A vector, one number per gene.
            father: Another one; it may be the same.
            genes: Genes of the numbers.
            rng: Source of randomness.
        """
        # Tested first, so that a rate of 0 leaves all other draws as they are.
        cut = rng.randrange(len(genes)) if self.head_rate > 0 and rng.random() < self.head_rate else 0
        head = [gene.nearest(number) for gene, number in zip(genes[:cut], mother, strict=False)]
        return head + self._changed(mother[cut:], father[cut:], genes[cut:], rng)

    def _changed(
        self, mother: Sequence[float], father: Sequence[float], genes: Sequence[Gene], rng: random.Random
    ) -> list[float]:
        child = [gene.nearest(number) for gene, number in zip(genes, mother, strict=True)]
        exchanging = [group for group in _peers(genes) if len(group) > 1]
        if exchanging and rng.random() < self.switch_rate:
            for _ in range(rng.randint(1, 3)):
                switch_levels(child, genes, rng.choice(exchanging), rng)
        else:
            other = [gene.nearest(number) for gene, number in zip(genes, father, strict=True)]
            self._cross(child, other, genes, rng)
        return [gene.nearest(number) for gene, number in zip(genes, child, strict=True)]

    def _cross(self, child: list[float], other: list[float], genes: Sequence[Gene], rng: random.Random) -> None:
        """Crossover and mutation, in place."""
        rate = min(1.0, 2.0 / max(1, len(genes))) if self.mutation_rate is None else self.mutation_rate
        ordered = [index for index, gene in enumerate(genes) if not gene.nominal]
        nominal = [index for index, gene in enumerate(genes) if gene.nominal]
        low, high = [genes[index].low for index in ordered], [genes[index].high for index in ordered]
        crossover = self.crossover if rng.random() < self.crossover_rate else None
        if crossover == "mixed":
            crossover = rng.choice(_CROSSOVERS)
        with _drawing_from(rng):
            if crossover == "one_point":
                if len(genes) > 1:
                    tools.cxOnePoint(child, other)
            elif crossover == "uniform":
                tools.cxUniform(child, other, indpb=0.5)
            numbers, names = [child[index] for index in ordered], [child[index] for index in nominal]
            if crossover == "sbx":
                tools.cxSimulatedBinaryBounded(numbers, [other[i] for i in ordered], self.crossover_eta, low, high)
                tools.cxUniform(names, [other[index] for index in nominal], indpb=0.5)
            tools.mutPolynomialBounded(numbers, self.mutation_eta, low, high, indpb=rate)
        for index, number in zip(ordered, numbers, strict=True):
            child[index] = number
        for index, name in zip(nominal, names, strict=True):
            gene = genes[index]
            child[index] = gene.sample(rng) if rng.random() < rate else name


def switch_levels(child: list[float], genes: Sequence[Gene], peers: Sequence[int], rng: random.Random) -> None:
    """Move something from one gene to another, in place: the mean stays the same (EvoPress, arXiv 2410.14649).

    Args:
        child: Vector, changed in place.
        genes: Genes of its numbers.
        peers: Indices of at least two genes with equal peers.
        rng: Source of randomness.
    """
    giver, taker = rng.sample(peers, 2)
    gene = genes[giver]
    held, room = child[giver] - gene.low, gene.high - child[taker]
    most = _MOST_SWITCHED * (gene.high - gene.low)
    if gene.on_grid:
        amount: float = min(rng.randint(1, max(1, round(most))), math.floor(held), math.floor(room))
    else:
        amount = min(rng.uniform(0.0, most), held, room)
    child[giver] -= amount
    child[taker] += amount


def _peers(genes: Sequence[Gene]) -> list[list[int]]:
    """Indices of genes that may exchange amounts, by group."""
    groups: dict[Hashable, list[int]] = defaultdict(list)
    for index, gene in enumerate(genes):
        if gene.peers is not None:
            groups[gene.peers].append(index)
    return list(groups.values())


def _selected(
    equals: list[Individual[_Genome]], size: int, selection: Selection, rng: random.Random
) -> list[Individual[_Genome]]:
    """At most `size` of individuals with equal constraint violations."""
    n_objectives = len(equals[0].values)
    if n_objectives == 1:
        return list(tools.selBest(equals, size))
    if selection == "nsga2":
        # `log` is the faster way of sorting (Fortin et al. 2013): fronts are the same.
        return list(tools.selNSGA2(equals, size, nd="log"))
    if len(equals) <= size:
        return equals
    # DEAP takes intercepts, which are distances from the ideal point, for places: right only if that point is 0.
    values = np.array([one.fitness.values for one in equals])
    low, span = values.min(axis=0), np.ptp(values, axis=0)
    scaled = (low - values) / np.where(span > 0.0, span, 1.0)
    stand_ins = [
        SimpleNamespace(original=one, fitness=SimpleNamespace(wvalues=tuple(weighted)))
        for one, weighted in zip(equals, scaled.tolist(), strict=True)
    ]
    with _numpy_drawing_from(rng):
        chosen = tools.selNSGA3(stand_ins, size, _reference_points(n_objectives, size))
    return [one.original for one in chosen]


@lru_cache
def _reference_points(n_objectives: int, size: int) -> Any:
    """About as many directions as there are places in the population, spread evenly."""
    n_divisions = 1
    while math.comb(n_divisions + n_objectives, n_objectives - 1) <= size:
        n_divisions += 1
    return tools.uniform_reference_points(n_objectives, n_divisions)


@contextmanager
def _drawing_from(rng: random.Random) -> Iterator[None]:
    """Let DEAP's operators, which draw from the global generator, follow ours.

    A seed then means the same whatever else has drawn before, and who draws after notices nothing.
    """
    with _GLOBAL_RANDOM:
        state = random.getstate()
        random.seed(rng.getrandbits(64))
        try:
            yield
        finally:
            random.setstate(state)


@contextmanager
def _numpy_drawing_from(rng: random.Random) -> Iterator[None]:
    """The same for DEAP's NSGA-III, which draws from NumPy's global generator."""
    with _GLOBAL_RANDOM:
        state = np.random.get_state()
        np.random.seed(rng.getrandbits(32))
        try:
            yield
        finally:
            np.random.set_state(state)
