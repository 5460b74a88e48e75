"""The space of schedules that a search walks: a grid, and the constraints that can be met before evaluating."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from typing import TypeVar

from ftp_core.schedule import DEFAULT_STEP, MAX_SPARSITY, SparsitySchedule
from search.errors import ConfigError
from search.problem.trial import GridIndices

_Number = TypeVar("_Number", int, float)

# How many exchanges of a step between two blocks are tried to make a schedule of a fixed overall sparsity faster.
_MOST_EXCHANGES = 300


@dataclass(frozen=True)
class LatencyLimit:
    """A limit on what schedules may take.

    Attributes:
        predict_ms: Predicted latency of a schedule.
        max_ms: The limit.
    """

    predict_ms: Callable[[SparsitySchedule], float]
    max_ms: float


@dataclass(frozen=True)
class ScheduleSpace:
    """All schedules on a grid that keep the constraints, given as grid indices: steps of sparsity, one per block.

    Attributes:
        n_blocks: Blocks of the model.
        target_sparsity: Overall sparsity that every schedule must have, to the nearest grid point; None for any.
        step: Distance of the grid.
        max_sparsity: Highest sparsity of a block.
        dense_blocks: Blocks that skip nothing; negative numbers count from the end.
        latency_limit: What predicted latency every schedule must keep; None for any.

    Raises:
        ConfigError: No schedule keeps the constraints, or a dense block is none of the model's.
    """

    n_blocks: int
    target_sparsity: float | None = None
    step: float = DEFAULT_STEP
    max_sparsity: float = MAX_SPARSITY
    dense_blocks: tuple[int, ...] = ()
    latency_limit: LatencyLimit | None = None

    def __post_init__(self) -> None:
        """Check that there is a schedule at all."""
        for block in self.dense_blocks:
            if not -self.n_blocks <= block < self.n_blocks:
                raise ConfigError(
                    f"Dense block {block} is none of the model's {self.n_blocks}: expected {-self.n_blocks} to "
                    f"{self.n_blocks - 1}."
                )
        n_free = len(self.free_blocks)
        if self.target_total is not None and self.target_total > self.top * n_free:
            most = self.top * self.step * n_free / self.n_blocks
            raise ConfigError(
                f"A target sparsity of {self.target_sparsity:g} cannot be reached: with {n_free} of {self.n_blocks} "
                f"blocks free to skip, the overall sparsity is at most {most:.2f}."
            )
        if self.latency_limit is not None:
            fastest = self._fastest()
            if self._is_slow(fastest):
                reached = self.latency_limit.predict_ms(self.schedule(fastest))
                raise ConfigError(
                    f"No schedule takes at most {self.latency_limit.max_ms:g} ms: the fastest that the other "
                    f"constraints allow is predicted to take {reached:.1f} ms. Allow more, or constrain less."
                )

    @property
    def top(self) -> int:
        """Highest grid index of a block."""
        return math.floor(self.max_sparsity / self.step + 1e-9)

    @property
    def free_blocks(self) -> tuple[int, ...]:
        """Blocks that may skip."""
        dense = {block % self.n_blocks for block in self.dense_blocks}
        return tuple(block for block in range(self.n_blocks) if block not in dense)

    @property
    def may_skip(self) -> bool:
        """True if there is more than the dense schedule."""
        return bool(self.free_blocks) and self.top > 0

    @property
    def target_total(self) -> int | None:
        """Sum of grid indices at the target sparsity."""
        if self.target_sparsity is None:
            return None
        return min(round(self.target_sparsity * self.n_blocks / self.step), self.top * self.n_blocks)

    def schedule(self, indices: Sequence[int]) -> SparsitySchedule:
        """The schedule of grid indices."""
        return SparsitySchedule.from_grid_indices(indices, self.step)

    def grid_indices(self, schedule: tuple[float, ...]) -> GridIndices:
        """Grid indices of a schedule, or of the nearest one on the grid."""
        return _grid_indices(schedule, self.step)

    def of_free_blocks(self, indices: Sequence[int]) -> list[int]:
        """Those of grid indices that belong to free blocks."""
        return [indices[block] for block in self.free_blocks]

    def on_all_blocks(self, numbers: Iterable[_Number]) -> list[_Number]:
        """Numbers of the free blocks, with 0 for the dense ones between them."""
        placed: list[_Number] = [0] * self.n_blocks
        for block, number in zip(self.free_blocks, numbers, strict=True):
            placed[block] = number
        return placed

    def contains(self, indices: Sequence[int]) -> bool:
        """True if grid indices keep every constraint."""
        free = set(self.free_blocks)
        return (
            len(indices) == self.n_blocks
            and all(0 <= index <= (self.top if block in free else 0) for block, index in enumerate(indices))
            and self.constraint_violation(indices) == 0
        )

    def constraint_violation(self, indices: Sequence[int]) -> float:
        """By how much a schedule breaks the target and the latency limit, as shares; 0 if it keeps them."""
        broken = 0.0
        if self.target_total is not None:
            broken += abs(sum(indices) - self.target_total) * self.step / self.n_blocks
        limit = self.latency_limit
        if limit is not None:
            broken += max(0.0, limit.predict_ms(self.schedule(indices)) / limit.max_ms - 1)
        return broken

    def repair(self, indices: Sequence[float], rng: random.Random) -> GridIndices:
        """Nearby indices inside the space.

        Numbers are rounded, dense blocks skip nothing, and sparsity is moved one step at a time until the target is met
        and the latency kept.

        Args:
            indices: Any numbers, one per block.
            rng: Chooses the blocks that give or take.
        """
        free, inside = self.free_blocks, [0] * self.n_blocks
        for block in free:
            inside[block] = min(self.top, max(0, round(indices[block])))
        if self.target_total is not None:
            while (missing := self.target_total - sum(inside)) != 0:
                step = 1 if missing > 0 else -1
                movable = [block for block in free if 0 <= inside[block] + step <= self.top]
                inside[rng.choice(movable)] += step
        if self.latency_limit is None:
            return tuple(inside)
        faster = self._made_faster(inside, rng)
        return self._fastest() if self._is_slow(faster) else faster

    def sample(self, rng: random.Random) -> GridIndices:
        """Random indices: an overall sparsity drawn evenly, spread unevenly over the blocks.

        Independent indices would crowd around one half; drawn this way every overall sparsity gets its share.
        """
        mean = self.target_sparsity if self.target_sparsity is not None else rng.uniform(0.0, 0.8)
        weights = [rng.expovariate(1.0) for _ in range(self.n_blocks)]
        scale = mean * self.n_blocks / sum(weights) / self.step
        return self.repair([weight * scale for weight in weights], rng)

    def initial_design(self) -> list[GridIndices]:
        """Schedules that every search should know: dense and uniform ones, or the uniform one at the target."""
        shares = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.65, 0.8)
        totals = [round(self.top * share) * len(self.free_blocks) for share in shares]
        uniform = [self._even(total) for total in (totals if self.target_total is None else [self.target_total])]
        rng = random.Random(0)
        return list(dict.fromkeys(self.repair(indices, rng) for indices in uniform))

    def ablations(self, most: int | None = None) -> list[GridIndices]:
        """Schedules in which one free block skips, and as much as it may: how sensitive the model is to it.

        They need not keep the target and the latency limit. The last block comes first: each schedule then begins like
        the one before it.

        Args:
            most: How many schedules at most; where there are more free blocks, neighbours are ablated together, in
                groups of about the same size. None for each block by itself.
        """
        free = self.free_blocks
        n_groups = len(free) if most is None else min(most, len(free))
        if not self.top or n_groups < 1:
            return []
        ends = [place * len(free) // n_groups for place in range(n_groups + 1)]
        groups = [frozenset(free[start:end]) for start, end in pairwise(ends)]
        return [tuple(self.top * (block in group) for block in range(self.n_blocks)) for group in reversed(groups)]

    def ablated(self, indices: Sequence[int]) -> tuple[int, ...]:
        """The neighbouring free blocks that a schedule ablates, if it is one of `ablations`, however many; or none."""
        if len(indices) != self.n_blocks:
            return ()
        free = self.free_blocks
        places = [place for place, block in enumerate(free) if indices[block]]
        if not places or sum(indices) != self.top * len(places) or len(places) == len(free) > 1:
            return ()
        if places[-1] - places[0] >= len(places):
            return ()
        return tuple(free[place] for place in places)

    def _even(self, total: int) -> GridIndices:
        """A sum of indices spread evenly over the free blocks; what is left over goes to the last ones."""
        free = self.free_blocks
        even, rest = divmod(total, max(1, len(free)))
        return tuple(self.on_all_blocks(even + (place >= len(free) - rest) for place in range(len(free))))

    def _is_slow(self, indices: Sequence[int]) -> bool:
        limit = self.latency_limit
        return limit is not None and limit.predict_ms(self.schedule(indices)) > limit.max_ms

    def _fastest(self) -> GridIndices:
        """Grid indices about as fast as the other constraints allow; always the same ones."""
        if self.target_total is None:
            return self._even(self.top * len(self.free_blocks))
        return tuple(self._made_faster(self._even(self.target_total), random.Random(0)))

    def _made_faster(self, indices: Sequence[int], rng: random.Random) -> GridIndices:
        """Grid indices that keep the latency limit, or come as near to it as steps of sparsity bring them."""
        limit = self.latency_limit
        assert limit is not None
        free, now = self.free_blocks, list(indices)
        if self.target_total is None:
            while self._is_slow(now) and (movable := [block for block in free if now[block] < self.top]):
                now[rng.choice(movable)] += 1
            return tuple(now)
        best_ms = limit.predict_ms(self.schedule(now))
        for _ in range(_MOST_EXCHANGES):
            if best_ms <= limit.max_ms:
                break
            giver, taker = rng.choice(free), rng.choice(free)
            if giver == taker or now[giver] == 0 or now[taker] == self.top:
                continue
            moved = list(now)
            moved[giver] -= 1
            moved[taker] += 1
            if (ms := limit.predict_ms(self.schedule(moved))) < best_ms:
                now, best_ms = moved, ms
        return tuple(now)


# Every proposer asks for those of every trial.
@lru_cache(maxsize=2048)
def _grid_indices(schedule: tuple[float, ...], step: float) -> GridIndices:
    return tuple(round(share / step) for share in schedule)
