"""What a search of some length ablates is what its trials suffice for, and what it leaves out is said."""

from __future__ import annotations

import re

from hypothesis import given
from hypothesis import strategies as st

from search.engine.ablations import plan_ablations
from search.problem.space import ScheduleSpace


@given(st.integers(1, 40), st.sampled_from([None, 0.3]), st.integers(1, 120))
def test_ablations_leave_trials_for_what_follows_from_them(n_blocks: int, target: float | None, trials: int) -> None:
    space = ScheduleSpace(n_blocks, target)
    schedules, plan = plan_ablations(space, trials, "portfolio")
    assert plan.schedules == len(schedules)
    assert not schedules or len(space.initial_design()) + len(schedules) < trials
    each = len(schedules) == n_blocks
    assert each == (plan.left_out == "") == (trials >= plan.trials_for_each)
    if not each:
        # The number that is named is true, and the least that is.
        [named] = re.findall(r"From --trials (\d+) on", plan.left_out)
        assert plan_ablations(space, int(named), "portfolio")[1].left_out == ""
        assert plan_ablations(space, int(named) - 1, "portfolio")[1].left_out != ""
        assert f"{trials} trials are too few to ablate each of {n_blocks} blocks" in plan.left_out


def test_where_nobody_learns_from_ablations_none_is_made_and_none_left_out() -> None:
    schedules, plan = plan_ablations(ScheduleSpace(12), 10, "deap,tpe")
    assert schedules == [] and plan.left_out == ""


def test_blocks_that_may_not_skip_are_not_ablated() -> None:
    schedules, _ = plan_ablations(ScheduleSpace(12, dense_blocks=(0, -1)), 200, "additive")
    assert len(schedules) == 10 and not any(indices[0] or indices[-1] for indices in schedules)
