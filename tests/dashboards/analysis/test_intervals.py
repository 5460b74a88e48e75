"""Intervals are those of the literature, and absent where they cannot be known."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dashboards.analysis.intervals import mean_interval, overlap


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
    # 2.7764 x sqrt(2.5) / sqrt(5)
    assert mean == 3.0 and ends == pytest.approx((1.0368, 4.9632), abs=1e-4)
    assert mean_interval([2.0]) == (2.0, None)
    # Two values are too few: the interval would be 18 times as wide as they are apart.
    assert mean_interval([2.0, 4.0]) == (3.0, None)
    assert mean_interval([float(value % 2) for value in range(100)])[1] is not None


def test_intervals_overlap_only_if_both_are_known() -> None:
    assert overlap((0.0, 1.0), (1.0, 2.0)) and not overlap((0.0, 1.0), (1.1, 2.0))
    assert not overlap(None, (0.0, 1.0)) and not overlap((0.0, 1.0), None)
