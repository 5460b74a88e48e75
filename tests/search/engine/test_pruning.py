"""Whether a trial goes on depends on what others were worth at the same fidelity, and on nothing else."""

from __future__ import annotations

import random

import optuna
import pytest
from hypothesis import given
from hypothesis import strategies as st

from search.engine.pruning import OptunaPruning, ParetoHalving, Pruner
from search.engine.termination import Stopping

values = st.tuples(st.integers(0, 5), st.integers(0, 5))


@given(st.lists(values, max_size=30), values, st.integers(0, 40), st.none() | st.integers(1, 20))
def test_shares_are_those_of_a_slow_count(
    earlier: list[tuple[int, int]], own: tuple[int, int], number: int, lag: int | None
) -> None:
    rungs = ParetoHalving(lag=lag)
    order = list(enumerate(earlier))
    random.Random(0).shuffle(order)
    for other, worth in order if lag is not None else enumerate(earlier):
        rungs.saw(other, 0, worth)
    rungs.saw(0, 1, (0, 0))
    compared = [worth for other, worth in enumerate(earlier) if lag is None or other <= number - lag]

    def dominated(point: tuple[int, int], by: list[tuple[int, int]]) -> int:
        return sum(o != point and o[0] <= point[0] and o[1] <= point[1] for o in by)

    share, others = rungs.dominated_shares(number, 0, own)
    n = len(compared)
    assert share == pytest.approx(dominated(own, compared) / n if n else 0.0)
    assert list(others) == pytest.approx([dominated(one, compared) / n for one in compared])


def feed(pruner: Pruner, n: int, rung: int = 0) -> list[tuple[float, bool]]:
    rng = random.Random(1)
    decided = []
    for number in range(n):
        quality = rng.random()
        decided.append((quality, pruner.goes_on(number, rung, (quality, 0.0))))
    return decided


def test_about_one_in_eta_goes_on_and_it_is_the_better_ones() -> None:
    for eta in (2.0, 4.0):
        decided = feed(ParetoHalving(eta), 400)[50:]
        assert sum(goes for _, goes in decided) / len(decided) == pytest.approx(1 / eta, abs=0.08)
        assert all(goes for quality, goes in decided if quality < 0.5 / eta)
        assert not any(goes for quality, goes in decided if quality > 1.6 / eta)


def test_the_first_trials_go_on_since_there_is_nothing_to_compare_with() -> None:
    assert all(goes for _, goes in feed(ParetoHalving(), 8))


def test_points_of_the_front_always_go_on() -> None:
    pruner = ParetoHalving(eta=8.0)
    assert all(pruner.goes_on(number, 0, (float(number), float(-number))) for number in range(100))


def test_rungs_are_apart() -> None:
    pruner = ParetoHalving()
    feed(pruner, 50, rung=0)
    assert all(goes for _, goes in feed(pruner, 8, rung=1))


def test_with_a_lag_decisions_do_not_depend_on_which_trial_ended_first() -> None:
    rng = random.Random(2)
    worth = [(rng.random(), rng.random()) for _ in range(120)]
    straight, shuffled = ParetoHalving(lag=16), ParetoHalving(lag=16)
    expected = [straight.goes_on(number, 0, worth[number]) for number in range(120)]
    found: dict[int, bool] = {}
    for start in range(0, 120, 8):
        block = list(range(start, start + 8))
        rng.shuffle(block)
        for number in block:
            found[number] = shuffled.goes_on(number, 0, worth[number])
    assert [found[number] for number in range(120)] == expected and not all(expected)


@pytest.mark.parametrize(
    "pruner",
    [
        optuna.pruners.MedianPruner(),
        optuna.pruners.PercentilePruner(50.0),
        optuna.pruners.SuccessiveHalvingPruner(),
        optuna.pruners.HyperbandPruner(min_resource=1, max_resource=4),
    ],
    ids=lambda pruner: type(pruner).__name__,
)
def test_optuna_pruners_stop_the_worse_ones(pruner: optuna.pruners.BasePruner) -> None:
    pruning = OptunaPruning(pruner, n_rungs=2)
    rng, goes, stops = random.Random(3), [], []
    for number in range(150):
        quality = rng.random()
        ends = all(pruning.goes_on(number, rung, (quality, 0.0)) for rung in range(2))
        (goes if ends else stops).append(quality)
    assert len(goes) > 10 and len(stops) > 30
    assert sum(goes) / len(goes) < 0.75 * sum(stops) / len(stops)


def test_trials_of_an_earlier_run_are_compared_with() -> None:
    pruner = ParetoHalving()
    for number in range(20):
        pruner.saw(number, 0, (0.1, 0.1))
    assert not pruner.goes_on(20, 0, (1.0, 1.0))


def test_a_search_ends_by_time_and_when_the_front_stands_still() -> None:
    now = [0.0]
    stopping = Stopping(10, seconds=5.0, clock=lambda: now[0])
    assert stopping.reason is None
    now[0] = 5.0
    assert stopping.reason == "5 seconds are over"

    stopping = Stopping(1000, plateau=3)
    for gain in (0.5, 0.0, 0.0004, 0.0007, 0.0, 0.0):
        assert stopping.reason is None
        stopping.ended(gain)
    stopping.ended(0.0005)
    assert stopping.reason == "the last 3 trials added nothing to the front"
