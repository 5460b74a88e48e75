"""Mixture-of-Depths: every other block runs on the tokens that a linear router of its own scores highest.

Dimensions: B rows, L tokens of a row, D hidden width, N blocks.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from ftp_core.baselines.fitting import Effort, check_usable, closest, kept_counts, share_kept
from ftp_core.baselines.protocol import Budget, Sparsity
from ftp_core.baselines.pruned import ScheduledModel
from ftp_core.cost.flops import FlopsCounter
from ftp_core.errors import ModelError
from ftp_core.routers import RoutingState, ScoringRouter
from ftp_core.routers.comparison import normed_hidden
from ftp_core.schedule import SparsitySchedule
from ftp_core.skipping.skipping_model import SkippingModel
from ftp_core.text.encoding import EncodedExample
from ftp_core.training.distillation import distill
from ftp_core.training.distillation_config import DistillationConfig


class LinearRouter(ScoringRouter):
    """Scores tokens by a linear map of their hidden states, another one in each block.

    Args:
        n_blocks: N.
        hidden_size: D.
        seed: Seed of the initial weights.
        halves: True for a map of each half of a block.
    """

    kind = "linear"
    reads_hidden = True
    routes_decoding = False

    def __init__(self, n_blocks: int, hidden_size: int, seed: int = 0, halves: bool = False) -> None:
        super().__init__()
        self._n_blocks = n_blocks
        self.options = {"n_blocks": n_blocks, "hidden_size": hidden_size, "halves": halves}
        draws, n_maps = torch.Generator().manual_seed(seed), 2 * n_blocks if halves else n_blocks
        self.weight = nn.Parameter(torch.randn(n_maps, hidden_size, generator=draws) / math.sqrt(hidden_size))

    @property
    def score_flops(self) -> float:
        """See `ScoringRouter.score_flops`; a decision takes one row of the weights."""
        return super().score_flops / len(self.weight)

    def check_model(self, n_blocks: int, hidden_size: int) -> None:
        """See `ScoringRouter.check_model`."""
        super().check_model(n_blocks, hidden_size)
        if (self._n_blocks, self.weight.shape[1]) != (n_blocks, hidden_size):
            raise ModelError(
                f"The linear router is made for {self._n_blocks} blocks of width {self.weight.shape[1]}, but the "
                f"model has {n_blocks} of width {hidden_size}."
            )

    def scores(self, sparsity: float, state: RoutingState) -> Tensor:
        """See `ScoringRouter.scores`."""
        of_mlps = self._n_blocks if state.half == "mlp" and len(self.weight) > self._n_blocks else 0
        row_1D = self.weight[of_mlps + state.block, None]
        return nn.functional.linear(normed_hidden(state), row_1D).squeeze(-1)


class MixtureOfDepths:
    """Every other block keeps the k tokens of highest score r_j = w_i . x_j of each row, exactly k (expert choice).

    Only the routers are trained, by distillation from the dense model with the same code and the same number of steps
    as ours; the paper trains the whole model from scratch. So outputs are not multiplied by the scores, which the
    frozen weights were never made for: gradients reach them through hard gates, straight through. Hidden states are
    divided by their root mean square before they are scored. Decoded tokens run every block, so that the paper's
    auxiliary predictor of the choice is not needed. At most about half of the operations can be saved.

    Args:
        config: Hyperparameters of the training; its seed is that of the fit.
    """

    name = "mixture_of_depths"
    paper = "Mixture-of-Depths: Dynamically allocating compute in transformer-based language models (arXiv 2404.02258)"
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
        effort, counter, length = Effort(model), FlopsCounter(model), budget.length
        router: ScoringRouter = LinearRouter(model.n_blocks, model.model.config.hidden_size, seed).to(model.device)
        router.requires_grad_(False)

        def schedule_of(n_kept: int) -> SparsitySchedule:
            share = share_kept(n_kept, length)
            return SparsitySchedule([share if index % 2 else 0.0 for index in range(model.n_blocks)])

        def flops_of(n_kept: int) -> float:
            return counter.count(schedule_of(n_kept), budget.batch, length, router=router).total

        schedule = schedule_of(closest(kept_counts(length), flops_of, budget.target_flops(model)))
        if any(schedule):
            trained = distill(
                model, calibration, schedule, replace(self._config, seed=seed), router=router, on_progress=on_step
            )
            router = trained.router
            effort.tokens, effort.trained_parameters = trained.tokens, trained.parameters
        on_step(1.0)
        capacity = Sparsity(1.0 - max(schedule), "of the tokens kept by every other block")
        return ScheduledModel(self.name, model, model, schedule, capacity, effort.preparation(), router)
