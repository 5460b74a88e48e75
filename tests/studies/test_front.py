"""The front holds what no other trial beats; slow definitions are the reference."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from studies import closest_to_sparsity, front, hypervolume, hypervolume_history, knee, reference_point
from tests.studies.records import trial

# A coarse grid, so that ties and duplicates occur.
values = st.lists(st.none() | st.tuples(st.integers(0, 8), st.integers(0, 8)), max_size=25)


def beats(one: tuple[float, ...], other: tuple[float, ...]) -> bool:
    return all(a <= b for a, b in zip(one, other, strict=True)) and one != other


def slow_area(points: list[tuple[float, ...]], reference: tuple[float, ...]) -> int:
    """Unit squares of the grid that some point dominates."""
    cells = [(x, y) for x in range(int(reference[0])) for y in range(int(reference[1]))]
    return sum(any(p[0] <= x and p[1] <= y for p in points) for x, y in cells)


@given(values=values)
def test_front_is_what_no_other_trial_beats(values: list[tuple[int, int] | None]) -> None:
    trials = [trial(n, None if v is None else (float(v[0]), float(v[1]))) for n, v in enumerate(values)]
    finished = [t.values for t in trials if t.values is not None]
    expected = sorted({v for v in finished if not any(beats(other, v) for other in finished)})
    points = front(trials)
    assert [t.values for t in points] == expected
    for point in points:
        assert point.number == min(t.number for t in trials if t.values == point.values)


@given(values=values.filter(any))
def test_hypervolume_is_the_dominated_area_after_each_trial(values: list[tuple[int, int] | None]) -> None:
    trials = [trial(n, None if v is None else (float(v[0]), float(v[1]))) for n, v in enumerate(values)]
    finished = [t.values for t in trials if t.values is not None]
    reference = (10.0, 10.0)
    expected = [slow_area(finished[: n + 1], reference) for n in range(len(finished))]
    assert hypervolume_history(trials, reference) == pytest.approx(expected)
    assert hypervolume(trials, reference) == pytest.approx(expected[-1])


def test_trials_of_lower_fidelity_do_not_compare() -> None:
    assert front([trial(0, (1.0, 1.0)), trial(1, (0.0, 0.0), fidelity=0.5)])[0].number == 0


def test_the_reference_point_lies_beyond_every_trial() -> None:
    assert reference_point([trial(0, (1.0, 20.0)), trial(1, (3.0, 10.0)), trial(2, None)]) == pytest.approx((3.2, 21.0))
    with pytest.raises(ValueError, match="No trial has finished"):
        reference_point([trial(0, None)])


def test_the_knee_is_where_the_front_bends() -> None:
    points = front([trial(0, (0.0, 10.0)), trial(1, (0.1, 3.0)), trial(2, (0.5, 2.0)), trial(3, (2.0, 0.0))])
    assert knee(points).number == 1


def test_the_knee_of_short_and_bulging_fronts_is_the_point_closest_to_the_ideal() -> None:
    assert knee([trial(0, (1.0, 1.0))]).number == 0
    bulging = front([trial(0, (0.0, 10.0)), trial(1, (6.0, 9.0)), trial(2, (10.0, 0.0))])
    assert knee(bulging).number == 0
    with pytest.raises(ValueError, match="empty"):
        knee([])


def test_a_target_sparsity_picks_the_best_point_at_it_or_the_nearest() -> None:
    points = [trial(0, (0.0, 9.0), (0.3, 0.3)), trial(1, (0.2, 8.0), (0.3, 0.34)), trial(2, (0.5, 5.0), (0.6, 0.6))]
    assert closest_to_sparsity(points, 0.31).number == 0
    assert closest_to_sparsity(points, 0.5).number == 2
