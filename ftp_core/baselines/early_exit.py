"""Early exit: a token stops at the block behind which its hidden state no longer changes much.

Dimensions: B rows, L tokens of a row, D hidden width.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity

from ftp_core.baselines.fitting import (
    Effort,
    bisected,
    check_halves,
    flops_of_entries,
    prompt_batches,
    threshold_of,
)
from ftp_core.baselines.protocol import Budget, Sparsity
from ftp_core.baselines.pruned import ScheduledModel
from ftp_core.baselines.sanity_rows import last_tokens
from ftp_core.errors import ModelError
from ftp_core.routers import RoutingState
from ftp_core.schedule import MAX_SPARSITY, BlockSparsity, SparsitySchedule
from ftp_core.skipping.skipping_model import SkippingModel
from ftp_core.text.encoding import EncodedExample, PromptBatch

# Any from which the router is asked.
_ASKED = 0.001


class ConfidenceRouter:
    """Keeps the tokens whose state the block before has still changed: cos(x_i, x_{i-1}) is below a threshold.

    A token that has stopped stays so. The last token never stops, from which the first new one is predicted, nor do
    protected ones.

    Args:
        threshold: Cosine similarity from which on a token stops; above 1 none does.
    """

    kind = "confidence"
    window = 0
    reads_hidden = True
    keeps_budget = False
    routes_decoding = False

    def __init__(self, threshold: float) -> None:
        self.threshold = threshold

    def keep(self, sparsity: float, state: RoutingState) -> Tensor:
        """See `Router.keep`; both halves of a block run for the same tokens."""
        if state.half == "mlp":
            assert state.memory is not None
            return state.memory[..., -1] > 0
        if state.hidden is None:
            raise ModelError("Early exit reads hidden states, but this pass brings none.")
        hidden_BLD, runs_BL = state.hidden.float(), state.real
        if state.memory is not None:
            # Rounding makes more than 1 of equal states.
            similarity_BL = cosine_similarity(hidden_BLD, state.memory[..., :-1], dim=-1).clamp(max=1.0)
            stays_BL, protected_BL = last_tokens(state), state.protected(sparsity)
            stays_BL = stays_BL if protected_BL is None else stays_BL | protected_BL
            runs_BL = (state.memory[..., -1] > 0) & ((similarity_BL < self.threshold) | stays_BL)
        # States before this block, and whether a token runs it.
        state.memory = torch.cat([hidden_BLD, runs_BL[..., None].float()], -1)
        return runs_BL

    def keep_newest(self, sparsity: float, state: RoutingState, line: Tensor | None) -> Tensor:
        """See `Router.keep_newest`; never called."""
        return torch.ones_like(state.lengths, dtype=torch.bool)


class EarlyExit:
    """Lets each token of the prompt stop where its hidden state saturates, cos(x_i, x_{i-1}) >= lambda.

    This is CALM's training-free confidence measure, with one threshold for all blocks, which is calibrated to the
    budget by bisection. As there, later blocks project keys and values of a token that has stopped from the state that
    it stopped with. CALM lets decoded tokens of an encoder-decoder exit, and calibrates for consistency; here it is
    prompts, as everywhere in this comparison, and decoded tokens run every block. Operations are those of the mean
    share of tokens that run each block on the calibration prompts.
    """

    name = "early_exit"
    paper = "Confident Adaptive Language Modeling (arXiv 2207.07061), hidden-state saturation"
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
        """See `Baseline`."""
        check_halves(model, self.name)
        effort, batches = Effort(model), prompt_batches(model, calibration)

        def exits(exponent: float) -> tuple[float, list[float]]:
            effort.tokens += sum(int(prompts.lengths.sum()) for prompts in batches)
            return threshold_of(exponent), exit_shares(model, batches, threshold_of(exponent))

        threshold, shares = bisected(
            exits,
            lambda found: flops_of_entries(model, _entries(found[1]), budget),
            budget.target_flops(model),
            (0.0, 12.0),
            (math.inf, [0.0] * model.n_blocks),
            on_step,
        )
        on_step(1.0)
        return ScheduledModel(
            self.name,
            model,
            model,
            asking(shares) if any(shares) else SparsitySchedule.uniform(0.0, model.n_blocks),
            Sparsity(sum(shares) / len(shares), "of the blocks not run by prompt tokens"),
            effort.preparation(),
            ConfidenceRouter(threshold),
            entries=lambda length: _entries(shares),
        )


def exit_shares(model: SkippingModel, batches: Sequence[PromptBatch], threshold: float) -> list[float]:
    """Share of the prompts' tokens that have stopped before each block at a threshold."""
    n_run, n_tokens = torch.zeros(model.n_blocks, dtype=torch.long), 0
    for prompts in batches:
        prefill = model.prefill(prompts, asking([0.0] * model.n_blocks), ConfidenceRouter(threshold))
        n_run += torch.stack([kept_BL.sum() for kept_BL in prefill.kept]).cpu()
        n_tokens += int(prompts.lengths.sum())
    return [1.0 - count / n_tokens for count in n_run.tolist()]


def asking(shares: Sequence[float]) -> SparsitySchedule:
    """The schedule of about these shares, under which the router is asked before every block."""
    within = [min(MAX_SPARSITY, max(_ASKED, share)) for share in shares]
    return SparsitySchedule.of_halves(within, within, True)


def _entries(shares: Sequence[float]) -> list[BlockSparsity]:
    return [BlockSparsity(share, share, share > 0) for share in shares]
