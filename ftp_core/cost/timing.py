"""Times variants in turns, so that drift of the machine affects all alike."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

import numpy as np
import torch

from ftp_core.errors import DataError
from ftp_core.routers import Router
from ftp_core.skipping.skipping_model import SkippingModel
from ftp_core.text.encoding import PromptBatch

Timer = Callable[[], float]
"""Reads seconds, of which only differences mean anything."""

_RESAMPLES = 2000
_Result = TypeVar("_Result")


@dataclass(frozen=True)
class Latency:
    """Repeated timings of one variant.

    Attributes:
        median_ms: Median.
        low_ms: First quartile.
        high_ms: Third quartile.
        times_ms: Every time, one a turn.
    """

    median_ms: float
    low_ms: float
    high_ms: float
    times_ms: tuple[float, ...]


@dataclass(frozen=True)
class Estimate:
    """A median, or a ratio of two, with its confidence interval.

    Attributes:
        median: The median, or the ratio.
        low: Lower end of the interval.
        high: Upper end.
    """

    median: float
    low: float
    high: float


def estimate_median(samples: Sequence[float], confidence: float = 0.95, seed: int = 0) -> Estimate:
    """The median of samples, one a round, with a bootstrap interval (Efron 1979, percentiles of resampled medians)."""
    return estimate_ratio(samples, [1.0] * len(samples), confidence, seed)


def estimate_ratio(
    numerators: Sequence[float], denominators: Sequence[float], confidence: float = 0.95, seed: int = 0
) -> Estimate:
    """The ratio of two medians with a bootstrap interval; rounds are resampled whole.

    Args:
        numerators: Samples, one a round.
        denominators: Samples of the same rounds.
        confidence: Confidence of the interval, in (0, 1).
        seed: Seed of the resampling.
    """
    above, below = np.asarray(numerators, dtype=float), np.asarray(denominators, dtype=float)
    rounds = np.random.default_rng(seed).integers(len(above), size=(_RESAMPLES, len(above)))
    ratios = np.median(above[rounds], axis=1) / np.median(below[rounds], axis=1)
    low, high = np.quantile(ratios, [(1 - confidence) / 2, (1 + confidence) / 2])
    return Estimate(float(np.median(above) / np.median(below)), float(low), float(high))


def timer_of(device: torch.device) -> Timer:
    """A clock that waits for a device before it reads."""
    if device.type == "cpu":
        return time.perf_counter

    def read() -> float:
        torch.accelerator.synchronize(device)
        return time.perf_counter()

    return read


def timing_batch(prompts: Sequence[Sequence[int]], batch: int, length: int) -> PromptBatch:
    """A rectangular batch of real tokens: prompts end to end, repeated if need be, and cut into rows."""
    stream = [token for prompt in prompts for token in prompt]
    stream *= -(-batch * length // len(stream))
    ids = torch.tensor(stream[: batch * length]).view(batch, length)
    return PromptBatch(ids, torch.full((batch,), length))


def take_turns(
    runs: Sequence[Callable[[], _Result]],
    repeats: int,
    on_run: Callable[[], None] = lambda: None,
    goes_on: Callable[[Sequence[Sequence[_Result]]], bool] = lambda _: False,
) -> list[list[_Result]]:
    """Results of each run in each round, after one round to warm up.

    Every other round goes backwards, so that a machine that slows down steadily slows all alike.

    Args:
        runs: Functions that take turns.
        repeats: Number of rounds.
        on_run: Called after each run, those that warm up included: `len(runs) * (repeats + 1)` times.
        goes_on: Called with the results so far; True to take as many rounds again.

    Raises:
        DataError: `repeats` is below 1.
    """
    if repeats < 1:
        raise DataError(f"repeats is {repeats}, but nothing can be said without at least one round.")
    for run in runs:
        run()
        on_run()
    results: list[list[_Result]] = [[] for _ in runs]
    while not results[0] or goes_on(results):
        for number in range(len(results[0]), len(results[0]) + repeats):
            indices = range(len(runs))
            for index in reversed(indices) if number % 2 else indices:
                results[index].append(runs[index]())
                on_run()
    return results


def measure_latency(
    model: SkippingModel,
    prompts: PromptBatch,
    variants: Sequence[tuple[Sequence[float], Router]],
    repeats: int = 15,
    on_run: Callable[[], None] = lambda: None,
    timer: Timer | None = None,
    goes_on: Callable[[Sequence[Sequence[float]]], bool] = lambda _: False,
) -> list[Latency]:
    """Time a prefill, the next token's logits included, under each variant; variants take turns.

    Args:
        model: The model.
        prompts: Prompts to prefill.
        variants: Schedules with their routers.
        repeats: Rounds, after one warm-up.
        on_run: See `take_turns`.
        timer: Clock; by default one that waits for the model's device.
        goes_on: See `take_turns`; it sees milliseconds.
    """
    ticks = timer or timer_of(model.device)

    def run_ms(schedule: Sequence[float], router: Router) -> float:
        started = ticks()
        model.next_logits(model.prefill(prompts, schedule, router))
        return (ticks() - started) * 1000

    latencies = []
    for times in take_turns([partial(run_ms, *variant) for variant in variants], repeats, on_run, goes_on):
        low, median, high = np.quantile(times, [0.25, 0.5, 0.75]).tolist()
        latencies.append(Latency(median, low, high, tuple(times)))
    return latencies
