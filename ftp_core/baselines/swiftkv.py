"""SwiftKV: the prompt stops at some block, whose states all later keys and values are projected from.

Dimensions: B rows, L tokens of a row.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from ftp_core.baselines.fitting import Effort, check_halves, closest, flops_of_entries, share_kept
from ftp_core.baselines.protocol import Budget, Sparsity
from ftp_core.baselines.pruned import ScheduledModel
from ftp_core.baselines.sanity_rows import last_tokens
from ftp_core.routers import RoutingState
from ftp_core.routers.state import n_protected
from ftp_core.schedule import MAX_SPARSITY, BlockSparsity, SparsitySchedule, kept_count
from ftp_core.skipping.skipping_model import SkippingModel
from ftp_core.text.encoding import EncodedExample


class LastTokenRouter:
    """Keeps the last token alone, and protected ones, whatever the sparsity."""

    kind = "last_token"
    window = 0
    reads_hidden = False
    keeps_budget = False
    routes_decoding = False

    def keep(self, sparsity: float, state: RoutingState) -> Tensor:
        """See `Router.keep`."""
        protected_BL, last_BL = state.protected(sparsity), last_tokens(state)
        return last_BL if protected_BL is None else last_BL | protected_BL

    def keep_newest(self, sparsity: float, state: RoutingState, line: Tensor | None) -> Tensor:
        """See `Router.keep_newest`; never called."""
        return torch.ones_like(state.lengths, dtype=torch.bool)


class SwiftKV:
    """Behind block l only the last token goes on; keys and values of the others are projected from their states there.

    K_j = W_K^j norm_j(x_{l+1}), V_j = W_V^j norm_j(x_{l+1}) for all j > l (SingleInputKV), each block with its own
    norm and projections. The paper distils these projections; this is the training-free form, and without the sharing
    of keys and values between blocks (AcrossKV). The budget says l; at the last block it is the dense model.
    """

    name = "swiftkv"
    paper = (
        "SwiftKV: Fast Prefill-Optimized Inference with Knowledge-Preserving Model Transformation (arXiv 2410.03960)"
    )
    has_chance = False
    trains = False

    def fit(
        self,
        model: SkippingModel,
        calibration: Sequence[EncodedExample],
        budget: Budget,
        seed: int = 0,
        on_step: Callable[[float], None] = lambda share: None,
    ) -> ScheduledModel:
        """See `Baseline`; no example is looked at."""
        check_halves(model, self.name)
        effort = Effort(model)

        def flops_of(last: int) -> float:
            return flops_of_entries(model, _entries(model, last, budget.length), budget)

        last = closest(range(model.n_blocks - 1, -1, -1), flops_of, budget.target_flops(model))
        shares = [0.0 if index <= last else MAX_SPARSITY for index in range(model.n_blocks)]
        on_step(1.0)
        return ScheduledModel(
            self.name,
            model,
            model,
            SparsitySchedule.of_halves(shares, shares, True),
            Sparsity((model.n_blocks - 1 - last) / model.n_blocks, "of the blocks without the prompt"),
            effort.preparation(),
            LastTokenRouter(),
            entries=lambda length: _entries(model, last, length),
        )


def _entries(model: SkippingModel, last: int, length: int) -> list[BlockSparsity]:
    """Sparsities of all blocks where the prompt stops behind one."""
    # The last token, and protected ones.
    n_run = min(length, 1 + n_protected(model.keep_first, kept_count(MAX_SPARSITY, length)))
    share = share_kept(n_run, length)
    stopped = BlockSparsity(share, share, share > 0)
    return [BlockSparsity(0.0, 0.0) if index <= last else stopped for index in range(model.n_blocks)]
