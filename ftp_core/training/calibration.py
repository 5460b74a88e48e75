"""Calibrates the thresholds with which a router keeps about as many tokens as a schedule asks.

Shapes: B rows, L tokens of a row, T tokens of all rows.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ftp_core.routers import RoutingState, ScoringRouter
from ftp_core.schedule import SparsitySchedule
from ftp_core.skipping.fitted_keys import keys_fitted
from ftp_core.skipping.skipping_model import SkippingModel
from ftp_core.text.encoding import PromptBatch


@dataclass
class _Calibrating:
    """A router that sets each threshold to meet its sparsity on the prompts it sees."""

    router: ScoringRouter
    schedule: SparsitySchedule
    thresholds: list[float]
    keeps_budget: bool = field(default=False, init=False)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.router, name)

    def keep(self, sparsity: float, state: RoutingState) -> Tensor:
        scores_BL, decided_BL = self.router.scores(sparsity, state), state.real
        protected_BL = state.protected(sparsity)
        if protected_BL is not None:
            decided_BL = decided_BL & ~protected_BL
        # Protected tokens count, but none of them skips: others do in their place.
        n_skipped = int(sparsity * sum(state.row_lengths) + 1e-9)
        found, n_blocks = _threshold(scores_BL[decided_BL], n_skipped), self.schedule.n_blocks
        # Of a block that is decided as a whole, both halves have the same.
        places = {"attention": (0,), "mlp": (n_blocks,)}.get(state.half, range(0, len(self.thresholds), n_blocks))
        for place in places:
            self.thresholds[place + state.block] = found
        self.router.set_thresholds(self.thresholds, self.schedule)
        return self.router.select(scores_BL, sparsity, state)


def _threshold(scores_T: Tensor, n_skipped: int) -> float:
    """The highest threshold that at most so many of the scores do not exceed; never all of them."""
    ordered_T = scores_T.double().sort().values
    lowest_kept = ordered_T[min(len(ordered_T) - 1, n_skipped)]
    # Equal scores are kept or skipped together.
    below = ordered_T[ordered_T < lowest_kept]
    if not len(below):
        return float(lowest_kept) - 1.0
    # Between two scores, so that rounding decides nothing; unless nothing is between them.
    between = (below[-1] + lowest_kept) / 2
    return float(between if between.float() < lowest_kept.float() else below[-1])


def calibrate_thresholds(
    model: SkippingModel, router: ScoringRouter, prompts: PromptBatch, schedule: Sequence[float]
) -> ScoringRouter:
    """A copy of a router in mode `threshold`: it keeps the tokens whose score is above the threshold of the block.

    Thresholds are set block by block, each behind the earlier ones, so that block i skips the share s_i of the tokens
    of all prompts together, or fewer where scores are equal; single prompts may skip more or fewer. Where the schedule
    tells halves apart, each half has its own.

    Args:
        model: The model.
        router: The router; not changed.
        prompts: Prompts to calibrate on `[B, L]`, padded right.
        schedule: The schedule to meet.

    Raises:
        ScheduleError: The schedule has another number of blocks.
    """
    calibrated, schedule = copy.deepcopy(router), model.checked(schedule)
    n_thresholds = model.n_blocks * (1 if schedule.is_plain else 2)
    calibrating = _Calibrating(calibrated, schedule, [0.5] * n_thresholds)
    with torch.inference_mode(), keys_fitted(model, schedule):
        model.prefill(prompts, schedule, calibrating)
    calibrated.set_thresholds(calibrating.thresholds, schedule)
    return calibrated
