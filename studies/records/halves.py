"""Schedules whose blocks' halves skip apart, or keep keys and values, as studies keep them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache


class Halves(tuple[float, ...]):
    """The 3 N numbers of a schedule of N blocks: shares of tokens that skip attention, then MLPs, then 1 for kept keys.

    Schedules that skip whole blocks and keep nothing are a tuple of one share per block, and never this.
    """

    @property
    def n_blocks(self) -> int:
        """N."""
        return len(self) // 3


def stored(numbers: Sequence[float]) -> tuple[float, ...]:
    """A schedule as studies keep it, from one that knows its `n_blocks`, or from one share per block."""
    return Halves(numbers) if n_blocks(numbers) != len(numbers) else tuple(numbers)


def n_blocks(schedule: Sequence[float]) -> int:
    """Blocks of a schedule."""
    return int(getattr(schedule, "n_blocks", len(schedule)))


def halves(schedule: Sequence[float]) -> tuple[tuple[float, ...], tuple[float, ...], tuple[float, ...]]:
    """Shares of tokens that skip each block's attention and its MLP, and 1 where keys and values are kept."""
    n = n_blocks(schedule)
    if n == len(schedule):
        return tuple(schedule), tuple(schedule), (0.0,) * n
    return tuple(schedule[:n]), tuple(schedule[n : 2 * n]), tuple(schedule[2 * n :])


def to_json(schedule: Sequence[float]) -> list[float] | dict[str, list[float]]:
    """A schedule as plain values, as `SparsitySchedule.to_json` has them: lists by name where halves differ."""
    if n_blocks(schedule) == len(schedule):
        return list(schedule)
    attention, mlp, keeps_kv = halves(schedule)
    return {"attention": [*attention], "mlp": [*mlp], "keeps_kv": [*map(int, keeps_kv)]}


def per_block(schedule: Sequence[float]) -> tuple[float, ...]:
    """One share per block: the mean of its halves."""
    attention, mlp, _ = halves(schedule)
    return tuple(a if a == m else (a + m) / 2 for a, m in zip(attention, mlp, strict=True))


def overall(schedule: Sequence[float]) -> float:
    """Overall sparsity of a schedule."""
    shares = per_block(schedule)
    return sum(shares) / len(shares)


def joined(numbers: Sequence[float]) -> tuple[float, ...]:
    """The schedule of 3 N numbers, as it is stored."""
    attention, mlp, keeps_kv = halves(Halves(numbers))
    return attention if attention == mlp and not any(keeps_kv) else Halves(numbers)


def named(schedule: Sequence[float], has_halves: bool) -> dict[str, float]:
    """A schedule by the names of its parameters."""
    numbers = [number for part in halves(schedule) for number in part] if has_halves else schedule
    return dict(zip(parameter_names(n_blocks(schedule), has_halves), numbers, strict=True))


def read(parameters: Mapping[str, float]) -> tuple[float, ...] | None:
    """Inverse of `named`; None if the parameters are no schedule."""
    has_halves = "attention_0" in parameters
    names = parameter_names(len(parameters) // (3 if has_halves else 1), has_halves)
    if not names or len(names) != len(parameters) or not all(name in parameters for name in names):
        return None
    numbers = tuple(parameters[name] for name in names)
    return joined(numbers) if has_halves else numbers


@cache
def parameter_names(n_blocks: int, has_halves: bool) -> tuple[str, ...]:
    """Names of the parameters of a schedule: one per block, or 3 N with halves."""
    kinds = ("attention", "mlp", "kv") if has_halves else ("block",)
    return tuple(f"{kind}_{index}" for kind in kinds for index in range(n_blocks))
