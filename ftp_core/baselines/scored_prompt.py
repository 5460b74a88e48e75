"""The scored prompt: tokens are dropped before the first block, as in a shortened one, but by a score of each token.

Dimensions: B rows, L tokens of a row, D hidden width.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from ftp_core.baselines.fitting import Effort, check_usable
from ftp_core.baselines.protocol import Budget
from ftp_core.baselines.pruned import ScheduledModel
from ftp_core.baselines.sanity_rows import last_tokens
from ftp_core.baselines.shortened_prompt import uniformly_pruned
from ftp_core.errors import ModelError
from ftp_core.routers import RoutingState, ScoringRouter
from ftp_core.routers.comparison import normed_hidden
from ftp_core.routers.scoring import decide_as_static, mlp, token_features
from ftp_core.skipping.skipping_model import SkippingModel
from ftp_core.text.encoding import EncodedExample
from ftp_core.training.distillation import distill
from ftp_core.training.distillation_config import DistillationConfig

_FEATURES = ("position",)
# Above any other score, and finite, as gradients have to be.
_ALWAYS_KEPT = 1e4


class PromptScorer(ScoringRouter):
    """Scores tokens by their embedding and position before the first block, for all blocks; the last one always stays.

    An MLP, D + 1 -> 64 -> 1. It starts with the decisions of the static router.

    Args:
        hidden_size: D.
        seed: Seed of the initial weights that have no say yet.
    """

    kind = "prompt_scorer"
    reads_hidden = True
    routes_decoding = False
    n_scored_once = 1

    def __init__(self, hidden_size: int, seed: int = 0) -> None:
        super().__init__()
        self.options = {"hidden_size": hidden_size}
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.mlp = mlp(len(_FEATURES) + hidden_size)
        decide_as_static(self.mlp, _FEATURES)

    def check_model(self, n_blocks: int, hidden_size: int) -> None:
        """See `ScoringRouter.check_model`."""
        super().check_model(n_blocks, hidden_size)
        if hidden_size != self.options["hidden_size"]:
            raise ModelError(
                f"The scorer reads embeddings of width {self.options['hidden_size']}, but the model's are "
                f"{hidden_size} wide."
            )

    def scores(self, sparsity: float, state: RoutingState) -> Tensor:
        """See `ScoringRouter.scores`."""
        if state.memory is None:
            features_BLF = token_features(_FEATURES, sparsity, state)
            scores_BL = self.mlp(torch.cat([features_BLF, normed_hidden(state)], -1)).squeeze(-1)
            state.memory = scores_BL.masked_fill(last_tokens(state), _ALWAYS_KEPT)
        return state.memory


class ScoredPrompt:
    """Keeps the tokens of a prompt that a small scorer chooses, the same in every block.

    Prompts are compressed by dropping tokens, which a classifier of tokens chooses, as in LLMLingua-2. There it is a
    bidirectional encoder of its own, taught by GPT-4's compressions of other texts, and its prompts suit any model.
    Here it is a small MLP of each token's embedding and position, which takes next to no operations and sees no other
    token; it is distilled from the dense model's predictions, with the same code and the same number of steps as ours,
    for one number of kept tokens. It starts as the shortened prompt, and is no worse than that on examples that are
    held out. Positions stay those of the full prompt, and the last token always stays.

    Args:
        config: Hyperparameters of the training; its seed is that of the fit.
    """

    name = "scored_prompt"
    paper = "LLMLingua-2 (arXiv 2403.12968), with a scorer of embeddings distilled from the model itself"
    has_chance = True
    trains = True

    def __init__(self, config: DistillationConfig | None = None) -> None:
        # Exactly k are kept, so that there is no sparsity to be learnt.
        self._config = config or DistillationConfig(w_sparsity=0.0)

    @torch.inference_mode(False)
    def fit(
        self,
        model: SkippingModel,
        calibration: Sequence[EncodedExample],
        budget: Budget,
        seed: int = 0,
        on_step: Callable[[float], None] = lambda share: None,
    ) -> ScheduledModel:
        """See `Baseline`."""
        check_usable(model, calibration)
        effort = Effort(model)
        router = PromptScorer(model.model.config.hidden_size, seed).to(model.device).requires_grad_(False)
        pruned = uniformly_pruned(self.name, model, budget, router)
        if any(pruned.schedule):
            config = replace(self._config, seed=seed)
            trained = distill(model, calibration, pruned.schedule, config, router=router, on_progress=on_step)
            effort.tokens, effort.trained_parameters = trained.tokens, trained.parameters
            pruned = replace(pruned, router=trained.router)
        on_step(1.0)
        return replace(pruned, preparation=effort.preparation())
