"""Finds the thresholds with which a router keeps about as many tokens as a schedule asks, without counting them."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ftp_core.routers import RoutingState, ScoringRouter
from ftp_core.skipping.skipping_model import SkippingModel
from ftp_core.text.encoding import PromptBatch


@dataclass
class _Calibrating:
    """Routes by the threshold that meets each block's sparsity on the prompts it sees, and remembers it."""

    router: ScoringRouter
    thresholds: list[float]
    keeps_budget: bool = field(default=False, init=False)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.router, name)

    def keep(self, sparsity: float, state: RoutingState) -> Tensor:
        scores, decided = self.router.scores(sparsity, state), state.real
        protected = state.protected(sparsity)
        if protected is not None:
            decided = decided & ~protected
        # Protected tokens count, but none of them skips: the others do in their place.
        self.thresholds[state.block] = _threshold(scores[decided], int(sparsity * sum(state.row_lengths) + 1e-9))
        self.router.set_thresholds(self.thresholds, None)
        return self.router.select(scores, sparsity, state)


def _threshold(scores: Tensor, n_skipped: int) -> float:
    """The highest threshold under which no more than so many of the scores `[n]` lie, or on it; never all of them."""
    ordered = scores.double().sort().values
    lowest_kept = ordered[min(len(ordered) - 1, n_skipped)]
    # Equal scores are kept or skipped together.
    below = ordered[ordered < lowest_kept]
    if not len(below):
        return float(lowest_kept) - 1.0
    # Between two scores, so that rounding decides nothing; unless nothing is between them.
    between = (below[-1] + lowest_kept) / 2
    return float(between if between.float() < lowest_kept.float() else below[-1])


def calibrate_thresholds(
    model: SkippingModel, router: ScoringRouter, prompts: PromptBatch, schedule: Sequence[float]
) -> ScoringRouter:
    """A copy of a router in mode `threshold`: it keeps the tokens whose score is above the threshold of the block.

    Each threshold is set block by block, on what the earlier ones leave, so that block i skips the share s_i of the
    tokens of all prompts together, or fewer where scores are equal; single prompts may skip more or fewer.

    Args:
        model: The model.
        router: What to calibrate; not changed.
        prompts: What to calibrate on `[B, L]`, padded right.
        schedule: What to meet.

    Raises:
        ScheduleError: The schedule has another number of blocks.
    """
    calibrated = copy.deepcopy(router)
    calibrating = _Calibrating(calibrated, [0.5] * model.n_blocks)
    with torch.inference_mode():
        model.prefill(prompts, schedule, calibrating)
    calibrated.set_thresholds(calibrating.thresholds, schedule)
    return calibrated
