"""The knapsack is exact: no schedule of that cost harms less by its model."""

from __future__ import annotations

import itertools
import math
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from search.proposers.knapsack import Floats, least_harm, least_harm_within


def harm_of(indices: tuple[int, ...], harms: Floats, relief: Floats | None) -> float:
    harm = sum(harms[gene, index] for gene, index in enumerate(indices))
    spared = 0.0 if relief is None else sum(relief[gene, min(indices[gene:])] for gene in range(len(indices)))
    return float(harm - spared)


@settings(max_examples=150, deadline=None)
@given(st.integers(0, 10_000), st.booleans(), st.booleans())
def test_what_it_finds_is_the_best_of_all(seed: int, exactly: bool, with_relief: bool) -> None:
    rng = np.random.default_rng(seed)
    n_genes, n_indices = int(rng.integers(1, 5)), int(rng.integers(2, 5))
    harms = rng.normal(size=(n_genes, n_indices))
    relief = rng.normal(size=(n_genes, n_indices)) if with_relief else None
    savings = rng.integers(0, 4, size=(n_genes, n_indices))
    savings[:, 0] = 0
    total = int(rng.integers(0, 8))

    def saved(indices: tuple[int, ...]) -> int:
        return int(sum(savings[gene, index] for gene, index in enumerate(indices)))

    every = itertools.product(range(n_indices), repeat=n_genes)
    legal = [one for one in every if saved(one) == total or (saved(one) > total and not exactly)]
    found = least_harm(harms, savings, total, relief, exactly)
    if found is None:
        assert not legal
    else:
        best = min(harm_of(one, harms, relief) for one in legal)
        assert tuple(found) in legal and harm_of(tuple(found), harms, relief) == pytest.approx(best, abs=1e-12)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10_000), st.booleans(), st.floats(0.3, 1.1))
def test_a_cost_limit_is_kept_and_hardly_anything_within_it_harms_less(
    seed: int, with_relief: bool, share: float
) -> None:
    rng = np.random.default_rng(seed)
    n_genes, n_indices = int(rng.integers(1, 5)), 4
    harms = np.cumsum(rng.random((n_genes, n_indices)), axis=1)
    harms[:, 0] = 0.0
    relief = harms * rng.random() if with_relief else None
    costs = (1 + rng.random((n_genes, 1))) * (1 - np.arange(n_indices) / 4) ** 1.5
    most = share * float(costs[:, 0].sum())
    found = least_harm_within(harms, costs, most, relief)

    def cost(indices: tuple[int, ...]) -> float:
        return float(sum(costs[gene, index] for gene, index in enumerate(indices)))

    every = list(itertools.product(range(n_indices), repeat=n_genes))
    legal = [one for one in every if cost(one) <= most + 1e-9]
    if found is None:
        assert not legal
    else:
        # By as much as rounding loses, which is less than this stricter limit.
        stricter = [one for one in legal if cost(one) <= most - 0.01 * float(costs[:, 0].sum())]
        worst = min((harm_of(one, harms, relief) for one in stricter), default=math.inf)
        assert cost(tuple(found)) <= most + 1e-9 and harm_of(tuple(found), harms, relief) <= worst + 1e-9


def test_levels_that_cost_more_than_they_save_are_none() -> None:
    harms, costs = np.array([[0.0, 0.0, 0.5], [0.0, 0.1, 0.2]]), np.array([[1.0, 1.1, 0.4], [1.0, 0.9, 0.8]])
    assert least_harm_within(harms, costs, 1.91) == [0, 1]
    assert least_harm_within(harms, costs, 1.31) == [2, 1]
    assert least_harm_within(harms, costs, 1.1) is None


def test_160_genes_with_20_levels_take_a_moment() -> None:
    rng = np.random.default_rng(0)
    harms = np.sort(rng.random((160, 20)), axis=1)
    costs = (1 + rng.random((160, 1))) * (1 - np.arange(20) / 20)
    began = time.process_time()
    assert least_harm_within(harms, costs, 0.75 * float(costs[:, 0].sum())) is not None
    assert time.process_time() - began < 1.0
