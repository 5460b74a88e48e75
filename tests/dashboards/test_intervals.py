"""Intervals are those of the literature, and absent where they cannot be known."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dashboards.intervals import (
    mean_interval,
    overlap,
    paired_ratio_interval,
    paired_retention_interval,
    retention_interval,
)
from studies import Exhibits
from tests.dashboards.records import DATA, EXHIBITS

DENSE, REFINED = DATA.measured("dense"), DATA.measured("refined")
assert DENSE is not None and REFINED is not None


def test_a_ratio_of_paired_shares_is_as_published() -> None:
    # Bentur et al. (2009) as analysed by Fagerland, Lydersen and Laake (2014), table 8: Bonett-Price hybrid Wilson.
    assert paired_ratio_interval(1, 1, 7) == pytest.approx((0.068, 0.923), abs=5e-4)
    assert paired_ratio_interval(0, 0, 4) is None


def test_a_paired_interval_holds_the_ratio_about_as_often_as_it_says() -> None:
    random = np.random.default_rng(0)
    shares = np.array([0.94, 0.01, 0.03])
    true, held, n = (0.94 + 0.01) / (0.94 + 0.03), 0, 400
    for both, first, second, _ in random.multinomial(200, [*shares, 1 - shares.sum()], size=n):
        low, high = paired_ratio_interval(int(both), int(first), int(second)) or (1.0, 0.0)
        held += low <= true <= high
    assert held / n >= 0.93


def test_retention_needs_both_accuracies_and_its_interval_both_intervals() -> None:
    assert REFINED.retention(DENSE) == pytest.approx(193 / 195)
    low, high = retention_interval(REFINED, DENSE) or (0.0, 0.0)
    assert low < 193 / 195 < high
    assert retention_interval(DENSE, DENSE) is None
    assert REFINED.retention(None) is None
    assert replace(REFINED, accuracy=None).retention(DENSE) is None
    assert retention_interval(replace(REFINED, accuracy_low=None), DENSE) is None
    assert retention_interval(replace(REFINED, accuracy=0.0, accuracy_low=0.0), DENSE) is None


def test_answers_item_by_item_make_the_interval_narrower() -> None:
    apart = retention_interval(REFINED, DENSE)
    paired = paired_retention_interval(REFINED, DENSE, EXHIBITS)
    assert apart is not None and paired is not None
    assert apart[0] < paired[0] < 193 / 195 < paired[1] < apart[1]


@pytest.mark.parametrize(
    "seen", [None, Exhibits(), replace(EXHIBITS, n_items=150), replace(EXHIBITS, n_lost=30), replace(EXHIBITS, n_won=9)]
)
def test_counts_of_other_items_give_no_paired_interval(seen: Exhibits | None) -> None:
    assert paired_retention_interval(REFINED, DENSE, seen) is None


@given(st.lists(st.floats(0.0, 1.0), min_size=1, max_size=40))
def test_an_interval_of_a_mean_is_within_what_is_possible(shares: list[float]) -> None:
    mean, ends = mean_interval(shares, 0.0, 1.0)
    _, free = mean_interval(shares)
    if ends is None:
        assert len(shares) < 3 or (free is not None and free[0] < 0)
    else:
        assert free is not None and 0 <= ends[0] <= mean + 1e-9 and mean - 1e-9 <= ends[1] <= 1
        assert ends == pytest.approx((free[0], min(1.0, free[1])), abs=1e-9)


def test_a_mean_over_seeds_has_students_interval() -> None:
    mean, ends = mean_interval([1.0, 2.0, 3.0, 4.0, 5.0])
    # 2.776 x sqrt(2.5) / sqrt(5)
    assert mean == 3.0 and ends == pytest.approx((1.0370, 4.9630), abs=1e-4)
    assert mean_interval([2.0]) == (2.0, None)
    # Two values are too few: the interval would be 18 times as wide as they are apart.
    assert mean_interval([2.0, 4.0]) == (3.0, None)
    assert mean_interval([float(value % 2) for value in range(100)])[1] is not None


def test_intervals_overlap_only_if_both_are_known() -> None:
    assert overlap((0.0, 1.0), (1.0, 2.0)) and not overlap((0.0, 1.0), (1.1, 2.0))
    assert not overlap(None, (0.0, 1.0)) and not overlap((0.0, 1.0), None)
