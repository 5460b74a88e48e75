"""What skipping asks of a router."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from ftp_core.routers.state import RoutingState


class Router(Protocol):
    """Decides which tokens run a block."""

    @property
    def kind(self) -> str:
        """Its name in files, tables and configurations."""

    @property
    def window(self) -> int:
        """How many last queries the attention feature listens to; 0 if the router does not look at attention."""

    @property
    def reads_hidden(self) -> bool:
        """Whether it looks at hidden states."""

    @property
    def keeps_budget(self) -> bool:
        """Whether it keeps exactly the row's kept count, and not about as many."""

    @property
    def routes_decoding(self) -> bool:
        """Whether it can decide on one token from what the cache remembers of those before it."""

    def keep(self, sparsity: float, state: RoutingState) -> Tensor:
        """Which of the row's real tokens run block `state.block`, bool `[B, L]`; at least one of each row.

        Those of `state.protected(sparsity)` are among them; `highest` sees to it.
        """

    def keep_newest(self, sparsity: float, state: RoutingState, line: Tensor | None) -> Tensor:
        """Whether the token that is decoded runs block `state.block`, bool `[B]`; asked if `routes_decoding`.

        Args:
            sparsity: The block's.
            state: Made by `RoutingState.newest`.
            line: What `keep` left in `state.line` for this block when the prompt ran `[B]`; None if nothing was
                compared there, as under another schedule in which the block skipped nothing: then the token runs.
        """


def highest(scores: Tensor, sparsity: float, state: RoutingState) -> Tensor:
    """True for protected tokens and those others with the highest scores `[B, L]`, k of each row.

    Of equal scores the earlier token wins.
    Leaves the lowest score that is kept, protected tokens aside, in `state.line`.
    """
    row_counts = state.row_kept_counts(sparsity)
    rectangular, protected = state.is_rectangular, state.protected(sparsity)
    if protected is not None:
        scores = scores.masked_fill(protected, torch.inf)
    if not rectangular:
        scores = scores.masked_fill(~state.real, -torch.inf)
    if len(set(row_counts)) == 1:
        lowest = scores.topk(row_counts[0], dim=1, sorted=False).values.amin(1, keepdim=True)
    else:
        ordered = scores.sort(dim=1, descending=True).values
        lowest = ordered.gather(1, state.kept_counts(sparsity)[:, None] - 1)
    state.line = lowest[:, 0]
    kept = scores >= lowest
    # More than k of them only if the lowest score occurs more than once.
    spare = kept.sum(1, keepdim=True) - state.kept_counts(sparsity)[:, None]
    # Asking makes a GPU wait, which costs it more than the answer saves.
    if spare.device.type != "cpu" or bool(spare.any()):
        tied = scores == lowest
        from_behind = tied.flip(1).cumsum(1).flip(1)
        kept &= ~(tied & (from_behind <= spare))
    return kept if rectangular else kept & state.real
