"""Races on fresh items: who drops out, when they end, and what is expected of those that dropped out early."""

from __future__ import annotations

import random
from collections.abc import Sequence
from itertools import count

import pytest
from hypothesis import given
from hypothesis import strategies as st

from search.engine.racing import Contender, Race, estimates
from search.evaluators import ItemKl

BATCHES = (16,) * 14


def drawn(true: Sequence[float], size: int, rng: random.Random, noise: float = 0.5) -> dict[int, list[ItemKl]]:
    """Items of a batch, harder and easier ones, whose KL under each trial scatters around the true one."""
    items: dict[int, list[ItemKl]] = {place: [] for place in range(len(true))}
    for _ in range(size):
        hardness, n_tokens = rng.lognormvariate(0, 0.8), rng.randint(1, 9)
        for place, kl in enumerate(true):
            items[place].append(ItemKl(kl * hardness * rng.lognormvariate(0, noise), n_tokens))
    return items


def raced(race: Race, true: Sequence[float], seed: int, noise: float = 0.5) -> int:
    """Runs a race to its end, and gives the number of batches."""
    rng = random.Random(seed)
    for n in count():
        if (batch := race.next_batch()) is None:
            return n
        assert batch == n
        found = drawn(true, 16, rng, noise)
        race.take({place: found[place] for place in race.leading})
    raise AssertionError


def test_a_race_ends_early_where_one_is_clearly_the_best() -> None:
    race = Race([1.0] * 4, BATCHES, 10_000)
    assert raced(race, [0.4, 0.1, 0.4, 0.5], 1) <= 2
    assert race.leading == [1]
    assert [one.is_out for one in race.contenders] == [True, False, True, True]


def test_equal_ones_share_the_items_to_the_end() -> None:
    race = Race([1.0] * 3, BATCHES, 10_000)
    rng = random.Random(2)
    for _ in BATCHES:
        assert race.next_batch() is not None
        [items] = drawn([0.1], 16, rng).values()
        race.take(dict.fromkeys(race.leading, items))
    assert race.next_batch() is None and race.leading == [0, 1, 2]
    assert {len(one.items) for one in race.contenders} == {224} and race.n_evaluated == 3 * 224


def test_hardly_different_ones_are_seldom_dropped_by_chance() -> None:
    n_dropped = 0
    for seed in range(40):
        race = Race([1.0] * 2, BATCHES[:4], 10_000)
        raced(race, [0.1, 0.1], seed)
        n_dropped += len(race.leading) == 1
    # Asked four times at a level of 1 % from either side.
    assert n_dropped <= 6


def test_no_more_is_evaluated_than_allowed() -> None:
    race = Race([1.0] * 5, BATCHES, 16 * 5 * 3 + 79)
    assert raced(race, [0.1] * 5, 3, noise=0.0) == 3
    assert race.n_evaluated == 16 * 5 * 3


def test_a_cheaper_trial_is_not_ruled_out_by_a_better_one_that_costs_more() -> None:
    costs = [10.0, 8.0, 10.0]
    true = [0.1, 0.4, 0.4]
    front, target = Race(costs, BATCHES, 10_000, by_cost=True), Race(costs, BATCHES, 10_000)
    raced(front, true, 4)
    raced(target, true, 4)
    assert front.leading == [0, 1] and target.leading == [0]


def test_what_cannot_be_evaluated_leaves_the_race() -> None:
    race = Race([1.0] * 3, BATCHES, 10_000)
    found = drawn([0.1] * 3, 16, random.Random(5), noise=0.0)
    race.take({0: found[0], 2: found[2]})
    assert race.leading == [0, 2] and race.n_evaluated == 32 and not race.contenders[1].items


@given(
    kls=st.lists(st.floats(0.01, 10.0), min_size=2, max_size=12),
    tokens=st.lists(st.integers(1, 20), min_size=12, max_size=12),
    n=st.integers(1, 12),
    ratio=st.floats(0.1, 10.0),
)
def test_a_trial_that_saw_fewer_items_is_judged_beside_the_reference_on_them(
    kls: list[float], tokens: list[int], n: int, ratio: float
) -> None:
    reference = Contender(1.0, [ItemKl(kl, tokens[place]) for place, kl in enumerate(kls)])
    other = Contender(1.0, [ItemKl(ratio * item.kl, item.n_tokens) for item in reference.items[:n]])
    whole = sum(item.kl * item.n_tokens for item in reference.items) / sum(item.n_tokens for item in reference.items)
    found = estimates([reference, other], reference)
    assert found == [pytest.approx(whole), pytest.approx(ratio * whole)]


def test_models_that_are_as_good_as_dense_have_estimates_and_are_not_told_apart() -> None:
    dense, other = (Contender(1.0, [ItemKl(0.0, 1)] * 20) for _ in range(2))
    assert not dense.is_worse(other) and estimates([other], dense) == [0.0]
    worse = Contender(1.0, [ItemKl(0.1, 1)] * 20)
    assert worse.is_worse(dense) and not dense.is_worse(worse) and estimates([worse], dense) == [pytest.approx(0.1)]


def test_a_lower_mean_is_not_worse_whatever_the_ranks_say() -> None:
    # Most items a hair worse, one far better.
    one = Contender(1.0, [ItemKl(0.11, 1)] * 30 + [ItemKl(0.1, 1)])
    other = Contender(1.0, [ItemKl(0.10, 1)] * 30 + [ItemKl(5.0, 1)])
    assert not one.is_worse(other) and not other.is_worse(one)
