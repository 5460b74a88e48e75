"""Curves over depth stand for schedules of many blocks, and lie inside the space at every target."""

from __future__ import annotations

import random
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from search.problem.cost_limit import CostLimit
from search.problem.curves import KNOTS, DepthCurves, curves_of
from search.problem.initial_design import EARLY_BLOCKS
from search.problem.space import ScheduleSpace

shares = st.floats(0, 1)
AT_COST = CostLimit("target_flops_saved", 0.3, lambda schedule: 40.0 - sum(schedule.numbers[:80]) / 2, 40.0)
SPACES = {
    "target": ScheduleSpace(40, 0.25),
    "open": ScheduleSpace(40),
    "dense blocks": ScheduleSpace(40, 0.25, dense_blocks=(0, 7, -1)),
    "halves at a cost": ScheduleSpace(40, limits=(AT_COST,), granularity="half", kv="keep", first=6),
}


@pytest.mark.parametrize("space", SPACES.values(), ids=SPACES)
@given(data=st.data())
def test_every_curve_is_a_schedule_of_the_space(space: ScheduleSpace, data: st.DataObject) -> None:
    curves = DepthCurves(space)
    numbers = data.draw(st.lists(shares, min_size=curves.n, max_size=curves.n))
    assert space.contains(curves.schedule(numbers, random.Random(0)))


def test_curves_are_straight_between_their_knots_and_spare_the_first_blocks() -> None:
    space = ScheduleSpace(32, step=0.01)
    found = space.schedule(DepthCurves(space).schedule(np.linspace(0, 1, KNOTS).tolist(), random.Random(0)))
    assert not any(found[:EARLY_BLOCKS])
    rises = [behind - before for before, behind in pairwise(found[2:])]
    assert all(rise == pytest.approx(space.top * space.step / 29, abs=space.step) for rise in rises)


@given(numbers=st.lists(st.floats(0.2, 0.8), min_size=2 * KNOTS, max_size=2 * KNOTS))
def test_numbers_of_a_curve_are_those_that_made_it(numbers: list[float]) -> None:
    space = ScheduleSpace(48, step=0.01, granularity="half", kv="keep")
    curves = DepthCurves(space)
    assert curves.n == 2 * KNOTS
    found = curves.numbers(curves.schedule(numbers, random.Random(0)))
    assert found == pytest.approx(numbers, abs=0.02)


def test_at_a_target_the_shape_counts_and_not_the_height() -> None:
    curves, low = DepthCurves(SPACES["target"]), [0.4 * place / KNOTS for place in range(KNOTS)]
    high = [2 * number for number in low]
    assert curves.schedule(low, random.Random(0)) == curves.schedule(high, random.Random(0))


def test_small_spaces_need_no_curves() -> None:
    assert curves_of(ScheduleSpace(12, 0.3)) is None
    assert curves_of(ScheduleSpace(12, granularity="half", kv="keep")) is None
    assert curves_of(SPACES["target"]) is not None
