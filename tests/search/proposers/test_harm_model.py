"""The fitted curves say how KL grows with what is skipped, and what a shortened prompt spares."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from search.proposers.harm_model import Curves, HarmModel
from search.proposers.knapsack import Floats

N = 12
DEPTH = np.linspace(0.0, 1.0, N)


def kl_of(curves: Curves, sparsities: Floats) -> Floats:
    """KL of schedules `[T, N]`, written out."""
    kl = np.zeros(len(sparsities))
    for row, skips in enumerate(sparsities):
        for gene, skip in enumerate(skips):
            lowest = min(skips[gene:])
            own, spared = ((share / 0.6) ** curves.power[gene] for share in (skip, lowest))
            kl[row] += curves.scale[gene] * (own - curves.spared[gene] * spared)
    return kl


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10_000))
def test_a_fit_predicts_schedules_that_it_was_not_told_of(seed: int) -> None:
    rng = np.random.default_rng(seed)
    scale = np.exp(np.interp(DEPTH, (0, 1), (-2, -5)) + 0.7 * rng.standard_normal(N))
    true = Curves(scale, rng.uniform(0.9, 1.6, N), np.clip(rng.uniform(0.3, 0.9) - 0.6 * DEPTH, 0.0, 0.98))
    told = np.concatenate([0.6 * np.eye(N), np.tile(np.linspace(0.1, 0.8, 6)[:, None], (1, N)), rng.random((40, N))])
    noisy = kl_of(true, told) * np.exp(0.05 * rng.standard_normal(len(told)))
    fitted = HarmModel(DEPTH, np.arange(N), is_nested=True).fit(told, noisy, np.arange(len(told)) < N).best
    new = 0.9 * rng.random((30, N))
    assert np.sqrt(np.mean(np.log(kl_of(fitted, new) / kl_of(true, new)) ** 2)) < 0.2


def test_relief_is_what_the_lowest_sparsity_behind_spares() -> None:
    curves = Curves(np.array([2.0, 1.0]), np.array([1.0, 2.0]), np.array([0.5, 0.25]))
    levels = np.array([0.0, 0.6])
    relief = curves.relief(levels)
    assert relief is not None
    assert curves.harms(levels) == pytest.approx(np.array([[0.0, 2.0], [0.0, 1.0]]))
    assert relief == pytest.approx(np.array([[0.0, 1.0], [0.0, 0.25]]))


def test_what_is_uncertain_is_drawn_from_a_wider_range() -> None:
    model = HarmModel(DEPTH, np.arange(N), is_nested=False)
    told = 0.6 * np.eye(N)[:6]
    posterior = model.fit(told, np.full(6, 0.05), np.zeros(6, dtype=bool))
    draws = np.log([posterior.draw(np.random.default_rng(seed)).scale for seed in range(200)]).std(0)
    assert draws[:6].max() < 0.5 < draws[6:].min()
