"""The sparsity schedule: which share of its tokens each transformer block skips."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence, Set
from typing import Any, Self

from ftp_core.errors import ScheduleError

MAX_SPARSITY = 0.95
DEFAULT_STEP = 0.05


# The product may be off by an ulp; without the slack ceil(0.55 * 20) would be 12.
SLACK = 1e-9


def kept_count(sparsity: float, length: int) -> int:
    """Tokens that run a block: `k = max(1, ceil((1 - s) * L))`.

    Args:
        sparsity: Share of tokens that skip the block.
        length: Real (not padding) tokens of the row.
    """
    return max(1, math.ceil((1.0 - sparsity) * length - SLACK))


def _number(index: int, value: Any) -> float:
    # Texts of numbers are refused, too: their source was not parsed.
    if not isinstance(value, str | bytes):
        try:
            return float(value)
        except (TypeError, ValueError):
            pass
    raise ScheduleError(
        f"Sparsity {value!r} of block {index} is not a number: give each block the share of tokens that may skip."
    )


class SparsitySchedule(tuple[float, ...]):
    """The tuple `(s_0 ... s_{N-1})` of the shares of tokens that skip each block: immutable, hashable, printable.

    Args:
        values: One share per block, each in `[0, 0.95]`.

    Raises:
        ScheduleError: A share is not a number, lies outside the range, or there is none at all.
    """

    __slots__ = ()

    def __new__(cls, values: Sequence[float]) -> Self:
        """Check the shares, and round them."""
        # Sets have no order, and of mappings only the keys would be seen.
        if not isinstance(values, Iterable) or isinstance(values, str | bytes | Set | Mapping):
            raise ScheduleError(f"A schedule is one sparsity per block, but {values!r} was given: give a list of them.")
        numbers = [_number(index, value) for index, value in enumerate(values)]
        if not numbers:
            raise ScheduleError("A schedule needs one sparsity per block, but none was given.")
        for index, value in enumerate(numbers):
            if not 0.0 <= value <= MAX_SPARSITY + 1e-9:
                raise ScheduleError(
                    f"Sparsity {value} of block {index} is outside [0, {MAX_SPARSITY}]: "
                    "give each block the share of tokens that may skip it."
                )
        # Ten decimals make equal schedules equal whichever arithmetic led to them.
        return super().__new__(cls, (round(value, 10) for value in numbers))

    @classmethod
    def of(cls, values: Sequence[float]) -> SparsitySchedule:
        """One share per block as a schedule; a schedule is returned as it is."""
        return values if isinstance(values, cls) else cls(values)

    @classmethod
    def uniform(cls, sparsity: float, n_blocks: int) -> SparsitySchedule:
        """The same sparsity in every block."""
        return cls([sparsity] * n_blocks)

    @classmethod
    def from_grid_indices(cls, indices: Sequence[int], step: float = DEFAULT_STEP) -> SparsitySchedule:
        """The schedule at grid points `index * step`."""
        return cls([index * step for index in indices])

    def grid_indices(self, step: float = DEFAULT_STEP) -> tuple[int, ...]:
        """The nearest grid point of each block, as a count of steps."""
        return tuple(round(value / step) for value in self)

    @property
    def overall(self) -> float:
        """Overall sparsity: the mean over all blocks, what the FTP paper (arXiv 2412.11494) reports."""
        return math.fsum(self) / len(self)

    def kept_counts(self, length: int) -> tuple[int, ...]:
        """`k_i` of every block for a row of `length` real tokens."""
        return tuple(kept_count(value, length) for value in self)

    def __repr__(self) -> str:
        return f"SparsitySchedule([{', '.join(f'{value:g}' for value in self)}])"

    def __str__(self) -> str:
        return f"{' '.join(f'{value:.2f}' for value in self)} (overall {self.overall:.1%})"
