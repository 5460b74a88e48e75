"""The space of schedules that a search walks: a grid, with or without a fixed overall sparsity."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

from ftp_core.schedule import DEFAULT_STEP, MAX_SPARSITY, SparsitySchedule


@dataclass(frozen=True)
class ScheduleSpace:
    """All schedules on a grid, given as levels: counts of steps, one per block.

    Attributes:
        n_blocks: Blocks of the model.
        target_sparsity: Overall sparsity that every schedule must have, to the nearest grid point; None for any.
        step: Distance of the grid.
    """

    n_blocks: int
    target_sparsity: float | None = None
    step: float = DEFAULT_STEP

    @property
    def top(self) -> int:
        """The highest level of a block."""
        return round(MAX_SPARSITY / self.step)

    @property
    def target_total(self) -> int | None:
        """The sum of levels that `target_sparsity` asks for."""
        if self.target_sparsity is None:
            return None
        return min(round(self.target_sparsity * self.n_blocks / self.step), self.top * self.n_blocks)

    def schedule(self, levels: Sequence[int]) -> SparsitySchedule:
        """The schedule of given levels."""
        return SparsitySchedule.from_levels(levels, self.step)

    def levels(self, schedule: SparsitySchedule) -> tuple[int, ...]:
        """The levels of a schedule."""
        return schedule.levels(self.step)

    def repair(self, levels: Sequence[float], rng: random.Random) -> tuple[int, ...]:
        """The nearest levels inside the space: rounded, and moved one step at a time until the target is met.

        Args:
            levels: Any numbers, one per block.
            rng: Chooses the blocks that give or take.
        """
        inside = [min(self.top, max(0, round(level))) for level in levels]
        if self.target_total is None:
            return tuple(inside)
        while (missing := self.target_total - sum(inside)) != 0:
            step = 1 if missing > 0 else -1
            movable = [i for i, level in enumerate(inside) if 0 <= level + step <= self.top]
            inside[rng.choice(movable)] += step
        return tuple(inside)

    def sample(self, rng: random.Random) -> tuple[int, ...]:
        """Random levels: an overall sparsity drawn evenly, spread unevenly over the blocks.

        Independent levels would crowd around one half; drawn this way every overall sparsity gets its share.
        """
        mean = self.target_sparsity if self.target_sparsity is not None else rng.uniform(0.0, 0.8)
        weights = [rng.expovariate(1.0) for _ in range(self.n_blocks)]
        scale = mean * self.n_blocks / sum(weights) / self.step
        return self.repair([weight * scale for weight in weights], rng)

    def anchors(self) -> list[tuple[int, ...]]:
        """Schedules that every search should know: dense and uniform ones, or the uniform one at the target."""
        if self.target_total is not None:
            even, rest = divmod(self.target_total, self.n_blocks)
            return [tuple(even + (index >= self.n_blocks - rest) for index in range(self.n_blocks))]
        return [(round(self.top * share),) * self.n_blocks for share in (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.65, 0.8)]
