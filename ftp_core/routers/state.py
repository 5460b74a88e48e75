"""What a router may look at: the prompt as it passes through the blocks, never what follows it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import Tensor

from ftp_core.schedule import kept_count


def n_protected(keep_first: int, kept: int) -> int:
    """Tokens at a prompt's beginning that a block keeps whatever the router thinks of them.

    That is all that shall be protected, or where the block keeps no more than these, all but one of what it keeps:
    something is left to the router, which is the most recent token if it is the static one.

    Args:
        keep_first: Tokens at the prompt's beginning that shall be protected.
        kept: Tokens of the prompt that the block keeps, at least 1.
    """
    return min(keep_first, kept - 1)


@dataclass
class RoutingState:
    """A batch of prompts on its way through the blocks.

    Attributes:
        real: True for tokens, False for padding and for what does not belong to the prompt `[B, L]`.
        positions: Index of each token among its row's real ones `[B, L]`; anything where there is none.
        lengths: Real tokens of each row `[B]`.
        attention: Attention that each token received in the last block that attended to it, divided by the row's
            maximum `[B, L]`; 0 before the first block.
        block: Index of the block that is about to run.
        hidden: Hidden states before that block `[B, L, D]`; None unless the router asks for them.
        memory: What a recurrent router remembers of each token from earlier blocks.
        line: The lowest score that was kept in each row when scores were last compared `[B]`; None before.
        keep_first: Tokens at each prompt's beginning that are protected: blocks keep them before any other.
        newest_only: Whether a decision is asked on the last column alone; `positions` then is of that one `[B, 1]`.
    """

    real: Tensor
    positions: Tensor
    lengths: Tensor
    attention: Tensor
    block: int = 0
    hidden: Tensor | None = None
    memory: Tensor | None = None
    line: Tensor | None = None
    keep_first: int = 0
    newest_only: bool = False
    _counts: dict[float, Tensor] = field(default_factory=dict)

    @classmethod
    def start(cls, real: Tensor, keep_first: int = 0) -> RoutingState:
        """The state before the first block, of rows whose tokens stand where `real` is True `[B, L]`."""
        attention = torch.zeros(real.shape, device=real.device)
        return cls(real, real.cumsum(1) - 1, real.sum(1), attention, keep_first=keep_first)

    @classmethod
    def newest(cls, real: Tensor) -> RoutingState:
        """The state before the first block, of rows `[B, n]` on whose last column a decision is asked."""
        lengths = real.sum(1)
        attention = torch.zeros(real.shape, device=real.device)
        return cls(real, lengths[:, None] - 1, lengths, attention, newest_only=True)

    @classmethod
    def padded_right(cls, lengths: Tensor, width: int, keep_first: int = 0) -> RoutingState:
        """The state before the first block, of rows of `lengths` tokens `[B]` padded right to `width`."""
        columns = torch.arange(width, device=lengths.device)
        positions = columns.expand(len(lengths), width)
        real = columns < lengths[:, None]
        attention = torch.zeros(real.shape, device=lengths.device)
        return cls(real, positions, lengths, attention, keep_first=keep_first)

    @cached_property
    def row_lengths(self) -> tuple[int, ...]:
        """Real tokens of each row; asked for once, as a GPU has to be waited for."""
        return tuple(self.lengths.tolist())

    @cached_property
    def relative_positions(self) -> Tensor:
        """Position j / (L - 1) of each token `[B, L]`; anything in [0, 1] where there is none."""
        return (self.positions / (self.lengths[:, None] - 1).clamp(min=1)).clamp_(0, 1)

    @cached_property
    def columns(self) -> Tensor:
        """The number of each column, as a float `[B, L]`."""
        return torch.arange(self.real.shape[1], device=self.real.device, dtype=torch.float32).expand(self.real.shape)

    @property
    def is_rectangular(self) -> bool:
        """Whether every column of every row is a real token."""
        return all(length == self.real.shape[1] for length in self.row_lengths)

    def observe(self, received: Tensor, attended: Tensor) -> None:
        """Take over the attention received `[B, L]` where a block attended to the token (`attended`, bool)."""
        scaled = received / received.amax(-1, keepdim=True).clamp(min=1e-9)
        self.attention = torch.where(attended, scaled, self.attention)

    def row_kept_counts(self, sparsity: float) -> tuple[int, ...]:
        """`k = max(1, ceil((1 - s) * L))` of each row."""
        return tuple(kept_count(sparsity, length) for length in self.row_lengths)

    def kept_counts(self, sparsity: float) -> Tensor:
        """`row_kept_counts` as a tensor `[B]`."""
        if sparsity not in self._counts:
            self._counts[sparsity] = torch.tensor(self.row_kept_counts(sparsity), device=self.real.device)
        return self._counts[sparsity]

    def protected(self, sparsity: float) -> Tensor | None:
        """Tokens that a block of this sparsity keeps whatever their scores, bool `[B, L]`; None if none shall be.

        Of each row they are fewer than its kept count, see `n_protected`.
        """
        if self.keep_first == 0:
            return None
        numbers = (self.kept_counts(sparsity) - 1).clamp_(max=self.keep_first)
        return (self.positions < numbers[:, None]) & self.real


@dataclass
class DecodeState:
    """What routing decoded tokens needs to remember between forward passes.

    Attributes:
        heard: Of each block, the attention that its slots received from its last W kept queries, mean over heads
            `[B, W, M]`; empty if the router does not listen.
        heard_real: Whether there is such a query `[B, W]`.
        skipped: Decoded tokens that skipped each block `[B]`.
        decoded: Tokens decoded so far `[B]`.
        lines: Of each block, the lowest score that was kept in the prompt of each row `[B]`; None where nothing was
            compared. Decoded tokens are kept from there on.
    """

    heard: list[Tensor]
    heard_real: list[Tensor]
    skipped: list[Tensor]
    decoded: Tensor
    lines: list[Tensor | None]

    def received(self, block: int) -> Tensor:
        """Attention received by a block's slots, mean over its last W queries `[B, M]`."""
        n_real = self.heard_real[block].sum(-1, keepdim=True).clamp(min=1)
        return self.heard[block].sum(1) / n_real

    def hear(self, block: int, row_heard: Tensor, window: int, rows: Tensor | None) -> None:
        """Take in the attention that one more query paid to a block's slots.

        Args:
            block: Index of the block.
            row_heard: `[R, M + 1]`.
            window: W.
            rows: Rows that the query ran in `[R]`; None for all. The others hear nothing new.
        """
        before, real = self.heard[block], self.heard_real[block]
        before = torch.cat([before, before.new_zeros(*before.shape[:2], 1)], 2)
        if rows is not None:
            spread = row_heard.new_zeros(len(before), row_heard.shape[1]).index_copy_(0, rows, row_heard)
            ran = torch.zeros(len(before), dtype=torch.bool, device=before.device)
            ran[rows] = True
            # Rows that skipped get a slot that stands for no query, in front of those that do.
            after = torch.cat([before, spread[:, None]], 1)
            after_real = torch.cat([real, ran[:, None]], 1)
            order = after_real.to(torch.uint8).argsort(dim=1, stable=True)
            after, after_real = after.take_along_dim(order[..., None], 1), after_real.take_along_dim(order, 1)
        else:
            after = torch.cat([before, row_heard[:, None]], 1)
            after_real = torch.cat([real, real.new_ones(len(real), 1)], 1)
        self.heard[block], self.heard_real[block] = after[:, -window:], after_real[:, -window:]

    def per_row(self, change: Callable[[Tensor], Tensor]) -> None:
        """Apply a selection of rows to everything."""
        self.heard = [change(tensor) for tensor in self.heard]
        self.heard_real = [change(tensor) for tensor in self.heard_real]
        self.skipped = [change(tensor) for tensor in self.skipped]
        self.decoded = change(self.decoded)
        self.lines = [None if line is None else change(line) for line in self.lines]
