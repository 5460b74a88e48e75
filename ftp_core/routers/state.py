"""The state that routers decide by: the prompt as it passes through the blocks, never what follows it.

Dimensions: B rows, R some of them, L tokens of a row, D hidden width, W queries listened to, M keys that a block holds.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal

import torch
from torch import Tensor

from ftp_core.schedule import FEWEST_KEPT, SLACK, kept_count

Half = Literal["block", "attention", "mlp"]


def n_protected(keep_first: int, kept: int) -> int:
    """Number of tokens at a prompt's beginning that a block keeps whatever the router thinks of them.

    All `keep_first` that are to be protected, or where the block keeps no more than these, all but one that it keeps:
    one is left to the router, which is the most recent token if it is the static one.
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
        half: Part of that block that is decided: "block" for the whole of it, or "attention" or "mlp".
        hidden: Hidden states before that block `[B, L, D]`; None unless the router reads them there.
        memory: Memory of a recurrent router, of each token; scores of a one-pass router, of each token for all blocks.
        line: Lowest score that was kept in each row when scores were last compared `[B]`; None before.
        keep_first: Number of tokens at each prompt's beginning that are protected: blocks keep them before any other.
        newest_only: True if only the last column is to be decided; `positions` then is of that one `[B, 1]`.
    """

    real: Tensor
    positions: Tensor
    lengths: Tensor
    attention: Tensor
    block: int = 0
    half: Half = "block"
    hidden: Tensor | None = None
    memory: Tensor | None = None
    line: Tensor | None = None
    keep_first: int = 0
    newest_only: bool = False
    _counts: dict[float, Tensor] = field(default_factory=dict)

    @classmethod
    def start(cls, real_BL: Tensor, keep_first: int = 0) -> RoutingState:
        """The state before the first block, of rows whose tokens stand where `real_BL` is True."""
        attention_BL = torch.zeros(real_BL.shape, device=real_BL.device)
        return cls(real_BL, real_BL.cumsum(1) - 1, real_BL.sum(1), attention_BL, keep_first=keep_first)

    @classmethod
    def newest(cls, real_BL: Tensor) -> RoutingState:
        """The state before the first block, of rows whose last column is to be decided."""
        lengths_B, attention_BL = real_BL.sum(1), torch.zeros(real_BL.shape, device=real_BL.device)
        return cls(real_BL, lengths_B[:, None] - 1, lengths_B, attention_BL, newest_only=True)

    @classmethod
    def padded_right(cls, lengths_B: Tensor, width: int, keep_first: int = 0) -> RoutingState:
        """The state before the first block, of rows padded right to `width`."""
        columns_L = torch.arange(width, device=lengths_B.device)
        real_BL = columns_L < lengths_B[:, None]
        attention_BL = torch.zeros(real_BL.shape, device=lengths_B.device)
        return cls(real_BL, columns_L.expand(real_BL.shape), lengths_B, attention_BL, keep_first=keep_first)

    @cached_property
    def row_lengths(self) -> tuple[int, ...]:
        """Real tokens of each row; read once, as a GPU has to be waited for."""
        return tuple(self.lengths.tolist())

    @cached_property
    def relative_positions(self) -> Tensor:
        """Position j / (L - 1) of each token `[B, L]`; anything in [0, 1] where there is none."""
        return (self.positions / (self.lengths[:, None] - 1).clamp(min=1)).clamp_(0, 1)

    @cached_property
    def columns(self) -> Tensor:
        """Number of each column, as a float `[B, L]`."""
        return torch.arange(self.real.shape[1], device=self.real.device, dtype=torch.float32).expand(self.real.shape)

    @property
    def is_rectangular(self) -> bool:
        """True if every column of every row is a real token."""
        return all(length == self.real.shape[1] for length in self.row_lengths)

    def observe(self, received_BL: Tensor, attended_BL: Tensor) -> None:
        """Takes over the attention received where a block attended to the token (`attended_BL`, bool)."""
        scaled_BL = received_BL / received_BL.amax(-1, keepdim=True).clamp(min=1e-9)
        self.attention = torch.where(attended_BL, scaled_BL, self.attention)

    def row_kept_counts(self, sparsity: float) -> tuple[int, ...]:
        """`k = min(L, max(2, ceil((1 - s) * L)))` of each row."""
        return tuple(kept_count(sparsity, length) for length in self.row_lengths)

    def kept_counts(self, sparsity: float) -> Tensor:
        """`row_kept_counts` as a tensor `[B]`."""
        if sparsity not in self._counts:
            counts = self.row_kept_counts(sparsity)
            # To copy a list, a GPU would be waited for.
            if len(set(counts)) == 1:
                counts_B = torch.full((len(counts),), counts[0], device=self.real.device)
            elif self.real.device.type in ("cpu", "mps"):
                counts_B = torch.tensor(counts, device=self.real.device)
            else:
                exact_B = ((1.0 - sparsity) * self.lengths.double() - SLACK).ceil().clamp(min=FEWEST_KEPT).long()
                counts_B = exact_B.minimum(self.lengths)
            self._counts[sparsity] = counts_B
        return self._counts[sparsity]

    def protected(self, sparsity: float) -> Tensor | None:
        """Tokens that a block of this sparsity keeps whatever their scores, bool `[B, L]`; None if there are none.

        They are fewer than the row's kept count, see `n_protected`.
        """
        if self.keep_first == 0:
            return None
        n_first_B = (self.kept_counts(sparsity) - 1).clamp_(max=self.keep_first)
        return (self.positions < n_first_B[:, None]) & self.real


@dataclass
class DecodeState:
    """Memory of routed decoding between forward passes; the lists have an entry for each block.

    Attributes:
        heard: Attention that the block's slots received from its last W kept queries, mean over heads `[B, W, M]`;
            the list is empty if the router does not listen.
        heard_real: True where there is such a query `[B, W]`.
        skipped: Decoded tokens that skipped the block `[B]`.
        decoded: Tokens decoded so far `[B]`.
        lines: Lowest score that was kept in the prompt of each row, from which on decoded tokens are kept `[B]`; None
            where no scores were compared.
    """

    heard: list[Tensor]
    heard_real: list[Tensor]
    skipped: list[Tensor]
    decoded: Tensor
    lines: list[Tensor | None]

    def received(self, block: int) -> Tensor:
        """Attention received by a block's slots, mean over its last W queries `[B, M]`."""
        return self.heard[block].sum(1) / self.heard_real[block].sum(-1, keepdim=True).clamp(min=1)

    def hear(self, block: int, heard_RM: Tensor, window: int, rows_R: Tensor | None) -> None:
        """Adds the attention that one more query paid to a block's slots, one of which is new.

        The query ran in the rows `rows_R`, None for all; the others hear nothing new.
        """
        heard_BWM, real_BW = self.heard[block], self.heard_real[block]
        heard_BWM = torch.nn.functional.pad(heard_BWM, (0, 1))
        if rows_R is None:
            heard_BWM = torch.cat([heard_BWM, heard_RM[:, None]], 1)
            real_BW = torch.cat([real_BW, real_BW.new_ones(len(real_BW), 1)], 1)
        else:
            new_B1M = torch.zeros_like(heard_BWM[:, :1]).index_copy_(0, rows_R, heard_RM[:, None])
            ran_B1 = torch.zeros_like(real_BW[:, :1]).index_fill_(0, rows_R, True)
            # Rows that skipped get a slot that stands for no query, in front of those that do.
            heard_BWM, real_BW = torch.cat([heard_BWM, new_B1M], 1), torch.cat([real_BW, ran_B1], 1)
            order_BW = real_BW.to(torch.uint8).argsort(dim=1, stable=True)
            heard_BWM, real_BW = heard_BWM.take_along_dim(order_BW[..., None], 1), real_BW.take_along_dim(order_BW, 1)
        self.heard[block], self.heard_real[block] = heard_BWM[:, -window:], real_BW[:, -window:]

    def per_row(self, change: Callable[[Tensor], Tensor]) -> None:
        """Applies a selection of rows to everything."""
        self.heard = [change(tensor) for tensor in self.heard]
        self.heard_real = [change(tensor) for tensor in self.heard_real]
        self.skipped = [change(tensor) for tensor in self.skipped]
        self.decoded = change(self.decoded)
        self.lines = [None if line is None else change(line) for line in self.lines]
