"""The interface of a router, and the choice of the highest scores.

Dimensions: B rows, L tokens of a row.
"""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from ftp_core.routers.state import RoutingState


class Router(Protocol):
    """Decides which tokens run a block."""

    @property
    def kind(self) -> str:
        """Name in files, tables and configurations."""

    @property
    def window(self) -> int:
        """Number of last queries that the attention features listen to (W); 0 without such a feature."""

    @property
    def reads_hidden(self) -> bool:
        """True if decisions depend on hidden states."""

    @property
    def keeps_budget(self) -> bool:
        """True if exactly the kept count of a row is kept, False if about as many."""

    @property
    def routes_decoding(self) -> bool:
        """True if one token can be routed by what the cache remembers of those before it."""

    def keep(self, sparsity: float, state: RoutingState) -> Tensor:
        """Real tokens that run block `state.block`, or its `state.half`, bool `[B, L]`: at least one of each row.

        Those of `state.protected(sparsity)` are among them, which `highest` ensures.
        """

    def keep_newest(self, sparsity: float, state: RoutingState, line: Tensor | None) -> Tensor:
        """True where the decoded token runs block `state.block`, bool `[B]`; called if `routes_decoding`.

        Args:
            sparsity: Sparsity of the block.
            state: State made by `RoutingState.newest`.
            line: `state.line` as `keep` left it for this block and the prompt `[B]`; None if no scores were compared
                there, as in a block that skipped nothing: the token then runs.
        """


def scored_once(router: Router) -> int:
    """Number of scores of each token that a router computes once per pass, before its first decision.

    0 for routers that score block by block.
    """
    # An attribute of routers that learn only.
    return int(getattr(router, "n_scored_once", 0))


def needs_hidden(router: Router, state: RoutingState) -> bool:
    """Returns True if the next decision reads hidden states: not where all scores of the pass are known."""
    return router.reads_hidden and not (scored_once(router) and state.memory is not None)


def highest(scores_BL: Tensor, sparsity: float, state: RoutingState) -> Tensor:
    """Keeps protected tokens, and those with the highest scores, k of each row: bool `[B, L]`.

    Of equal scores the earlier token wins. `state.line` becomes the lowest score kept, protected tokens aside.
    """
    row_counts, counts_B1 = state.row_kept_counts(sparsity), state.kept_counts(sparsity)[:, None]
    rectangular, protected_BL = state.is_rectangular, state.protected(sparsity)
    if protected_BL is not None:
        scores_BL = scores_BL.masked_fill(protected_BL, torch.inf)
    if not rectangular:
        scores_BL = scores_BL.masked_fill(~state.real, -torch.inf)
    if len(set(row_counts)) == 1:
        lowest_B1 = scores_BL.topk(row_counts[0], dim=1, sorted=False).values.amin(1, keepdim=True)
    else:
        lowest_B1 = scores_BL.sort(dim=1, descending=True).values.gather(1, counts_B1 - 1)
    state.line = lowest_B1[:, 0]
    kept_BL = scores_BL >= lowest_B1
    # More than k of them only if the lowest score occurs more than once.
    spare_B1 = kept_BL.sum(1, keepdim=True) - counts_B1
    # Asking makes a GPU wait, which costs it more than the answer saves.
    if spare_B1.device.type != "cpu" or bool(spare_B1.any()):
        tied_BL = scores_BL == lowest_B1
        kept_BL &= ~(tied_BL & (tied_BL.flip(1).cumsum(1).flip(1) <= spare_B1))
    return kept_BL if rectangular else kept_BL & state.real
