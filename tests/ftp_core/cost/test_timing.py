"""Variants take turns, and what is said of their times says how sure it is."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ftp_core.cost.timing import (
    estimate_median,
    estimate_ratio,
    measure_latency,
    take_turns,
    timer_of,
    timing_batch,
)
from ftp_core.errors import DataError
from ftp_core.routers import StaticRouter
from ftp_core.schedule import SparsitySchedule
from ftp_core.skipping.skipping_model import SkippingModel
from tests.ftp_core.tiny_models import N_BLOCKS, tiny

samples = st.lists(st.floats(0.1, 1e3), min_size=1, max_size=20)


class Machine:
    """Work that takes as long as it is told; each piece slower than the last if it drifts."""

    def __init__(self, drift: float = 0.0) -> None:
        self.factor = 1.0
        self.drift = drift

    def work(self, seconds: float) -> Callable[[], float]:
        def run() -> float:
            self.factor += self.drift
            return seconds * self.factor

        return run


def test_a_timing_batch_is_rectangular_and_made_of_the_prompts_tokens() -> None:
    prompts = timing_batch([[1, 2, 3], [4, 5]], 2, 4)
    assert prompts.ids.tolist() == [[1, 2, 3, 4], [5, 1, 2, 3]]
    assert prompts.lengths.tolist() == [4, 4]


def test_runs_take_turns_and_every_other_round_goes_backwards() -> None:
    log: list[str] = []
    runs = [lambda name=name: log.append(name) or name for name in "abc"]
    assert take_turns(runs, 3, lambda: log.append("|")) == [["a"] * 3, ["b"] * 3, ["c"] * 3]
    # The first three warm up.
    assert "".join(log) == "a|b|c|a|b|c|c|b|a|a|b|c|"


def test_a_steady_drift_hits_all_alike() -> None:
    machine = Machine(drift=0.01)
    equal = take_turns([machine.work(1.0)] * 3, 4)
    assert max(max(times) for times in equal) > 1.1 * min(min(times) for times in equal)
    assert [statistics.mean(times) for times in equal] == pytest.approx([statistics.mean(equal[0])] * 3)


def test_no_round_is_refused() -> None:
    with pytest.raises(DataError, match="repeats is 0"):
        take_turns([lambda: None], 0)


def test_latencies_come_back_in_the_order_of_the_variants() -> None:
    runs: list[int] = []
    model = SkippingModel(tiny())
    variants = [(SparsitySchedule.uniform(s, N_BLOCKS), StaticRouter()) for s in (0.0, 0.5)]
    latencies = measure_latency(model, timing_batch([[1, 2]], 2, 30), variants, 3, lambda: runs.append(1))
    assert len(latencies) == 2
    assert len(runs) == 2 * 4
    assert all(latency.low_ms <= latency.median_ms <= latency.high_ms for latency in latencies)


def test_a_latency_is_median_and_quartiles_of_the_clock() -> None:
    readings = iter([0.0, 9.0, *(t for ms in (1, 2, 3, 4, 5) for t in (10.0, 10.0 + ms / 1000))])
    prompts, dense = timing_batch([[1, 2]], 1, 5), SparsitySchedule.uniform(0.0, N_BLOCKS)
    [latency] = measure_latency(
        SkippingModel(tiny()), prompts, [(dense, StaticRouter())], 5, timer=lambda: next(readings, 0.0)
    )
    # The warm-up reads no clock, so that the first round takes nine seconds.
    assert latency.times_ms == pytest.approx((1.0, 2.0, 3.0, 4.0, 5.0))
    assert (latency.low_ms, latency.median_ms, latency.high_ms) == pytest.approx((2.0, 3.0, 4.0))


def test_the_cpu_is_timed_by_the_plain_clock() -> None:
    assert timer_of(torch.device("cpu")) is time.perf_counter


@given(samples, st.integers(0, 9))
def test_an_estimate_is_the_median_within_an_interval_within_the_samples(values: list[float], seed: int) -> None:
    estimate = estimate_median(values, seed=seed)
    assert estimate.median == pytest.approx(statistics.median(values))
    assert min(values) <= estimate.low <= estimate.high <= max(values)
    assert estimate == estimate_median(values, seed=seed)


@given(samples)
def test_less_confidence_needs_a_narrower_interval(values: list[float]) -> None:
    wide, narrow = (estimate_median(values, confidence) for confidence in (0.99, 0.5))
    assert wide.low <= narrow.low
    assert narrow.high <= wide.high


def test_intervals_hold_the_true_median_about_as_often_as_they_say() -> None:
    generator = np.random.default_rng(0)
    estimates = [estimate_median(generator.exponential(size=25).tolist(), 0.9) for _ in range(300)]
    share = np.mean([estimate.low <= np.log(2) <= estimate.high for estimate in estimates])
    assert 0.85 <= share <= 0.97


@given(samples, st.floats(0.1, 10))
def test_what_slows_both_in_a_round_leaves_their_ratio_certain(values: list[float], factor: float) -> None:
    estimate = estimate_ratio([factor * value for value in values], values)
    assert (estimate.low, estimate.median, estimate.high) == pytest.approx((factor,) * 3)
