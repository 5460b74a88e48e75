"""Times variants against each other."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from ftp_core.encoding import PromptBatch
from ftp_core.routers import Router
from ftp_core.schedule import SparsitySchedule
from ftp_core.skipping_model import SkippingModel


@dataclass(frozen=True)
class Latency:
    """Repeated timings of one variant.

    Attributes:
        median_ms: Median.
        low_ms: First quartile.
        high_ms: Third quartile.
        repeats: How many.
    """

    median_ms: float
    low_ms: float
    high_ms: float
    repeats: int


def timing_batch(prompts: Sequence[Sequence[int]], batch: int, length: int) -> PromptBatch:
    """A rectangular batch of real tokens: prompts laid end to end, over again if need be, and cut into rows."""
    stream = [token for prompt in prompts for token in prompt]
    stream *= -(-batch * length // len(stream))
    ids = torch.tensor(stream[: batch * length]).view(batch, length)
    return PromptBatch(ids, torch.full((batch,), length))


def interleaved_ms(
    runs: Sequence[Callable[[], object]], repeats: int, on_round: Callable[[], None]
) -> list[list[float]]:
    """Times of each run in milliseconds; the runs take turns, so that drift of the machine hits all alike."""
    for run in runs:
        run()
    times: list[list[float]] = [[] for _ in runs]
    for _ in range(repeats):
        for run, own in zip(runs, times, strict=True):
            started = time.perf_counter()
            run()
            own.append((time.perf_counter() - started) * 1000)
        on_round()
    return times


def measure_latency(
    model: SkippingModel,
    prompts: PromptBatch,
    variants: Sequence[tuple[SparsitySchedule, Router]],
    repeats: int = 15,
    on_round: Callable[[], None] = lambda: None,
) -> list[Latency]:
    """Time a prefill, the next token's logits included, under each variant; variants take turns.

    Args:
        model: The model.
        prompts: What to prefill.
        variants: Schedules with their routers.
        repeats: Rounds, after one warm-up.
        on_round: Called after each round.
    """

    def run(schedule: SparsitySchedule, router: Router) -> Callable[[], object]:
        return lambda: model.next_logits(model.prefill(prompts, schedule, router))

    latencies = []
    for times in interleaved_ms([run(*variant) for variant in variants], repeats, on_round):
        low, median, high = statistics.quantiles(times, n=4, method="inclusive")
        latencies.append(Latency(median, low, high, len(times)))
    return latencies
