"""Measures a latency profile."""

from __future__ import annotations

import statistics
from collections.abc import Callable

import torch

from ftp_core.cost.profile import LatencyProfile
from ftp_core.cost.timing import interleaved_ms, measure_latency
from ftp_core.encoding import PromptBatch
from ftp_core.routers import StaticRouter
from ftp_core.schedule import SparsitySchedule, kept_count
from ftp_core.skipping_model import SkippingModel

_PROFILE_SHARES = (0.05, 0.15, 0.3, 0.45, 0.6, 0.75, 0.9, 0.95)


def profile_latency(
    model: SkippingModel, prompts: PromptBatch, repeats: int = 7, on_round: Callable[[], None] = lambda: None
) -> LatencyProfile:
    """Measure uniform schedules with the static router and split each time into blocks and the rest.

    Args:
        model: The model.
        prompts: A rectangular batch, from `timing_batch`.
        repeats: Rounds, after one warm-up.
        on_round: Called after each round.
    """
    batch, length = prompts.ids.shape
    # Ascending kept counts. One token less than all is the first point that gathers; the step to the last one, which
    # does not, is the price of gathering and scattering.
    shares = [*sorted(_PROFILE_SHARES, reverse=True), 1 / length, 0.0]
    variants = [(SparsitySchedule.uniform(share, model.n_blocks), StaticRouter()) for share in shares]
    prefills = measure_latency(model, prompts, variants, repeats, on_round)
    [outside] = interleaved_ms([lambda: _outside_blocks(model, prompts)], repeats, lambda: None)
    fixed_ms = statistics.median(outside)
    return LatencyProfile(
        batch=batch,
        length=length,
        threads=torch.get_num_threads(),
        kept=tuple(kept_count(share, length) for share in shares),
        block_ms=tuple(max(0.0, prefill.median_ms - fixed_ms) / model.n_blocks for prefill in prefills),
        fixed_ms=fixed_ms,
    )


@torch.inference_mode()
def _outside_blocks(model: SkippingModel, prompts: PromptBatch) -> None:
    model.logits(model.run(lambda _, call: call.hidden, prompts.ids, use_cache=False)[:, -1])
