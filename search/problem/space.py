"""The space of schedules that a search walks: a grid, and the constraints that can be met before evaluating."""

from __future__ import annotations

import math
import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TypeVar

from ftp_core.schedule import DEFAULT_STEP, MAX_SPARSITY, SparsitySchedule
from search.errors import ConfigError
from search.problem.cost_limit import CostLimit
from search.problem.gene_costs import GeneCosts
from search.problem.genes import Genes, Granularity, Kv
from search.problem.grid import Grid
from search.problem.limited import Limited
from search.problem.trial import GridIndices

_Number = TypeVar("_Number", int, float)


@dataclass(frozen=True)
class ScheduleSpace:
    """All schedules on a grid that keep the constraints, given as grid indices, one per gene.

    Only the space knows what a gene is: a block, or one of its halves, in the order in which a model runs them.

    Attributes:
        n_blocks: Blocks of the model.
        target_sparsity: Overall sparsity that every schedule must have, to the nearest grid point; None for any.
        step: Distance of the grid.
        first: Steps of the least sparsity of a gene that skips at all; 1 if overall sparsity is the target, whose steps
            are moved from gene to gene.
        max_sparsity: Highest sparsity of a gene.
        dense_blocks: Blocks that skip nothing; negative numbers count from the end.
        limits: Limits on the cost of every schedule.
        granularity: See `Genes`.
        kv: See `Genes`.

    Raises:
        ConfigError: No schedule keeps the constraints, or a dense block is none of the model's.
    """

    n_blocks: int
    target_sparsity: float | None = None
    step: float = DEFAULT_STEP
    first: int = 1
    max_sparsity: float = MAX_SPARSITY
    dense_blocks: tuple[int, ...] = ()
    limits: tuple[CostLimit, ...] = ()
    granularity: Granularity = "block"
    kv: Kv = "drop"

    def __post_init__(self) -> None:
        """Check that there is a schedule at all."""
        n_free = len(self.free_genes)
        if self.target_sparsity is not None and self.first > 1:
            raise ConfigError("The least sparsity of a gene is one step where overall sparsity is the target.")
        if self.target_total is not None and self.target_total > self.top * n_free:
            most, n_free_genes = self.top * self.step * n_free / self.n_genes, n_free // self.genes.per_block
            raise ConfigError(
                f"A target sparsity of {self.target_sparsity:g} cannot be reached: with {n_free_genes} of "
                f"{self.n_blocks} blocks free to skip, the overall sparsity is at most {most:.2f}."
            )
        for limit, costs in zip(self.limits, self.costs, strict=True):
            least = costs.of(self._limited.cheapest)
            if not limit.is_kept_by(least):
                raise ConfigError(limit.refusal(least))

    @cached_property
    def genes(self) -> Genes:
        """Encoding of schedules as genes."""
        return Genes(self.n_blocks, self.granularity, self.kv, self.dense_blocks)

    @property
    def n_genes(self) -> int:
        """Number of grid indices of a schedule."""
        return self.genes.n

    @property
    def free_genes(self) -> tuple[int, ...]:
        """Genes that may skip."""
        return self.genes.free

    @property
    def top(self) -> int:
        """Highest grid index of a gene."""
        return max(0, math.floor(self.max_sparsity / self.step + 1e-9) - self.first + 1)

    @cached_property
    def grid(self) -> Grid:
        """Sparsities of grid indices."""
        return Grid(self.step, self.first)

    @property
    def may_skip(self) -> bool:
        """True if there is more than the dense schedule."""
        return bool(self.free_genes) and self.top > 0

    @property
    def target_total(self) -> int | None:
        """Sum of grid indices at the target sparsity."""
        if self.target_sparsity is None:
            return None
        return min(round(self.target_sparsity * self.n_genes / self.step), self.top * self.n_genes)

    @property
    def target_limit(self) -> CostLimit | None:
        """The limit that proposals shall lie close to, if the target is a cost."""
        return next((limit for limit in self.limits if limit.is_target), None)

    @property
    def has_target(self) -> bool:
        """True if overall sparsity or a cost is given, which leaves little to trade."""
        return self.target_sparsity is not None or self.target_limit is not None

    @cached_property
    def costs(self) -> tuple[GeneCosts, ...]:
        """Costs of genes, for each of the limits."""
        return tuple(self.gene_costs(limit) for limit in self.limits)

    def gene_costs(self, limit: CostLimit) -> GeneCosts:
        """Costs of genes by a limit, be it one of the space's or not."""
        return GeneCosts(
            lambda indices: limit.cost(self.schedule(indices)), self.n_genes, self.top, self.genes.per_block
        )

    def schedule(self, indices: Sequence[int]) -> SparsitySchedule:
        """The schedule of grid indices."""
        return self.genes.schedule(indices, self.grid)

    def grid_indices(self, schedule: tuple[float, ...]) -> GridIndices:
        """Grid indices of a schedule that the genes express, or of the nearest one on the grid."""
        return self.genes.grid_indices(schedule, self.grid)

    def expresses(self, schedule: tuple[float, ...]) -> bool:
        """True if grid indices say what a schedule, or its numbers, is: to within half a step of every sparsity."""
        if not self.genes.express(schedule) or self.first == 1:
            return self.genes.express(schedule)
        nearest = self.schedule(self.grid_indices(schedule)).numbers
        pairs = zip(SparsitySchedule.of(schedule, self.n_blocks).numbers, nearest, strict=True)
        return all(abs(own - near) <= self.step / 2 + 1e-9 for own, near in pairs)

    def of_free_genes(self, indices: Sequence[int]) -> list[int]:
        """Those of grid indices that belong to free genes."""
        return [indices[gene] for gene in self.free_genes]

    def on_all_genes(self, numbers: Iterable[_Number]) -> list[_Number]:
        """Numbers of the free genes, with 0 for the dense ones between them."""
        placed: list[_Number] = [0] * self.n_genes
        for gene, number in zip(self.free_genes, numbers, strict=True):
            placed[gene] = number
        return placed

    def contains(self, indices: Sequence[int]) -> bool:
        """True if grid indices keep every constraint."""
        free = set(self.free_genes)
        return (
            len(indices) == self.n_genes
            and all(0 <= index <= (self.top if gene in free else 0) for gene, index in enumerate(indices))
            and self.constraint_violation(indices) == 0
        )

    def constraint_violation(self, indices: Sequence[int]) -> float:
        """By how much a schedule breaks the target and the limits, as shares; 0 if it keeps them."""
        broken = 0.0
        if self.target_total is not None:
            broken += abs(sum(indices) - self.target_total) * self.step / self.n_genes
        return broken + self._limited.violation(indices)

    def violation_of(self, schedule: SparsitySchedule) -> float:
        """The same of any schedule; of one between 0 and the least sparsity, by its own costs."""
        if self.first == 1 or self.expresses(schedule):
            return self.constraint_violation(self.grid_indices(schedule))
        return sum(limit.violation(limit.cost(schedule)) for limit in self.limits)

    def repair(self, indices: Sequence[float], rng: random.Random) -> GridIndices:
        """Nearby indices inside the space.

        Numbers are rounded, dense blocks skip nothing, and sparsity is moved one step at a time until the target is met
        and the limits are kept. Where a limit is a target, steps are then given back as long as it still is kept.

        Args:
            indices: Any numbers, one per gene.
            rng: Chooses the genes that give or take.
        """
        free, inside = self.free_genes, [0] * self.n_genes
        for gene in free:
            inside[gene] = min(self.top, max(0, round(indices[gene])))
        if self.target_total is not None:
            missing = self.target_total - sum(inside)
            step = 1 if missing > 0 else -1
            movable = [gene for gene in free if 0 <= inside[gene] + step <= self.top]
            for _ in range(abs(missing)):
                place = rng.randrange(len(movable))
                gene = movable[place]
                inside[gene] += step
                if not 0 <= inside[gene] + step <= self.top:
                    del movable[place]
        return self._limited.kept(inside, rng) if self.limits else tuple(inside)

    def sample(self, rng: random.Random) -> GridIndices:
        """Random indices: an overall sparsity drawn evenly, spread unevenly over the genes.

        Independent indices would crowd around one half; drawn this way every overall sparsity gets its share.
        """
        mean = self.target_sparsity
        if mean is None:
            even = self.even_at_target
            mean = rng.uniform(0.0, 0.8) if even is None else sum(map(self.grid.sparsity, even)) / self.n_genes
        weights = [rng.expovariate(1.0) for _ in range(self.n_genes)]
        scale = mean * self.n_genes / sum(weights)
        return self.repair([self.grid.position(weight * scale) for weight in weights], rng)

    def even(self, total: int) -> GridIndices:
        """A sum of indices spread evenly over the free genes; what is left over goes to the last ones."""
        free = self.free_genes
        even, rest = divmod(total, max(1, len(free)))
        return tuple(self.on_all_genes(even + (place >= len(free) - rest) for place in range(len(free))))

    @cached_property
    def even_at_target(self) -> GridIndices | None:
        """The most even indices at the target: a shorter prompt, with the static router. None if there is no target.

        They need not keep a limit that is none.
        """
        if self.target_total is not None:
            return self.even(self.target_total)
        if self.target_limit is None:
            return None
        place = self.limits.index(self.target_limit)
        evens = map(self.even, range(self.top * len(self.free_genes) + 1))
        within = (one for one in evens if self.target_limit.is_kept_by(self.costs[place].of(one)))
        return next(within, self._limited.cheapest)

    @cached_property
    def _limited(self) -> Limited:
        even = None if self.target_total is None else self.even(self.target_total)
        return Limited(self.limits, self.costs, self.free_genes, self.n_genes, even)
