"""D-LLM: a small network before each block decides which tokens run it, under one budget of each token.

Dimensions: B rows, L tokens of a row, D hidden width, N blocks.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from ftp_core.baselines.gates import Gates, fit_gates
from ftp_core.baselines.protocol import Budget
from ftp_core.baselines.pruned import ScheduledModel
from ftp_core.errors import ModelError
from ftp_core.routers import GateRouter, RoutingState, ScoringRouter
from ftp_core.routers.comparison import normed_hidden
from ftp_core.schedule import SparsitySchedule
from ftp_core.skipping.skipping_model import SkippingModel
from ftp_core.text.encoding import EncodedExample
from ftp_core.training.distillation_config import DistillationConfig

# First blocks that every token runs, and first tokens that run every block: as in the paper's code.
_WHOLE_BLOCKS, _WHOLE_TOKENS = 2, 2
# A network's hidden layer is narrower than the model by this factor: 512 to 4096 in the paper's code.
_NARROWER = 8


class DecisionRouter(ScoringRouter):
    """Scores tokens by a network D -> D/8 -> 1 of their hidden states, another one in each block behind the first two.

    Args:
        n_blocks: N.
        hidden_size: D.
        seed: Seed of the initial weights.
    """

    kind = "decision"
    reads_hidden = True
    routes_decoding = False

    def __init__(self, n_blocks: int, hidden_size: int, seed: int = 0) -> None:
        super().__init__()
        self.options = {"n_blocks": n_blocks, "hidden_size": hidden_size}
        width = max(1, hidden_size // _NARROWER)
        with torch.random.fork_rng(devices=()):
            torch.manual_seed(seed)
            self.networks = nn.ModuleList(
                nn.Sequential(nn.Linear(hidden_size, width), nn.RMSNorm(width), nn.SiLU(), nn.Linear(width, 1))
                for _ in range(n_blocks - _WHOLE_BLOCKS)
            )

    @property
    def score_flops(self) -> float:
        """See `ScoringRouter.score_flops`; a decision takes one of the networks."""
        return super().score_flops / max(1, len(self.networks))

    def check_model(self, n_blocks: int, hidden_size: int) -> None:
        """See `ScoringRouter.check_model`."""
        super().check_model(n_blocks, hidden_size)
        if self.options != {"n_blocks": n_blocks, "hidden_size": hidden_size}:
            raise ModelError(
                f"The decision router is made for {self.options['n_blocks']} blocks of width "
                f"{self.options['hidden_size']}, but the model has {n_blocks} of width {hidden_size}."
            )

    def scores(self, sparsity: float, state: RoutingState) -> Tensor:
        """See `ScoringRouter.scores`."""
        scores_BL: Tensor = self.networks[state.block - _WHOLE_BLOCKS](normed_hidden(state)).squeeze(-1)
        return scores_BL


class DLLM:
    """Lets each token run or skip whole blocks by a network's score of the state before the block.

    The budget loss is the mean over tokens of |mean gate of the token - share to run|: a token has its share of the
    blocks, while training moves tokens between these. As in the paper, a token that skips a block is evicted from its
    keys and values, so that nobody attends to it there; the first two blocks, and the first two tokens in every block,
    always run; gates are those of a straight-through Gumbel-softmax in training, and begin open.

    The paper fine-tunes the weights, too, by adapters of low rank. Here gates alone are trained, by distillation with
    the same code and the same number of steps as ours. Hidden states are divided by their root mean square before they
    are scored. After training, one threshold for all blocks meets the budget, where the paper's is a chance of 1/2;
    operations are those of the mean share of tokens that run each block on the calibration prompts. Each block keeps
    one token of a row at least, and of the first two no more than all but one that it would keep if all blocks kept as
    many. Decoded tokens run everything, where the paper gates them, too.

    Args:
        config: Hyperparameters of the training; its seed is that of the fit.
    """

    name = "d_llm"
    paper = (
        "D-LLM: A Token Adaptive Computing Resource Allocation Strategy for Large Language Models "
        "(NeurIPS 2024, OpenReview UIOjGTKHQG)"
    )
    has_chance = True
    trains = True

    def __init__(self, config: DistillationConfig | None = None) -> None:
        # The budget's weight in the authors' code; nothing is chosen on held-out examples.
        self._config = config or DistillationConfig(w_sparsity=5.0, evaluate_every=DistillationConfig.steps)

    def fit(
        self,
        model: SkippingModel,
        calibration: Sequence[EncodedExample],
        budget: Budget,
        seed: int = 0,
        on_step: Callable[[float], None] = lambda share: None,
    ) -> ScheduledModel:
        """See `Baseline`."""
        n_blocks = model.n_blocks
        scorer = DecisionRouter(n_blocks, model.model.config.hidden_size, seed)
        router = GateRouter(scorer, n_blocks, per_token=True, seed=seed).to(model.device)

        def schedule_of(share: float) -> SparsitySchedule:
            return SparsitySchedule([share if index >= _WHOLE_BLOCKS else 0.0 for index in range(n_blocks)])

        protecting = model.protecting(max(_WHOLE_TOKENS, model.keep_first))
        gates = Gates(protecting, router, schedule_of, "of the blocks not run by prompt tokens")
        return fit_gates(self.name, model, gates, replace(self._config, seed=seed), calibration, budget, on_step)
