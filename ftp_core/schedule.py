"""The sparsity schedule: which share of its tokens each transformer block, or each half of it, skips."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence, Set, Sized
from typing import Any, NamedTuple, Self

from ftp_core.errors import ScheduleError

MAX_SPARSITY = 0.95
DEFAULT_STEP = 0.05


FEWEST_KEPT = 2
"""Tokens that a block keeps at least: the static router's first one, which attention rests on, and the last one.

The first token of an answer is predicted from the state of the last one: where a block kept one token of a short
prompt, which was the first, KL was up to twenty times as high (docs/real-models.md).
"""
# The product may be off by an ulp; without the slack ceil(0.55 * 20) would be 12.
SLACK = 1e-9


def kept_count(sparsity: float, length: int) -> int:
    """Tokens that run a block: `k = min(L, max(2, ceil((1 - s) * L)))`.

    Args:
        sparsity: Share of tokens that skip the block. Above `MAX_SPARSITY`, which is in no schedule, it may be one
            token that is left.
        length: Real (not padding) tokens of the row.
    """
    fewest = FEWEST_KEPT if sparsity <= MAX_SPARSITY + SLACK else 1
    return min(length, max(fewest, math.ceil((1.0 - sparsity) * length - SLACK)))


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


def _shares(values: Sequence[float], what: str) -> tuple[float, ...]:
    """One share per block, checked and rounded."""
    # Sets have no order, and of mappings only the keys would be seen.
    if not isinstance(values, Iterable) or isinstance(values, str | bytes | Set | Mapping):
        raise ScheduleError(f"A schedule is one sparsity per block, but {values!r} was given: give a list of them.")
    numbers = [_number(index, value) for index, value in enumerate(values)]
    if not numbers:
        raise ScheduleError("A schedule needs one sparsity per block, but none was given.")
    for index, value in enumerate(numbers):
        if not 0.0 <= value <= MAX_SPARSITY + 1e-9:
            raise ScheduleError(
                f"{what} {value} of block {index} is outside [0, {MAX_SPARSITY}]: "
                "give each block the share of tokens that may skip it."
            )
    # Ten decimals make equal schedules equal whichever arithmetic led to them.
    return tuple(round(value, 10) for value in numbers)


class BlockSparsity(NamedTuple):
    """Sparsity of one block in a schedule.

    Attributes:
        attention: Share of tokens that skip its attention.
        mlp: Share of tokens that skip its MLP.
        keeps_kv: True if tokens that skip its attention have keys and values there all the same, which others attend
            to.
    """

    attention: float
    mlp: float
    keeps_kv: bool = False

    @property
    def is_dense(self) -> bool:
        """True if no token skips anything."""
        return self.attention == 0 and self.mlp == 0

    @property
    def is_whole(self) -> bool:
        """True if both halves skip the same tokens, which leave no keys and values."""
        return self.attention == self.mlp and not self.keeps_kv

    @property
    def overall(self) -> float:
        """Mean of the halves."""
        return self.attention if self.attention == self.mlp else (self.attention + self.mlp) / 2

    @property
    def n_decisions(self) -> int:
        """Times that a router decides before it: for each half that skips, where they skip apart."""
        return int(not self.is_dense) if self.is_whole else (self.attention > 0) + (self.mlp > 0)

    def n_keys(self, length: int) -> int:
        """Keys that it holds of a row of `length` real tokens."""
        return length if self.keeps_kv else kept_count(self.attention, length)


class SparsitySchedule(tuple[float, ...]):
    """Shares of tokens that skip each of N blocks: immutable, hashable, printable.

    The tuple `(s_0 ... s_{N-1})`, where blocks are skipped as a whole, and skipped tokens leave no keys and values. Any
    other schedule, see `of_halves`, is the tuple of 3 N numbers `attention`, then `mlp`, then `keeps_kv` as 0 or 1.
    Equal schedules have one form only, whichever way they were made.

    Args:
        values: One share per block, each in `[0, 0.95]`.

    Attributes:
        n_blocks: N.

    Raises:
        ScheduleError: A share is not a number, lies outside the range, or there is none at all.
    """

    n_blocks: int

    def __new__(cls, values: Sequence[float]) -> Self:
        """Check the shares, and round them."""
        return cls._made(_shares(values, "Sparsity"), len(values))

    @classmethod
    def _made(cls, numbers: Sequence[float], n_blocks: int) -> Self:
        made = super().__new__(cls, numbers)
        made.n_blocks = n_blocks
        return made

    @classmethod
    def of_halves(
        cls, attention: Sequence[float], mlp: Sequence[float], keeps_kv: bool | Sequence[bool] = False
    ) -> SparsitySchedule:
        """The schedule that skips the halves of each block apart.

        Args:
            attention: Share of tokens that skip each block's attention.
            mlp: Share of tokens that skip each block's MLP.
            keeps_kv: See `BlockSparsity`, for each block or for all of them.

        Raises:
            ScheduleError: A share is not a number or lies outside the range, or there are not as many of each.
        """
        halves = _shares(attention, "Attention sparsity"), _shares(mlp, "MLP sparsity")
        n_blocks = len(halves[0])
        keeps = [keeps_kv] * n_blocks if isinstance(keeps_kv, bool) else list(keeps_kv)
        if len(halves[1]) != n_blocks or len(keeps) != n_blocks:
            raise ScheduleError(
                f"A schedule has {n_blocks} sparsities for attention, {len(halves[1])} for MLPs and {len(keeps)} "
                "decisions about keys and values: give one of each for every block."
            )
        # Without a skipped token there are no keys and values to decide about.
        kept = [float(bool(keep) and share > 0) for keep, share in zip(keeps, halves[0], strict=True)]
        if halves[0] == halves[1] and not any(kept):
            return cls._made(halves[0], n_blocks)
        return cls._made((*halves[0], *halves[1], *kept), n_blocks)

    @classmethod
    def of(cls, values: Sequence[float], n_blocks: int | None = None) -> SparsitySchedule:
        """Numbers as a schedule; a schedule is returned as it is.

        Args:
            values: One share per block; or the 3 N numbers of a schedule with halves, where N is given.
            n_blocks: N; None if `values` know it as their `n_blocks`, or are one share per block.

        Raises:
            ScheduleError: They are no schedule.
        """
        # It says itself of how many blocks it is.
        if isinstance(values, cls):
            return values
        n_blocks = getattr(values, "n_blocks", None) if n_blocks is None else n_blocks
        if n_blocks is not None and isinstance(values, Sized) and len(values) == 3 * n_blocks > 0:
            parts = [values[start : start + n_blocks] for start in (0, n_blocks, 2 * n_blocks)]
            return cls.of_halves(parts[0], parts[1], [bool(keep) for keep in parts[2]])
        return cls(values)

    @classmethod
    def uniform(cls, sparsity: float, n_blocks: int) -> SparsitySchedule:
        """The same sparsity in every block."""
        return cls([sparsity] * n_blocks)

    @classmethod
    def from_grid_indices(cls, indices: Sequence[int], step: float = DEFAULT_STEP) -> SparsitySchedule:
        """The schedule at grid points `index * step`."""
        return cls([index * step for index in indices])

    def grid_indices(self, step: float = DEFAULT_STEP) -> tuple[int, ...]:
        """The nearest grid point of each block, as a count of steps; of a schedule without halves."""
        return tuple(round(value / step) for value in self)

    @property
    def is_plain(self) -> bool:
        """True if blocks are skipped as a whole, and skipped tokens leave no keys and values."""
        return len(self) == self.n_blocks

    @property
    def attention(self) -> tuple[float, ...]:
        """Share of tokens that skip each block's attention."""
        return tuple(self[: self.n_blocks])

    @property
    def mlp(self) -> tuple[float, ...]:
        """Share of tokens that skip each block's MLP."""
        return self.attention if self.is_plain else tuple(self[self.n_blocks : 2 * self.n_blocks])

    @property
    def keeps_kv(self) -> tuple[bool, ...]:
        """See `BlockSparsity`, for each block."""
        return (False,) * self.n_blocks if self.is_plain else tuple(map(bool, self[2 * self.n_blocks :]))

    @property
    def blocks(self) -> tuple[BlockSparsity, ...]:
        """Sparsity of each block."""
        return tuple(map(BlockSparsity, self.attention, self.mlp, self.keeps_kv))

    @property
    def numbers(self) -> tuple[float, ...]:
        """The 3 N numbers of any schedule, as `of` reads them: `attention`, `mlp`, `keeps_kv`."""
        return (*self.attention, *self.mlp, *map(float, self.keeps_kv))

    @property
    def overall(self) -> float:
        """Overall sparsity: the mean over all blocks, what the FTP paper (arXiv 2412.11494) reports.

        Where halves differ, it is the mean over them.
        """
        if self.is_plain:
            return math.fsum(self) / len(self)
        return math.fsum((*self.attention, *self.mlp)) / (2 * self.n_blocks)

    def kept_counts(self, length: int) -> tuple[int, ...]:
        """`k_i` of every block for a row of `length` real tokens; of attention, where halves differ."""
        return tuple(kept_count(value, length) for value in self.attention)

    def to_json(self) -> list[float] | dict[str, list[float]]:
        """As plain values: a list of one share per block, or lists by name where halves differ."""
        if self.is_plain:
            return list(self)
        return {"attention": [*self.attention], "mlp": [*self.mlp], "keeps_kv": [*map(int, self.keeps_kv)]}

    @classmethod
    def from_json(cls, value: Any) -> SparsitySchedule:
        """The schedule of `to_json`, or one as it is.

        Raises:
            ScheduleError: It is none.
        """
        if not isinstance(value, Mapping):
            return cls.of(value)
        if set(value) != {"attention", "mlp", "keeps_kv"} or not isinstance(value["keeps_kv"], Sequence):
            raise ScheduleError(
                f"A schedule has the lists {', '.join(value) or 'of nothing'}, but expected are attention, mlp and "
                "keeps_kv, each with a number for every block."
            )
        return cls.of_halves(value["attention"], value["mlp"], [bool(keep) for keep in value["keeps_kv"]])

    def __eq__(self, other: object) -> bool:
        # One of N blocks with halves is none of 3 N blocks.
        return tuple.__eq__(self, other) is True and self.n_blocks == getattr(other, "n_blocks", self.n_blocks)

    def __ne__(self, other: object) -> bool:
        return not self == other

    __hash__ = tuple.__hash__

    def __reduce__(self) -> tuple[Any, ...]:
        return (_remade, (tuple(self), self.n_blocks))

    def __repr__(self) -> str:
        if self.is_plain:
            return f"SparsitySchedule([{_listed(self)}])"
        keeps = str(all(self.keeps_kv)) if len(set(self.keeps_kv)) == 1 else f"[{_listed(map(int, self.keeps_kv))}]"
        return f"SparsitySchedule.of_halves([{_listed(self.attention)}], [{_listed(self.mlp)}], {keeps})"

    def __str__(self) -> str:
        if self.is_plain:
            return f"{' '.join(f'{value:.2f}' for value in self)} (overall {self.overall:.1%})"
        # `+` behind a block that keeps the keys and values of those who skip.
        parts = (f"{a:.2f}{'+' * keeps}/{m:.2f}" for a, m, keeps in self.blocks)
        return f"{' '.join(parts)} (attention/MLP, overall {self.overall:.1%})"


def _listed(numbers: Iterable[float]) -> str:
    return ", ".join(f"{value:g}" for value in numbers)


def _remade(numbers: tuple[float, ...], n_blocks: int) -> SparsitySchedule:
    return SparsitySchedule.of(numbers, n_blocks)
