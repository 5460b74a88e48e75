"""CoLT5: important tokens run the heavy halves of a block, all others a light path of low rank.

Dimensions: B rows, L tokens of a row, D hidden width, N blocks.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import torch

from ftp_core.baselines.fitting import Effort, check_halves, check_usable, closest, kept_counts, share_kept
from ftp_core.baselines.mixture_of_depths import LinearRouter
from ftp_core.baselines.protocol import Budget, Sparsity
from ftp_core.baselines.pruned import ScheduledModel
from ftp_core.baselines.sharing import shared_copy
from ftp_core.cost.flops import FlopsCounter
from ftp_core.routers import ScoringRouter
from ftp_core.schedule import SparsitySchedule
from ftp_core.skipping.skipping_model import SkippingModel
from ftp_core.skipping.substitutes import Substitutes, give_substitutes
from ftp_core.text.encoding import EncodedExample
from ftp_core.training.distillation import distill
from ftp_core.training.distillation_config import DistillationConfig
from ftp_core.training.substitution import fit_substitutes


class CoLT5:
    """Routes k tokens of each row through a block's attention, and k through its MLP; a light path serves the others.

    As in the paper each half of each block has a linear router of its own. The paper trains light and heavy branches
    and routers together, all tokens run the light ones, which are narrower layers with local attention, and routed
    queries attend to routed keys. Here the heavy branch is the block as it is; the light path is the identity and a map
    of low rank, fitted by regression to what the half adds in the dense model, for the tokens that skip it; keys and
    values of these are kept; and routers alone are trained, by distillation. The first block runs whole: nothing stands
    in well for what it makes of embeddings.

    Args:
        config: Hyperparameters of the routers' training; its seed is that of the fit.
        rank: Rank of the light path; None for an eighth of the model's width.
    """

    name = "colt5"
    paper = "CoLT5: Faster Long-Range Transformers with Conditional Computation (arXiv 2303.09752)"
    has_chance = True
    trains = True

    def __init__(self, config: DistillationConfig | None = None, rank: int | None = None) -> None:
        # Exactly k are kept, so that there is no sparsity to be learnt.
        self._config, self._rank = config or DistillationConfig(w_sparsity=0.0), rank

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
        check_halves(model, self.name)
        check_usable(model, calibration)
        effort, width, length = Effort(model), model.model.config.hidden_size, budget.length
        router: ScoringRouter = LinearRouter(model.n_blocks, width, seed, halves=True).to(model.device)
        router.requires_grad_(False)
        maps = fit_substitutes(model, calibration, self._rank or max(1, width // 8))
        effort.tokens = sum(len(prompt) for prompt in {example.prompt for example in calibration})
        with_maps = shared_copy(model)
        give_substitutes(with_maps.model, maps, with_maps.blocks)
        counter = FlopsCounter(with_maps)

        def schedule_of(n_kept: int) -> SparsitySchedule:
            shares = [0.0] + [share_kept(n_kept, length)] * (model.n_blocks - 1)
            return SparsitySchedule.of_halves(shares, shares, True)

        def flops_of(n_kept: int) -> float:
            return counter.count(schedule_of(n_kept), budget.batch, length, router=router).total

        schedule = schedule_of(closest(kept_counts(length), flops_of, budget.target_flops(model)))
        if any(schedule):
            config = replace(self._config, seed=seed)
            trained = distill(with_maps, calibration, schedule, config, router=router, on_progress=on_step)
            router = trained.router
            effort.tokens += trained.tokens
            effort.trained_parameters = trained.parameters + _n_parameters(maps)
        on_step(1.0)
        capacity = Sparsity(1.0 - max(schedule.attention), "of the tokens on the heavy path")
        return ScheduledModel(self.name, model, with_maps, schedule, capacity, effort.preparation(), router)


def _n_parameters(maps: Substitutes) -> int:
    return sum(parameter.numel() for parameter in maps.parameters())
