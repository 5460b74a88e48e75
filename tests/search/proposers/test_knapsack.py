"""The knapsack is exact: no schedule of that cost harms less by its model."""

from __future__ import annotations

import itertools
import math
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from search.problem.gene_costs import CostSums, Floats
from search.proposers.knapsack import least_harm, least_harm_within


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
    found = least_harm_within(harms, CostSums(costs), most, relief)

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


def costs_of_halves(rng: np.random.Generator, n_blocks: int, n_indices: int) -> CostSums:
    """Each half alone saves little, or costs time; both together save more than the two."""
    skipped = np.arange(n_indices) / n_indices
    alone = -rng.uniform(-0.3, 1.0, (2 * n_blocks, 1)) * skipped
    return CostSums(alone, -rng.uniform(0.2, 1.0, (n_blocks, 1, 1)) * np.minimum(skipped[:, None], skipped))


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10_000), st.floats(0.05, 0.8))
def test_where_both_halves_of_a_block_cost_less_together_hardly_any_two_harm_less(seed: int, share: float) -> None:
    rng, n_blocks, n_indices = np.random.default_rng(seed), 2, 4
    harms = np.cumsum(rng.random((2 * n_blocks, n_indices)), axis=1)
    harms[:, 0] = 0.0
    costs = costs_of_halves(rng, n_blocks, n_indices)
    every = np.array(list(itertools.product(range(n_indices), repeat=2 * n_blocks)))
    each, harm = costs.of_each(every), harms[np.arange(2 * n_blocks), every].sum(1)
    most = share * float(each.min())
    found = least_harm_within(harms, costs, most)
    # Half a thousandth is lost by rounding, in each block.
    stricter = harm[each <= most * 1.01]
    assert found is not None or not len(stricter)
    if found is not None:
        assert costs.of(found) <= most + 1e-9
        assert harms[np.arange(2 * n_blocks), found].sum() <= stricter.min(initial=math.inf) + 1e-9


def test_levels_that_cost_more_than_they_save_are_none() -> None:
    harms, costs = np.array([[0.0, 0.0, 0.5], [0.0, 0.1, 0.2]]), np.array([[1.0, 1.1, 0.4], [1.0, 0.9, 0.8]])
    assert least_harm_within(harms, CostSums(costs), 1.91) == [0, 1]
    assert least_harm_within(harms, CostSums(costs), 1.31) == [2, 1]
    assert least_harm_within(harms, CostSums(costs), 1.1) is None


def test_160_genes_with_20_levels_take_a_moment() -> None:
    rng = np.random.default_rng(0)
    harms = np.sort(rng.random((160, 20)), axis=1)
    costs = (1 + rng.random((160, 1))) * (1 - np.arange(20) / 20)
    began = time.process_time()
    assert least_harm_within(harms, CostSums(costs), 0.75 * float(costs[:, 0].sum())) is not None
    assert time.process_time() - began < 1.0


def test_80_blocks_of_halves_that_cost_less_together_take_a_moment() -> None:
    rng = np.random.default_rng(0)
    harms = np.cumsum(rng.random((160, 15)), axis=1) - 1
    costs = costs_of_halves(rng, 80, 15)
    began = time.process_time()
    assert least_harm_within(harms.clip(0), costs, 0.4 * float(costs.of_blocks().min(1).sum())) is not None
    assert time.process_time() - began < 2.0
