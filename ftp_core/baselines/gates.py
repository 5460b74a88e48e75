"""Gates that learn under one budget which block skips how much, and a threshold that meets the budget afterwards."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from ftp_core.baselines.fitting import (
    Effort,
    bisected,
    closest,
    flops_of_entries,
    kept_counts,
    prompt_batches,
    share_kept,
)
from ftp_core.baselines.protocol import Budget, Sparsity
from ftp_core.baselines.pruned import ScheduledModel
from ftp_core.cost.flops import FlopsCounter
from ftp_core.routers import GateRouter
from ftp_core.schedule import BlockSparsity, SparsitySchedule
from ftp_core.skipping.skipping_model import SkippingModel
from ftp_core.text.encoding import EncodedExample, PromptBatch
from ftp_core.training.distillation import distill
from ftp_core.training.distillation_config import DistillationConfig

# Thresholds are tried from -sinh(12) to sinh(12), about 80,000: scores may be of any size.
_FURTHEST = 12.0
# Of a gate that is open for all tokens, whose score is computed all the same.
_NONE = 1e-6


@dataclass(frozen=True)
class Gates:
    """Where a model has gates, and the router that decides which are open.

    Attributes:
        model: The model that runs.
        router: The router; it is trained on, but not changed.
        schedule_of: Gives the schedule in which the halves that have gates skip a share of the tokens.
        unit: What the share of closed gates is a share of.
    """

    model: SkippingModel
    router: GateRouter
    schedule_of: Callable[[float], SparsitySchedule]
    unit: str


@torch.inference_mode(False)
def fit_gates(
    name: str,
    dense: SkippingModel,
    gates: Gates,
    config: DistillationConfig,
    calibration: Sequence[EncodedExample],
    budget: Budget,
    on_step: Callable[[float], None],
) -> ScheduledModel:
    """Trains gates by distillation, then sets their threshold so that the mean over all prompts meets the budget.

    They are trained for the share of closed gates which, were it the same everywhere, would save as many operations.

    Args:
        name: Name of the method.
        dense: The dense model.
        gates: The gates.
        config: Hyperparameters of the training.
        calibration: See `Baseline.fit`.
        budget: See `Baseline.fit`.
        on_step: See `Baseline.fit`.
    """
    effort, batches, target = Effort(dense), prompt_batches(dense, calibration), budget.target_flops(dense)
    model, router, counter = gates.model, gates.router.requires_grad_(False), FlopsCounter(gates.model)

    def flops_of(n_kept: int) -> float:
        schedule = gates.schedule_of(share_kept(n_kept, budget.length))
        return counter.count(schedule, budget.batch, budget.length, router=router).total

    n_kept = closest(kept_counts(budget.length), flops_of, target)
    schedule = gates.schedule_of(share_kept(n_kept, budget.length))
    found = [BlockSparsity(0.0, 0.0)] * model.n_blocks
    if any(schedule):
        trained = distill(
            model, calibration, schedule, config, router=router, on_progress=lambda share: on_step(share / 2)
        )
        assert isinstance(trained.router, GateRouter)
        router, effort.tokens, effort.trained_parameters = trained.router, trained.tokens, trained.parameters

        def at(number: float) -> tuple[float, list[BlockSparsity]]:
            router.threshold = -math.sinh(number)
            effort.tokens += sum(int(prompts.lengths.sum()) for prompts in batches)
            return router.threshold, closed_shares(model, batches, schedule, router)

        router.threshold, found = bisected(
            at,
            lambda tried: flops_of_entries(model, tried[1], budget, router),
            target,
            (-_FURTHEST, _FURTHEST),
            (-math.inf, found),
            lambda share: on_step((1 + share) / 2),
        )
    on_step(1.0)
    closed = [share for entry in found for share in (entry.attention, entry.mlp) if share > 0]
    return ScheduledModel(
        name,
        dense,
        model,
        schedule,
        Sparsity(sum(closed) / (2 * model.n_blocks), gates.unit),
        effort.preparation(),
        router,
        entries=lambda length: found,
    )


def closed_shares(
    model: SkippingModel, batches: Sequence[PromptBatch], schedule: SparsitySchedule, router: GateRouter
) -> list[BlockSparsity]:
    """Shares of the prompts' tokens that skip each block, or its halves."""
    n_run, n_tokens = torch.zeros(2, model.n_blocks, dtype=torch.long), 0
    for prompts in batches:
        prefill = model.prefill(prompts, schedule, router)
        kept = zip(prefill.kept, prefill.kept_mlp, strict=True)
        n_run += torch.tensor([[int(half.sum()) for half in halves] for halves in kept]).T
        n_tokens += int(prompts.lengths.sum())
    shares = (1.0 - n_run.double() / n_tokens).clamp(min=_NONE).T.tolist()
    return [
        BlockSparsity(attention if entry.attention else 0.0, mlp if entry.mlp else 0.0, entry.keeps_kv)
        for entry, (attention, mlp) in zip(schedule.blocks, shares, strict=True)
    ]
