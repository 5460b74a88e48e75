"""Schedules are values; kept counts follow the formula."""

from __future__ import annotations

import copy
import json
import pickle
from fractions import Fraction
from statistics import fmean
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ftp_core.errors import ScheduleError
from ftp_core.schedule import SparsitySchedule, kept_count

levels = st.lists(st.integers(0, 19), min_size=1, max_size=20)


@given(level=st.integers(0, 19), length=st.integers(1, 5000))
def test_kept_count_is_the_exact_ceiling_of_at_least_two(level: int, length: int) -> None:
    exact = min(length, max(2, -(-((20 - level) * length) // 20)))
    assert kept_count(level * 0.05, length) == exact


@pytest.mark.parametrize("length", [1, 2, 3, 15, 256])
def test_shares_that_no_schedule_has_may_leave_one_token(length: int) -> None:
    assert kept_count(1 - 0.5 / max(length, 11), length) == 1


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


@st.composite
def halves(draw: st.DrawFn) -> tuple[list[float], list[float], list[bool]]:
    n_blocks = draw(st.integers(1, 5))
    shares = st.lists(st.sampled_from([0.0, 0.25, 0.5, 0.95]), min_size=n_blocks, max_size=n_blocks)
    return draw(shares), draw(shares), draw(st.lists(st.booleans(), min_size=n_blocks, max_size=n_blocks))


@given(halves())
def test_halves_are_kept_in_every_form(parts: tuple[list[float], list[float], list[bool]]) -> None:
    attention, mlp, keeps = parts
    schedule, n = SparsitySchedule.of_halves(*parts), len(attention)
    assert schedule.attention == tuple(attention) and schedule.mlp == tuple(mlp)
    # Where no token skips attention, there is nothing to keep.
    assert schedule.keeps_kv == tuple(keep and share > 0 for keep, share in zip(keeps, attention, strict=True))
    assert schedule.n_blocks == n == len(schedule.blocks) and len(schedule.numbers) == 3 * n
    assert schedule.overall == pytest.approx(fmean(block.overall for block in schedule.blocks))
    for same in (
        SparsitySchedule.of(schedule.numbers, n),
        SparsitySchedule.of(tuple(schedule), n),
        SparsitySchedule.from_json(json.loads(json.dumps(schedule.to_json()))),
        pickle.loads(pickle.dumps(schedule)),
        copy.deepcopy(schedule),
        eval(repr(schedule)),
    ):
        assert same == schedule and hash(same) == hash(schedule) and same.n_blocks == n


@given(st.lists(st.sampled_from([0.0, 0.25, 0.5]), min_size=1, max_size=5))
def test_halves_that_skip_alike_are_the_whole_block(values: list[float]) -> None:
    assert SparsitySchedule.of_halves(values, values) == SparsitySchedule(values)
    assert SparsitySchedule.of_halves(values, values).is_plain
    if any(values):
        assert SparsitySchedule.of_halves(values, values, True) != SparsitySchedule(values)


def test_a_schedule_of_halves_is_none_of_three_times_as_many_blocks() -> None:
    few = SparsitySchedule.of_halves([0.5, 0.0], [0.25, 0.25])
    many = SparsitySchedule(few.numbers)
    assert tuple(few) == tuple(many) and few != many
    # Its numbers, wherever they come from, are.
    assert few == few.numbers
    assert SparsitySchedule.of(many, n_blocks=2) is many


@pytest.mark.parametrize(
    ("parts", "words"),
    [
        (([0.5], [0.5, 0.2]), "1 sparsities for attention, 2 for MLPs"),
        (([0.5], [0.96]), "MLP sparsity 0.96 of block 0"),
        (([-0.1], [0.5]), "Attention sparsity -0.1 of block 0"),
        (([0.5], [0.5], [True, False]), "2 decisions about keys and values"),
    ],
)
def test_wrong_halves_are_refused(parts: tuple[Any, ...], words: str) -> None:
    with pytest.raises(ScheduleError, match=words):
        SparsitySchedule.of_halves(*parts)


def test_wrong_lists_of_halves_are_refused() -> None:
    with pytest.raises(ScheduleError, match="expected are attention, mlp and keeps_kv"):
        SparsitySchedule.from_json({"attention": [0.5], "mlp": [0.5]})
