"""Speed-ups over the dense model are what they are whatever the machine's load does, or their intervals say so."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ftp_core.cost.speedup import PRECISE, median_rank, needs_more_turns, paired_speedup
from ftp_core.cost.timing import take_turns
from ftp_core.errors import DataError

Load = Callable[[np.random.Generator, int], np.ndarray]


def drifting(draw: np.random.Generator, n: int) -> np.ndarray:
    """Load that wanders by a factor of several within a measurement."""
    return np.exp(np.cumsum(draw.normal(0, 0.05, n)))


def bursts(draw: np.random.Generator, n: int) -> np.ndarray:
    """A quiet machine on which something else runs now and then."""
    return np.where(draw.random(n) < 0.25, draw.uniform(1.5, 4, n), draw.normal(1, 0.01, n))


def two_paces(draw: np.random.Generator, n: int) -> np.ndarray:
    """Twice as slow from some moment on."""
    return np.where(np.arange(n) < draw.integers(n), 1.0, 2.0) * draw.normal(1, 0.01, n)


def timed(costs_ms: list[float], load: Load, turns: int, seed: int) -> list[list[float]]:
    """Times of variants that take turns on a machine with a load."""
    loads = iter(load(np.random.default_rng(seed), len(costs_ms) * (turns + 1)).tolist())
    return take_turns([lambda ms=ms: ms * next(loads) for ms in costs_ms], turns)


@pytest.mark.parametrize("load", [drifting, bursts, two_paces])
@pytest.mark.parametrize("turns", [9, 36])
def test_an_interval_holds_the_true_speedup_under_load(load: Load, turns: int) -> None:
    held, steps = 0, 300
    for seed in range(steps):
        dense, _, variant = timed([100.0, 80.0, 60.0], load, turns, seed)
        found = paired_speedup(dense, variant)
        assert found.low is not None and found.high is not None
        held += found.low <= 100 / 60 <= found.high
    assert held / steps >= 0.93


def test_load_that_drifts_misleads_a_ratio_of_medians_more_than_the_median_of_ratios() -> None:
    errors = {"paired": [], "unpaired": []}
    for seed in range(200):
        dense, variant = timed([100.0, 60.0], drifting, 9, seed)
        errors["paired"].append(abs(math.log(paired_speedup(dense, variant).ratio * 0.6)))
        errors["unpaired"].append(abs(math.log(statistics.median(dense) / statistics.median(variant) * 0.6)))
    assert np.mean(errors["paired"]) < 0.8 * np.mean(errors["unpaired"])


@pytest.mark.parametrize("confidence", [0.8, 0.95, 0.99])
def test_ranks_are_those_of_a_sign_test(confidence: float) -> None:
    for n in range(1, 60):
        outside = [2 * sum(math.comb(n, k) for k in range(rank)) / 2**n for rank in range(1, n // 2 + 2)]
        wide_enough = [rank for rank, share in enumerate(outside, 1) if share <= 1 - confidence + 1e-12]
        assert median_rank(n, confidence) == (wide_enough[-1] if wide_enough else None)


def test_ranks_of_many_values_are_near_the_middle() -> None:
    # The normal approximation: n / 2 - 1.96 * sqrt(n) / 2.
    assert median_rank(40_000) == pytest.approx(20_000 - 196, abs=1)


@pytest.mark.parametrize("turns", range(1, 6))
def test_too_few_turns_have_no_interval(turns: int) -> None:
    found = paired_speedup([2.0] * turns, [1.0] * turns)
    assert (found.ratio, found.low, found.high, found.turns) == (2.0, None, None, turns)
    assert found.half_width == math.inf


pairs = st.lists(st.tuples(st.floats(0.01, 1e5), st.floats(0.01, 1e5)), min_size=1, max_size=50)


@given(pairs, st.floats(0.01, 100), st.randoms())
def test_what_slows_whole_turns_changes_nothing(pairs: list[tuple[float, float]], factor: float, draw) -> None:
    plain = paired_speedup(*zip(*pairs, strict=True))
    slowed = [(a * pace, b * pace) for a, b in pairs for pace in [draw.uniform(0.1, 10)]]
    draw.shuffle(slowed)
    found = paired_speedup(*zip(*slowed, strict=True))
    assert found.ratio == pytest.approx(plain.ratio)
    assert (found.low, found.high) == (plain.low and pytest.approx(plain.low), plain.high and pytest.approx(plain.high))
    if plain.low is not None and plain.high is not None:
        assert plain.low <= plain.ratio <= plain.high


def test_times_that_do_not_pair_are_refused() -> None:
    for dense, variant in (([], []), ([1.0], [1.0, 2.0])):
        with pytest.raises(DataError, match="expected one of each in every turn"):
            paired_speedup(dense, variant)
    for time in (0.0, -1.0, math.nan, math.inf):
        with pytest.raises(DataError, match="finite and above 0"):
            paired_speedup([1.0, 2.0], [1.0, time])


@given(st.integers(2, 12), st.sampled_from([drifting, bursts, two_paces]), st.integers(0, 2**31))
def test_turns_are_taken_until_speedups_are_precise_or_four_times_as_many(least: int, load: Load, seed: int) -> None:
    loads = load(np.random.default_rng(seed), 4 * 3 * (4 * least + 1)).tolist()
    runs = [lambda ms=ms: ms * loads.pop() for ms in (10.0, 5.0, 10.0)]
    dense, *others = take_turns(runs, least, goes_on=lambda times: needs_more_turns(times, least))
    assert len(dense) % least == 0 and len(dense) <= 4 * least
    precise = all(paired_speedup(dense, own).half_width <= PRECISE for own in others)
    assert precise or len(dense) == 4 * least


def test_precise_speedups_need_no_more_turns() -> None:
    assert not needs_more_turns([[10.0] * 9, [5.0] * 9], 9)
    assert needs_more_turns([[10.0] * 5, [5.0] * 5], 5)  # of five there is no interval


def test_further_turns_are_not_taken_where_they_take_minutes() -> None:
    varied = [1.0, 1.3] * 5
    # Ten turns of 2 x 4 s are 80 s, and as many again would be beyond a minute and a half.
    assert needs_more_turns([[2_000 * x for x in varied], [1_500.0] * 10], 10)
    assert not needs_more_turns([[4_000 * x for x in varied], [4_000.0] * 10], 10)
