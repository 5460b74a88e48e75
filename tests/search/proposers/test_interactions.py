"""What genes do together is learnt from trials, and exchanges at equal cost find what harms least."""

from __future__ import annotations

import numpy as np
import pytest

from search.problem.gene_costs import CostSums, Counts, Floats
from search.proposers.exchange import descended
from search.proposers.interactions import HarmTogether
from search.proposers.knapsack import least_harm, least_harm_within

N, TOP = 12, 10


def harms_of(rng: np.random.Generator) -> Floats:
    """Convex curves of very different genes."""
    return np.asarray(np.exp(rng.normal(-3, 1, (N, 1))) * (np.arange(TOP + 1) / TOP) ** 1.5)


def drawn(rng: np.random.Generator, n: int) -> Counts:
    return rng.integers(0, TOP + 1, (n, N)) * (rng.random((n, N)) < 0.6)


@pytest.mark.parametrize("seed", range(3))
def test_genes_that_harm_in_alike_directions_are_found_out(seed: int) -> None:
    rng = np.random.default_rng(seed)
    harms, directions = harms_of(rng), rng.standard_normal((N, 40))
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)

    def kl(indices_TN: Counts) -> Floats:
        return np.asarray(((np.sqrt(harms[np.arange(N), indices_TN]) @ directions) ** 2).sum(1))

    known, fresh = drawn(rng, 120), drawn(rng, 200)
    together = HarmTogether(harms, None, known, kl(known))
    added = harms[np.arange(N), fresh].sum(1)
    missed, missed_by_sums = (np.std(np.log(one / kl(fresh))) for one in (together(fresh), added))
    assert missed < 0.5 * missed_by_sums
    # What may be true as well is off by more, but knows it, too.
    other = HarmTogether(harms, None, known, kl(known), rng)
    assert missed < np.std(np.log(other(fresh) / kl(fresh))) < 0.8 * missed_by_sums


def test_where_harms_add_up_nothing_is_learnt_but_that() -> None:
    rng = np.random.default_rng(0)
    harms = harms_of(rng)
    relief = 0.5 * harms

    def parts(indices_TN: Counts) -> Floats:
        lowest = np.array([[min(one[gene:]) for gene in range(N)] for one in indices_TN])
        return np.asarray(harms[np.arange(N), indices_TN] - relief[np.arange(N), lowest])

    known, fresh = drawn(rng, 60), rng.integers(1, TOP + 1, (100, N))
    together = HarmTogether(harms, relief, known, parts(known).sum(1))
    assert together(fresh) == pytest.approx(parts(fresh).sum(1), rel=0.01)


@pytest.mark.parametrize("seed", range(5))
def test_exchanges_lead_to_the_least_harm_where_it_is_known(seed: int) -> None:
    rng = np.random.default_rng(seed)
    harms, total = harms_of(rng), 30
    costs = np.tile(-np.arange(TOP + 1.0), (N, 1))
    start = np.array([TOP] * 3 + [0] * (N - 3))

    def harm(indices_CN: Counts) -> Floats:
        return np.asarray(harms[np.arange(N), indices_CN].sum(1))

    end = descended(start, harm, CostSums(costs), -float(total), rng)
    best = least_harm(harms, np.tile(np.arange(TOP + 1), (N, 1)), total)
    assert best is not None and end.sum() == total and start.tolist() == [TOP] * 3 + [0] * (N - 3)
    assert harm(end[None])[0] == pytest.approx(harm(np.array([best]))[0], rel=0.02)


def test_exchanges_keep_a_limit_on_costs_that_differ() -> None:
    rng = np.random.default_rng(1)
    harms, each = harms_of(rng), rng.uniform(0.2, 1.0, (N, 1))
    costs, start = -each * np.arange(TOP + 1), np.full(N, 3)
    most = float(costs[np.arange(N), start].sum())

    def harm(indices_CN: Counts) -> Floats:
        return np.asarray(harms[np.arange(N), indices_CN].sum(1))

    end = descended(start, harm, CostSums(costs), most, rng)
    assert costs[np.arange(N), end].sum() <= most + 1e-9 and harm(end[None])[0] < 0.7 * harm(start[None])[0]
    nothing = np.zeros(N, dtype=np.int64)
    assert descended(nothing, harm, CostSums(costs), 0.0, rng).tolist() == nothing.tolist()


@pytest.mark.parametrize("seed", range(5))
def test_both_halves_of_blocks_are_exchanged_where_they_cost_less_together(seed: int) -> None:
    rng = np.random.default_rng(seed)
    harms, skipped = harms_of(rng), np.arange(TOP + 1) / TOP
    # One half alone costs as much as it saves; only both save.
    costs = CostSums(np.zeros((N, TOP + 1)), -np.tile(np.minimum(skipped[:, None], skipped), (N // 2, 1, 1)))
    start, most = np.array([TOP] * 4 + [0] * (N - 4)), -2.0

    def harm(indices_CN: Counts) -> Floats:
        return np.asarray(harms[np.arange(N), indices_CN].sum(1))

    end, best = descended(start, harm, costs, most, rng), least_harm_within(harms, costs, most)
    assert best is not None and costs.of(end) <= most + 1e-9
    assert harm(end[None])[0] == pytest.approx(harm(np.array([best]))[0], rel=0.05)
