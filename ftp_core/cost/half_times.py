"""Times of blocks whose halves run on different tokens, from those of four kinds of such blocks.

A block in which K tokens run the attention and M tokens the MLP takes, beyond the time of a dense one, what skipping
the attention alone adds (less than 0, if it pays), and skipping the MLP alone. Where both skip, tokens that run neither
pass it entirely, its norms and sums included, and are gathered once: what this saves beyond the two is known from
blocks in which both halves run on the same tokens, and is taken at the larger one of K and M.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from ftp_core.schedule import BlockSparsity

Floats = NDArray[np.float64]
PerKind = tuple[tuple[float, ...], ...]

Skips = Literal["attention", "attention_kept", "mlp", "both_kept"]
"""Part that tokens skip: the attention, leaving no keys or keeping their keys; the MLP; or both, keeping their keys."""

SKIPS: Mapping[Skips, Callable[[float], BlockSparsity]] = {
    "attention": lambda share: BlockSparsity(share, 0.0),
    "attention_kept": lambda share: BlockSparsity(share, 0.0, keeps_kv=True),
    "mlp": lambda share: BlockSparsity(0.0, share),
    "both_kept": lambda share: BlockSparsity(share, share, keeps_kv=True),
}


@dataclass(frozen=True)
class HalfTimes:
    """Times of one shape at every kept count, each `[kinds, L + 1]`; of all tokens, that of a dense block."""

    attention: Floats
    attention_kept: Floats
    mlp: Floats
    both_kept: Floats

    @cached_property
    def _rows(self) -> list[tuple[list[float], ...]]:
        """The same for each kind, as Python's numbers, which are quicker to look up one by one."""
        return list(zip(*(getattr(self, name).tolist() for name in SKIPS), strict=True))

    def block_ms(self, kind: int, sparsity: BlockSparsity, kept: int, kept_mlp: int) -> float:
        """Time of a block of a kind, in which so many tokens run the attention and the MLP."""
        attention, attention_kept, mlp, both_kept = self._rows[kind]
        length = len(mlp) - 1
        dense_ms = mlp[length]
        ms = (attention_kept if sparsity.keeps_kv else attention)[kept] + mlp[kept_mlp] - dense_ms
        used = max(kept, kept_mlp)
        if used < length:
            ms += both_kept[used] - attention_kept[used] - mlp[used] + dense_ms
        return max(0.0, ms)

    def mixed(self, other: HalfTimes, mix: Callable[[Floats, Floats], Floats]) -> HalfTimes:
        """Times between these and those of another length."""
        return HalfTimes(**{name: mix(getattr(self, name), getattr(other, name)) for name in SKIPS})


@dataclass(frozen=True)
class HalfProfile:
    """Milliseconds measured of blocks in which a half skips, or both do that keep their keys; with the static router.

    Attributes:
        kept: Kept counts that were measured, ascending; all less than the length.
        attention: Median time of each kind of block at each kept count of the attention; the others leave no keys.
        attention_kept: The same, where the others keep their keys and values.
        mlp: Median time of each kind of block at each kept count of the MLP.
        both_kept: Median time where both halves run on the same tokens, and the others keep keys and values.
    """

    kept: tuple[int, ...]
    attention: PerKind
    attention_kept: PerKind
    mlp: PerKind
    both_kept: PerKind

    @property
    def tables(self) -> dict[str, tuple[PerKind, tuple[int, ...]]]:
        """Its times by name, with the counts that they are for."""
        return {field.name: (getattr(self, field.name), self.kept) for field in fields(self) if field.name != "kept"}

    def times(self, measured: int, shares: Floats, dense_ms: Sequence[float]) -> HalfTimes:
        """Times at some shares of the tokens, up to 1.

        Args:
            measured: Tokens of each row.
            shares: The shares.
            dense_ms: Time of each kind of block that runs whole.
        """
        # The times are about linear in the kept tokens; that of all tokens is apart, as nothing is gathered.
        counts = [*self.kept, measured]
        return HalfTimes(
            **{
                name: np.stack(
                    [
                        np.interp(shares * measured, counts, [*row, dense])
                        for row, dense in zip(getattr(self, name), dense_ms, strict=False)
                    ]
                )
                for name in SKIPS
            }
        )
