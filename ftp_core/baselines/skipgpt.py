"""SkipGPT: linear routers let each token skip attention and MLP of each block apart, under one budget for all."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from ftp_core.baselines.fitting import check_halves
from ftp_core.baselines.gates import Gates, fit_gates
from ftp_core.baselines.mixture_of_depths import LinearRouter
from ftp_core.baselines.protocol import Budget
from ftp_core.baselines.pruned import ScheduledModel
from ftp_core.routers import GateRouter
from ftp_core.schedule import SparsitySchedule
from ftp_core.skipping.skipping_model import SkippingModel
from ftp_core.text.encoding import EncodedExample
from ftp_core.training.distillation_config import DistillationConfig


class SkipGPT:
    """Opens gates of attention and MLP by w . x, of the state before the block, and learns how many open where.

    The budget loss is |mean gate - share to run| over all gates and tokens, so that training moves tokens between
    blocks and between their halves. As in the paper, keys and values of tokens that skip attention are computed and
    attended to all the same, and gates are those of a straight-through Gumbel-softmax in training.

    This is its first stage, the tuning of routers with the weights frozen, without the fine-tuning of weights behind
    it. Routers are trained by distillation with the same code and the same number of steps as ours, the paper's by
    language modelling in 10,000 steps, while the temperature falls from 5 to 1; here it is 1. Hidden states are divided
    by their root mean square before they are scored, and gates begin open. After training, decisions are w . x > t
    without noise, where one t for all gates meets the budget; operations are those of the mean share of tokens that run
    each half on the calibration prompts. Each half keeps one token of a row at least; decoded tokens run everything.

    Args:
        config: Hyperparameters of the training; its seed is that of the fit.
    """

    name = "skipgpt"
    paper = "SkipGPT: Each Token is One of a Kind (arXiv 2506.04179), router tuning"
    has_chance = True
    trains = True

    def __init__(self, config: DistillationConfig | None = None) -> None:
        # The budget's weight in the authors' code; nothing is chosen on held-out examples.
        self._config = config or DistillationConfig(w_sparsity=20.0, evaluate_every=DistillationConfig.steps)

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
        n_blocks = model.n_blocks
        scorer = LinearRouter(n_blocks, model.model.config.hidden_size, seed, halves=True)
        router = GateRouter(scorer, 2 * n_blocks, per_token=False, seed=seed).to(model.device)

        def schedule_of(share: float) -> SparsitySchedule:
            return SparsitySchedule.of_halves([share] * n_blocks, [share] * n_blocks, True)

        gates = Gates(model, router, schedule_of, "of the tokens' attention and MLPs skipped")
        return fit_gates(self.name, model, gates, replace(self._config, seed=seed), calibration, budget, on_step)
