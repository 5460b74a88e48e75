"""Genes of schedules: what a search decides about a model, one whole number each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Literal

from ftp_core.schedule import SparsitySchedule
from search.errors import ConfigError
from search.problem.grid import Grid
from search.problem.trial import GridIndices

Granularity = Literal["block", "half"]
Kv = Literal["drop", "keep"]

FIRST_WITH_KEYS_KEPT = 6
"""Steps of the least sparsity that is tried where keys and values are kept: 30 %.

Below it, taking apart the tokens that run costs about as much time as is saved, so that no clock sees what operations
such schedules save.
"""


@dataclass(frozen=True)
class Genes:
    """Encoding of schedules as genes.

    With `block` there is one gene per block. With `half` there are two, in the order in which a model runs them:
    attention of block 0, MLP of block 0, attention of block 1, and so on.

    Attributes:
        n_blocks: Blocks of the model.
        granularity: Unit that skips as one: whole blocks, or attention and MLP apart.
        kv: Treatment of the keys and values of tokens that skip a block's attention.
        dense_blocks: Blocks that skip nothing; negative numbers count from the end.

    Raises:
        ConfigError: A dense block is none of the model's.
    """

    n_blocks: int
    granularity: Granularity
    kv: Kv
    dense_blocks: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        """Check the dense blocks."""
        for block in self.dense_blocks:
            if not -self.n_blocks <= block < self.n_blocks:
                raise ConfigError(
                    f"Dense block {block} is none of the model's {self.n_blocks}: expected {-self.n_blocks} to "
                    f"{self.n_blocks - 1}."
                )

    @property
    def per_block(self) -> int:
        """Genes of each block."""
        return 2 if self.granularity == "half" else 1

    @property
    def n(self) -> int:
        """Number of genes."""
        return self.n_blocks * self.per_block

    @cached_property
    def blocks(self) -> tuple[int, ...]:
        """The block of each gene."""
        return tuple(gene // self.per_block for gene in range(self.n))

    @cached_property
    def free(self) -> tuple[int, ...]:
        """Genes of blocks that may skip."""
        dense = {block % self.n_blocks for block in self.dense_blocks}
        return tuple(gene for gene, block in enumerate(self.blocks) if block not in dense)

    @cached_property
    def names(self) -> tuple[str, ...]:
        """Name of each gene, such as block_3, attention_3 or mlp_3."""
        halves = ("attention", "mlp") if self.granularity == "half" else ("block",)
        return tuple(f"{half}_{block}" for block in range(self.n_blocks) for half in halves)

    def schedule(self, indices: Sequence[int], grid: Grid) -> SparsitySchedule:
        """The schedule of grid indices."""
        if self.granularity == "block" and self.kv == "drop":
            return SparsitySchedule.from_grid_indices([grid.level(index) for index in indices], grid.step)
        shares = [grid.sparsity(index) for index in indices]
        attention, mlp = (shares[0::2], shares[1::2]) if self.granularity == "half" else (shares, shares)
        return SparsitySchedule.of_halves(attention, mlp, self.kv == "keep")

    def grid_indices(self, schedule: tuple[float, ...], grid: Grid) -> GridIndices:
        """Grid indices of a schedule, or of the nearest one on the grid.

        Args:
            schedule: A schedule, or its numbers: one per block, or `SparsitySchedule.numbers`.
            grid: The grid.
        """
        return _grid_indices(schedule, self.n_blocks, self.granularity == "half", grid)

    def express(self, schedule: tuple[float, ...]) -> bool:
        """True if a schedule, or its numbers, skips as these genes do, and treats keys and values as they do."""
        n = self.n_blocks
        if len(schedule) == n:
            return self.kv == "drop" or not any(schedule)
        if len(schedule) != 3 * n:
            return False
        attention, mlp, keeps_kv = schedule[:n], schedule[n : 2 * n], schedule[2 * n :]
        are_whole = self.granularity == "half" or attention == mlp
        expected = tuple(float(self.kv == "keep" and share > 0) for share in attention)
        return are_whole and tuple(keeps_kv) == expected


# Every proposer asks for those of every trial.
@lru_cache(maxsize=2048)
def _grid_indices(schedule: tuple[float, ...], n_blocks: int, has_halves: bool, grid: Grid) -> GridIndices:
    attention = schedule[:n_blocks]
    if not has_halves:
        return tuple(map(grid.index, attention))
    mlp = attention if len(schedule) == n_blocks else schedule[n_blocks : 2 * n_blocks]
    return tuple(grid.index(share) for both in zip(attention, mlp, strict=True) for share in both)
