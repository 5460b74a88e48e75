"""A router whose blocks share one budget: training decides which of them skips how much.

Dimensions: B rows, L tokens of a row, M gates, T real tokens of all rows.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ftp_core.routers.scoring import ScoringRouter
from ftp_core.routers.state import RoutingState

# The chance of a fresh gate to open is sigmoid(2), about 0.88: so a model begins near the dense one.
_OPEN = 2.0


class GateRouter(ScoringRouter):
    """Opens a gate for each token whose score is above one threshold, the same in all blocks.

    A schedule says which blocks, or halves of them, have gates, and how much these skip together: how much each of them
    does is learnt. In training, noise makes each decision a sample with the gradient of the straight-through
    Gumbel-softmax at temperature 1 (arXiv 1611.01144). Each gate is open for one token of a row at least, the one of
    the highest score.

    Args:
        scorer: Router whose scores, and an offset for each gate, are those of this one.
        n_gates: M, one for each block, or for its attention and its MLP.
        per_token: True if each token has the budget for itself, False if all tokens of a batch have it together.
        seed: Seed of the noise.

    Attributes:
        threshold: Score above which gates are open.
    """

    kind = "gates"
    keeps_budget = False
    reads_hidden = True
    routes_decoding = False

    def __init__(self, scorer: ScoringRouter, n_gates: int, per_token: bool, seed: int = 0) -> None:
        super().__init__()
        self.options = {"scorer": scorer.kind, "per_token": per_token, **scorer.options}
        self.scorer, self.threshold = scorer, 0.0
        self.offsets = nn.Parameter(torch.full((n_gates,), _OPEN))
        self._per_token = per_token
        self._draws = torch.Generator().manual_seed(seed)

    @property
    def score_flops(self) -> float:
        """See `ScoringRouter.score_flops`."""
        return self.scorer.score_flops

    def check_model(self, n_blocks: int, hidden_size: int) -> None:
        """See `ScoringRouter.check_model`."""
        self.scorer.check_model(n_blocks, hidden_size)

    def scores(self, sparsity: float, state: RoutingState) -> Tensor:
        """See `ScoringRouter.scores`; with noise while it trains."""
        offset = self.offsets[state.block + (len(self.offsets) // 2 if state.half == "mlp" else 0)]
        scores_BL = self.scorer.scores(sparsity, state) + offset
        if not self.training:
            return scores_BL
        # The difference of the two Gumbel variables of a decision is a logistic one.
        noise_BL = torch.rand(scores_BL.shape, generator=self._draws).logit(eps=1e-6)
        return scores_BL + noise_BL.to(scores_BL.device)

    def _threshold(self, state: RoutingState) -> float:
        return self.threshold

    def budget_loss(self, gates_MT: Tensor, skipped: float) -> Tensor:
        """Distance of the mean gate from the share of gates that is to be open, of each token or of all of them.

        Args:
            gates_MT: 1 where a gate is open for a token, 0 where it is not, with a gradient.
            skipped: Share of gates that is to be closed.
        """
        open_T = gates_MT.mean(0) if self._per_token else gates_MT.mean()
        return (open_T - (1.0 - skipped)).abs().mean()
