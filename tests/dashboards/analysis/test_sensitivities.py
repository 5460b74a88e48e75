"""Sensitivities that are known, since the objective adds them up, are found again: with a target and without one."""

from __future__ import annotations

from datetime import timedelta

import numpy as np
import pytest
from numpy.typing import NDArray

from dashboards.analysis.sensitivities import Importance, ablations, importance
from dashboards.analysis.trials import Found
from dashboards.figures import sensitivities_figure
from studies import Trial, TrialState
from studies.records.halves import Halves
from studies.records.target import Target
from studies.records.trial_columns import columns_of
from tests.dashboards import records

N_BLOCKS = 6
TARGET = Target("target_sparsity", 0.3)
Floats = NDArray[np.float64]


def weights(halves: bool) -> Floats:
    """Nats per token as all tokens skip a part: the first parts matter most, as in pretrained models."""
    return 0.4 * 0.6 ** np.arange(N_BLOCKS * (2 if halves else 1))


def schedules(rng: np.random.Generator, n: int, parts: int, target: bool) -> Floats:
    """Shares on the grid, whose sum is the same in all of them at a target."""
    indices = rng.integers(0, 13, (n, parts))
    if target:
        for row in indices:
            while (off := row.sum() - round(0.3 * 20 * parts)) != 0:
                row[rng.integers(parts)] -= np.sign(off)
                row[:] = np.clip(row, 0, 19)
    return np.round(indices / 20, 2)


def study(shares: Floats, kl: Floats, halves: bool, target: Target | None, proposer: str = "deap") -> Found:
    numbers = np.hstack([shares[:, 0::2], shares[:, 1::2], shares[:, 0::2] > 0]) if halves else shares
    trials = [
        Trial(
            number=number,
            schedule=Halves(own) if halves else tuple(own),
            values=(float(kl[number]), 10.0),
            state=TrialState.FINISHED,
            fidelity=1.0,
            proposer=proposer,
            seconds=1.0,
            finished_at=records.BEGAN + timedelta(seconds=number),
        )
        for number, own in enumerate(numbers.tolist())
    ]
    return Found(columns_of(trials, 2), ("kl", "latency_ms"), target=target)


def fitted(found: Found) -> Importance:
    fit = importance(found)
    assert fit is not None
    return fit


@pytest.mark.parametrize("target", [None, TARGET], ids=["open", "target"])
@pytest.mark.parametrize("halves", [False, True], ids=["blocks", "halves"])
def test_known_effects_are_found_and_lie_in_their_intervals(halves: bool, target: Target | None) -> None:
    known = weights(halves)
    truth = known - known.mean() if target else known
    covered = []
    for seed in range(100):
        rng = np.random.default_rng(seed)
        shares = schedules(rng, 120, len(known), target is not None)
        kl = shares @ known
        exact = fitted(study(shares, kl, halves, target))
        assert (exact.halves, exact.is_relative) == (halves, target is not None)
        assert exact.effect == pytest.approx(truth, abs=1e-9) and exact.r2 == pytest.approx(1.0)
        # Evaluations of a high KL differ more from what adds up.
        noisy = fitted(study(shares, kl * np.exp(rng.normal(-0.02, 0.2, len(kl))), halves, target))
        covered.append((noisy.low <= truth) & (truth <= noisy.high))
        assert noisy.effect.argmax() == 0
    assert np.mean(covered) >= 0.92


@pytest.mark.parametrize("halves", [False, True], ids=["blocks", "halves"])
def test_a_target_that_only_the_schedules_show_makes_effects_relative(halves: bool) -> None:
    known, rng = weights(halves), np.random.default_rng(0)
    shares = schedules(rng, 120, len(known), True)
    assert fitted(study(shares, shares @ known, halves, None)).effect == pytest.approx(known - known.mean(), abs=1e-9)


def test_effects_at_a_limit_of_cost_are_relative_to_the_mean_block() -> None:
    known, rng = weights(False), np.random.default_rng(0)
    shares = schedules(rng, 120, len(known), False)
    fit = fitted(study(shares, shares @ known, False, Target("target_flops_saved", 0.3)))
    assert fit.is_relative and fit.effect == pytest.approx(known - known.mean(), abs=1e-9)


def test_what_never_skips_or_never_skips_apart_has_no_effect() -> None:
    known, rng = weights(False), np.random.default_rng(0)
    shares = schedules(rng, 120, len(known), False)
    shares[:, 1], shares[:, 3] = 0.0, shares[:, 2]
    found = study(shares, shares @ known, False, None)
    fit = fitted(found)
    assert np.isnan(fit.effect).tolist() == [False, True, True, True, False, False]
    assert fit.effect[[0, 4, 5]] == pytest.approx(known[[0, 4, 5]], abs=1e-9)
    figure = sensitivities_figure(found)
    assert list(figure.data[0].x) == [0, 4, 5] and "no bar: 3" in figure.layout.title.subtitle.text


def test_ruined_models_do_not_count() -> None:
    known, rng = weights(False), np.random.default_rng(0)
    shares = schedules(rng, 240, len(known), False)
    kl = shares @ known
    kl[::2] = 7.0
    fit = fitted(study(shares, kl, False, None))
    assert fit.n == 120 and fit.effect == pytest.approx(known, abs=1e-9)
    assert importance(study(shares, np.full(240, 7.0), False, None)) is None


def test_the_figure_says_what_effects_are_relative_to_and_how_sure_they_are() -> None:
    known, rng = weights(True), np.random.default_rng(0)
    shares = schedules(rng, 120, len(known), True)
    figure = sensitivities_figure(study(shares, shares @ known + rng.normal(0.0, 0.01, 120), True, TARGET))
    assert [bars.name for bars in figure.data] == ["attention", "MLP"]
    assert "against the mean half of a block" in figure.layout.title.subtitle.text
    assert "95% intervals" in figure.layout.title.subtitle.text
    assert all("nats per token" in text and "[" in text for bars in figure.data for text in bars.customdata)
    assert [float(x) for x in figure.data[0].x] == [block - 0.25 for block in range(N_BLOCKS)]


def test_ablations_of_halves_have_a_bar_each() -> None:
    known = weights(True)
    shares = 0.6 * np.eye(len(known))
    found = study(shares, shares @ known, True, TARGET, proposer="ablation")
    alone = ablations(found)
    assert alone is not None and alone.halves
    assert alone.first.tolist() == alone.last.tolist() == list(range(len(known)))
    figure = sensitivities_figure(found)
    shown = {name: y for bars in figure.data for name, y in zip(bars.customdata, bars.y, strict=True)}
    assert shown["attention of block 0 alone"] == pytest.approx(0.6 * known[0])
    assert shown["MLP of block 5 alone"] == pytest.approx(0.6 * known[11]) and len(shown) == len(known)
    assert "this half alone" in figure.layout.title.subtitle.text


def test_neighbouring_halves_that_were_ablated_together_have_one_bar() -> None:
    shares = np.zeros((4, 2 * N_BLOCKS))
    for row, parts in enumerate([slice(0, 3), slice(3, 6), slice(6, 9), slice(9, 12)]):
        shares[row, parts] = 0.6
    figure = sensitivities_figure(study(shares, np.array([0.4, 0.3, 0.2, 0.1]), True, None, proposer="ablation"))
    [bars] = figure.data
    assert bars.name == "neighbours" and bars.customdata[0] == "attention of block 0 to attention of block 1 together"
    assert list(bars.x) == [0.25, 1.75, 3.25, 4.75]
