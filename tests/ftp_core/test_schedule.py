"""Schedules are values; kept counts follow the formula."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ftp_core.errors import ScheduleError
from ftp_core.schedule import SparsitySchedule, kept_count

levels = st.lists(st.integers(0, 19), min_size=1, max_size=20)


@given(level=st.integers(0, 19), length=st.integers(1, 5000))
def test_kept_count_is_the_exact_ceiling(level: int, length: int) -> None:
    exact = max(1, -(-((20 - level) * length) // 20))
    assert kept_count(level * 0.05, length) == exact


@given(levels=levels)
def test_levels_survive_the_round_trip(levels: list[int]) -> None:
    schedule = SparsitySchedule.from_grid_indices(levels)
    assert schedule.grid_indices() == tuple(levels)
    assert schedule == SparsitySchedule(list(schedule))
    assert hash(schedule) == hash(SparsitySchedule(list(schedule)))


@given(levels=levels)
def test_overall_sparsity_is_the_mean(levels: list[int]) -> None:
    exact = Fraction(sum(levels), 20 * len(levels))
    assert SparsitySchedule.from_grid_indices(levels).overall == pytest.approx(float(exact), abs=1e-12)


@pytest.mark.parametrize("values", [[0.1, 0.96], [-0.01], [float("nan")], [float("inf")]])
def test_a_value_outside_the_range_is_named(values: list[float]) -> None:
    with pytest.raises(
        ScheduleError, match=rf"Sparsity {values[-1]} of block {len(values) - 1} is outside \[0, 0.95\]"
    ):
        SparsitySchedule(values)


def test_an_empty_schedule_is_refused() -> None:
    with pytest.raises(ScheduleError, match="one sparsity per block"):
        SparsitySchedule([])


@pytest.mark.parametrize("values", [{0.1, 0.2}, {0.1: 1, 0.2: 2}, "0.1", b"\x00\x00"])
def test_what_has_no_order_of_numbers_is_no_schedule(values: Any) -> None:
    with pytest.raises(ScheduleError, match="one sparsity per block"):
        SparsitySchedule(values)


@pytest.mark.parametrize("value", ["0.5", b"0.5", None, "x"])
def test_a_value_that_is_no_number_is_named(value: Any) -> None:
    with pytest.raises(ScheduleError, match=r"Sparsity .* of block 1 is not a number"):
        SparsitySchedule([0.1, value])


def test_a_schedule_cannot_be_changed() -> None:
    schedule = SparsitySchedule([0.1, 0.2])
    with pytest.raises(TypeError):
        schedule[0] = 0.5  # type: ignore[index]


def test_it_prints_its_values_and_overall_sparsity() -> None:
    assert str(SparsitySchedule([0.0, 0.5])) == "0.00 0.50 (overall 25.0%)"
    assert repr(SparsitySchedule([0.0, 0.5])) == "SparsitySchedule([0, 0.5])"
