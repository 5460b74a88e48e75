"""The front holds the non-dominated trials; slow definitions are the reference."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence

import moocore
import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from studies import best_point, front, hypervolume, knee
from studies.pareto import (
    FrontVolume,
    ParetoArchive,
    closest_to_sparsity,
    dominations,
    front_growth,
    front_volume,
    reference_point,
)
from studies.records.target import TARGETS, Target, TargetKind
from tests.studies.records import history, trial

# A coarse grid, so that ties and duplicates occur.
OBJECTIVES = ("kl", "latency_ms")
values = st.lists(st.none() | st.tuples(st.integers(0, 8), st.integers(0, 8)), max_size=25)


def dominates(one: tuple[float, ...], other: tuple[float, ...]) -> bool:
    return all(a <= b for a, b in zip(one, other, strict=True)) and one != other


def slow_area(points: list[tuple[float, ...]], reference: tuple[float, ...]) -> int:
    """Unit squares of the grid that some point dominates."""
    cells = [(x, y) for x in range(int(reference[0])) for y in range(int(reference[1]))]
    return sum(any(p[0] <= x and p[1] <= y for p in points) for x, y in cells)


@given(values=values)
def test_front_is_what_no_other_trial_beats(values: list[tuple[int, int] | None]) -> None:
    trials = [trial(n, None if v is None else (float(v[0]), float(v[1]))) for n, v in enumerate(values)]
    finished = [t.values for t in trials if t.values is not None]
    expected = sorted({v for v in finished if not any(dominates(other, v) for other in finished)})
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
    assert history(FrontVolume(reference, of_log_kl=False), trials) == pytest.approx(expected)
    assert hypervolume(trials, reference) == pytest.approx(expected[-1])


def test_trials_of_lower_fidelity_do_not_compare() -> None:
    assert front([trial(0, (1.0, 1.0)), trial(1, (0.0, 0.0), fidelity=0.5)])[0].number == 0


def test_the_reference_point_lies_beyond_every_trial() -> None:
    assert reference_point([(1.0, 20.0), (3.0, 10.0)]) == pytest.approx((3.2, 21.0))
    with pytest.raises(ValueError, match="No trial has finished"):
        reference_point([])


def test_the_knee_is_where_the_front_bends() -> None:
    points = front([trial(0, (0.0, 10.0)), trial(1, (0.1, 3.0)), trial(2, (0.5, 2.0)), trial(3, (2.0, 0.0))])
    assert knee(points).number == 1


# Fronts that searches of the demo model found: KL, and milliseconds, GFLOPs or MiB.
FOUND = {
    "ms, 300 trials": [
        *((0.0, 104.9), (0.008, 101.2), (0.030, 100.0), (0.193, 95.0), (0.218, 80.5), (0.225, 77.8), (0.261, 70.1)),
        *((0.331, 66.9), (0.727, 49.8), (0.944, 36.9), (1.792, 36.7), (1.956, 30.3), (2.380, 23.4), (2.621, 16.6)),
    ],
    "ms, a better one": [
        *((0.0, 87.6), (0.0001, 77.7), (0.027, 70.0), (0.037, 60.1), (0.096, 57.5), (0.127, 53.5), (0.219, 44.5)),
        *((0.252, 38.1), (0.271, 36.3), (0.454, 36.2), (0.704, 34.3), (1.629, 29.3), (2.245, 26.5), (2.537, 21.7)),
    ],
    "GFLOPs, 40 trials": [
        *((0.0, 3.62), (0.240, 3.06), (0.264, 2.75), (0.827, 2.63), (0.862, 2.33), (1.193, 2.17), (1.236, 1.56)),
        *((1.664, 1.08), (1.99, 1.02), (2.039, 0.667)),
    ],
    "MiB, 40 trials": [
        *((0.0, 6.75), (0.054, 5.55), (0.264, 5.41), (0.827, 5.18), (0.862, 4.73), (1.163, 2.98), (1.660, 2.29)),
        *((1.794, 1.87), (2.039, 1.58), (2.659, 1.42)),
    ],
}


def knee_of(points: Sequence[tuple[float, float]]) -> tuple[float, ...] | None:
    return knee(front([trial(n, values) for n, values in enumerate(points)])).values


@pytest.mark.parametrize(
    ("found", "expected"),
    list(zip(FOUND.values(), [(0.261, 70.1), (0.037, 60.1), (0.264, 2.75), (0.054, 5.55)], strict=True)),
    ids=list(FOUND),
)
def test_the_knee_is_a_model_that_one_would_run(
    found: list[tuple[float, float]], expected: tuple[float, float]
) -> None:
    assert knee_of(found) == expected


def test_differences_that_weigh_nothing_do_not_decide_where_there_are_no_others() -> None:
    # As found on the demo model: all that count are as good as dense, and one of them takes a quarter less.
    assert knee_of([(0.0, 192.0), (6e-6, 187.5), (7.4e-4, 150.2), (1.4, 96.4)]) == (7.4e-4, 150.2)
    # The dense model, a schedule of 3.8 %, and those that are worth something.
    near = [(0.0, 10.0), (1e-5, 9.9), (0.004, 6.9), (0.006, 5.3)]
    assert knee_of(near) == (0.006, 5.3)


@given(
    kls=st.lists(st.floats(0.0, 0.002), min_size=3, max_size=8),
    costs=st.lists(st.floats(1, 100), min_size=8, max_size=8),
)
def test_of_models_that_are_hardly_told_apart_from_the_dense_one_a_cheap_one_is_taken(
    kls: list[float], costs: list[float]
) -> None:
    shown = front([trial(n, values) for n, values in enumerate(zip(kls, costs, strict=False))])
    assume(len(shown) > 2)
    all_of = [(point.values or ())[1] for point in shown]
    # A KL of 0.002 is a seventh of the scale: nothing that is dearer by more than that is taken.
    assert (knee(shown).values or ())[1] <= min(all_of) + 0.14 * (max(all_of) - min(all_of)) + 1e-9


@pytest.mark.parametrize("unit", [1e9, 2.0**-20])
def test_the_knee_does_not_depend_on_the_unit_of_the_cost(unit: float) -> None:
    for found in FOUND.values():
        in_unit = knee_of([(kl, unit * cost) for kl, cost in found])
        assert in_unit == pytest.approx((knee_of(found)[0], unit * knee_of(found)[1]))  # type: ignore[index]


def below_the_line(points: Sequence[tuple[float, ...]]) -> list[float]:
    """How far points lie below the line between the first and the last one, on the scale of log(KL + 0.02)."""
    scaled = [(math.log(kl + 0.02), cost) for kl, cost in points]
    (x0, y0), (x1, y1) = scaled[0], scaled[-1]
    return [(y0 + (y1 - y0) * (x - x0) / (x1 - x0) - y) / (y0 - y1) for x, y in scaled]


some = st.lists(st.tuples(st.integers(0, 10), st.integers(1, 99)), min_size=1, max_size=12)


@given(points=some)
def test_the_knee_is_furthest_below_the_line_on_the_scale_of_log_kl(points: list[tuple[int, int]]) -> None:
    shown = front([trial(n, (kl / 10, float(cost))) for n, (kl, cost) in enumerate(points)])
    assume(len(shown) > 2)
    below = below_the_line([point.values for point in shown if point.values])
    if max(below) > 1e-9:
        assert below[shown.index(knee(shown))] == pytest.approx(max(below), abs=1e-9)


@given(points=some, ruined=st.lists(st.tuples(st.integers(11, 80), st.integers(-99, 0)), max_size=5))
def test_what_lies_beyond_a_kl_of_1_does_not_move_the_knee(
    points: list[tuple[int, int]], ruined: list[tuple[int, int]]
) -> None:
    usable, whole = ([(kl / 10, float(cost)) for kl, cost in all_of] for all_of in (points, [*points, *ruined]))
    assume(len(front([trial(n, values) for n, values in enumerate(usable)])) >= 3)
    assert knee_of(usable) == knee_of(whole)


def test_of_two_points_the_knee_is_the_cheaper_one_if_that_saves_much_of_what_the_whole_front_does() -> None:
    assert knee_of([(0.0, 10.0), (0.1, 4.0), (2.0, 2.0)]) == (0.1, 4.0)
    assert knee_of([(0.0, 10.0), (0.6, 9.0), (2.0, 2.0)]) == (0.0, 10.0)


def test_a_front_of_ruined_models_has_a_knee_too() -> None:
    assert knee_of([(1.5, 10.0), (1.6, 4.0), (3.0, 2.0)]) == (1.6, 4.0)


@pytest.mark.parametrize("none", [0.0, -1e-9, 1e-12])
def test_a_kl_of_zero_has_its_place_on_the_scale_of_the_knee(none: float) -> None:
    assert knee_of([(none, 9.0), (0.1, 2.0), (0.9, 1.0)]) == (0.1, 2.0)
    assert knee_of([(none, 4.0)]) == (none, 4.0)


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
    assert best_point(points, Target("target_sparsity", 0.5)).number == 2
    # What is on a front keeps the limit that a cost is.
    assert best_point(points[::-1], Target("target_speedup", 1.3)).number == 0


@pytest.mark.parametrize("kind", TARGETS)
def test_the_target_of_a_study_is_the_one_that_its_configuration_gives(kind: TargetKind) -> None:
    config: dict[str, float | None] = dict.fromkeys(TARGETS)
    assert Target.of(config) is Target.of({}) is None
    found = Target.of(config | {kind: 0.5})
    assert found == Target(kind, 0.5) and found.sparsity == (0.5 if kind == "target_sparsity" else None)


def test_the_hypervolume_of_a_study_is_the_area_on_the_logarithm_of_kl_below_one_nat_and_dense_cost() -> None:
    trials = [trial(0, (0.03, 8.0)), trial(1, (0.3, 4.0)), trial(2, (5.0, 1.0)), trial(3, (0.02, 12.0))]
    top, low, high = math.log(1.02), math.log(0.05), math.log(0.32)
    expected = (top - high) * (10.0 - 4.0) + (high - low) * (10.0 - 8.0)
    measured = front_volume(OBJECTIVES, trials, 10.0)
    assert measured is not None and measured.of(trials) == pytest.approx(expected) == history(measured, trials)[-1]
    assert measured.reference == (1.0, 10.0)


def test_the_hypervolume_of_ruined_models_is_nothing() -> None:
    ruined = [trial(0, (1.5, 4.0))]
    measured = front_volume(OBJECTIVES, ruined, 10.0)
    assert measured is not None and measured.of(ruined) == 0.0 and history(measured, ruined) == [0.0]
    assert front_volume(OBJECTIVES, [trial(0, None)], 10.0) is None


def test_hypervolume_grows_with_a_better_model_at_a_small_kl() -> None:
    before = [trial(0, (0.09, 6.0)), trial(1, (8.0, 1.0))]
    measured = front_volume(OBJECTIVES, before, 10.0)
    assert measured is not None
    grown = front_growth(measured.of(before), measured.of([*before, trial(2, (0.06, 6.0))]))
    assert grown is not None and grown > 0.1 and front_growth(0.0, 1.0) is None


def test_where_the_dense_cost_is_not_known_the_dense_trial_tells_it_or_else_the_corner() -> None:
    some = [trial(0, (0.1, 4.0), (0.5, 0.5)), trial(1, (0.5, 3.0), (0.6, 0.6))]
    with_dense = [*some, trial(2, (0.0, 8.0), (0.0, 0.0))]
    found = [front_volume(OBJECTIVES, trials) for trials in (some, with_dense)]
    assert [one and one.reference for one in found] == [(1.0, pytest.approx(4.1)), (1.0, 8.0)]


def test_other_objectives_are_measured_as_they_are() -> None:
    trials = [trial(0, (1.0, 2.0)), trial(1, (3.0, 1.0))]
    measured = front_volume(("loss", "size"), trials)
    assert measured is not None and measured.reference == reference_point([one.values for one in trials])
    assert measured.of(trials) == pytest.approx(hypervolume(trials, measured.reference))


archived = st.lists(st.tuples(st.floats(0, 10), st.floats(0, 10)), min_size=1, max_size=25)


@given(archived)
def test_the_archive_is_the_front_and_its_gains_are_those_of_hypervolume(values: list[tuple[float, float]]) -> None:
    archive, before = ParetoArchive(), np.empty((0, 2))
    for number, point in enumerate(values):
        gain = archive.add(point)
        after = np.unique(np.array(values[: number + 1]), axis=0)
        front = after[moocore.is_nondominated(after)]
        assert len(archive) == len(front) and all(archive.holds(tuple(one)) for one in front)
        assert 0.0 <= gain <= 1.0
        if number and not archive.holds(point):
            assert gain == 0.0
        elif number and not any(tuple(one) == point for one in before):
            both = np.concatenate([before, [point]])
            span = both.max(0) - both.min(0)
            corner = both.max(0) + 0.1 * np.where(span > 0, span, 1.0)
            whole = moocore.hypervolume(front, ref=corner)
            expected = (whole - moocore.hypervolume(before, ref=corner)) / whole
            assert gain == pytest.approx(expected, abs=1e-9)
        before = front


def test_the_first_point_is_worth_everything_and_a_copy_nothing() -> None:
    archive = ParetoArchive()
    assert archive.add((1.0, 2.0)) == 1.0
    assert archive.add((1.0, 2.0)) == 0.0
    assert archive.add((random.random() + 2, 3.0)) == 0.0


@given(archived)
def test_dominations_are_those_of_the_definition(values: list[tuple[float, float]]) -> None:
    assert dominations(values).tolist() == [[dominates(one, other) for other in values] for one in values]
