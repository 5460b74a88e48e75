"""A router that scores a prompt once, for all blocks.

Dimensions: B rows, L tokens of a row, D hidden width, F features, S scores of a token.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ftp_core.errors import ModelError
from ftp_core.routers.comparison import normed_hidden
from ftp_core.routers.scoring import SHARPNESS, ScoringRouter, decide_as_static, mlp, token_features
from ftp_core.routers.state import RoutingState


class OnePassRouter(ScoringRouter):
    """Scores tokens by position and by the hidden states before the first block that skips, once for all blocks.

    Token j has z_ij = e_j . b_i + c_i - w s_i in block i: e_j, 64 numbers, is read off the token; b_i and c_i are the
    block's, or those of one half of it; w is one number. All e_j . b_i + c_i are computed before the first decision.
    Later ones read no hidden states, listen to no attention, and compare numbers that are known.

    Args:
        hidden_size: D.
        n_blocks: N.
        halves: True if both halves of each block have scores of their own. A block that skips as a whole then has their
            mean.
    """

    kind = "one-pass"
    reads_hidden = True
    routes_decoding = False

    def __init__(self, hidden_size: int, n_blocks: int, halves: bool = False) -> None:
        super().__init__()
        self._hidden_size, self._n_blocks, self._halves = hidden_size, n_blocks, halves
        self.options = {"hidden_size": hidden_size, "n_blocks": n_blocks, "halves": halves}
        self.features = ("position",)
        self.n_scored_once = n_blocks * (2 if halves else 1)
        self.mlp = mlp(len(self.features) + hidden_size, self.n_scored_once)
        self.sparsity_weight = nn.Parameter(torch.tensor(SHARPNESS))

    def start_as_static(self) -> bool:
        """See `ScoringRouter.start_as_static`."""
        decide_as_static(self.mlp, self.features)
        with torch.no_grad():
            self.sparsity_weight.fill_(SHARPNESS)
        return True

    def check_model(self, n_blocks: int, hidden_size: int) -> None:
        """See `ScoringRouter.check_model`."""
        super().check_model(n_blocks, hidden_size)
        if (n_blocks, hidden_size) != (self._n_blocks, self._hidden_size):
            raise ModelError(
                f"The one-pass router is made for {self._n_blocks} blocks and states of width {self._hidden_size}, but "
                f"the model has {n_blocks} blocks, and its states are {hidden_size} wide."
            )

    def scores(self, sparsity: float, state: RoutingState) -> Tensor:
        """See `ScoringRouter.scores`."""
        if state.memory is None:
            state.memory = self._all_scores(sparsity, state)
        all_SBL, index = state.memory, state.block
        if self._halves and state.half == "block":
            scores_BL = all_SBL[2 * index : 2 * index + 2].mean(0)
        elif self._halves:
            scores_BL = all_SBL[2 * index + (state.half == "mlp")]
        else:
            scores_BL = all_SBL[index]
        return scores_BL - self.sparsity_weight * sparsity

    def _all_scores(self, sparsity: float, state: RoutingState) -> Tensor:
        """e_j . b_i + c_i of every token for every block, or half `[S, B, L]`."""
        features_BLF = token_features(self.features, sparsity, state)
        scores_BLS: Tensor = self.mlp(torch.cat([features_BLF, normed_hidden(state)], -1))
        return scores_BLS.permute(2, 0, 1).contiguous()
