"""What a search of some length ablates is what its trials suffice for, and what it leaves out is said."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from search.engine.ablations import plan_ablations, plan_design
from search.problem.fidelities import ablation_fidelity, evaluations_of
from search.problem.initial_design import initial_design
from search.problem.space import ScheduleSpace


@given(st.integers(1, 40), st.sampled_from([None, 0.3]), st.integers(1, 120), st.sampled_from([0.25, 0.5, 1.0]))
def test_ablations_take_a_third_of_a_search_at_most(
    n_blocks: int, target: float | None, trials: int, fidelity: float
) -> None:
    space = ScheduleSpace(n_blocks, target)
    schedules, plan = plan_ablations(space, trials, "portfolio", fidelity)
    assert plan.schedules == len(schedules) and plan.fidelity == fidelity
    assert plan.evaluations == pytest.approx(sum(evaluations_of(one, fidelity) for one in schedules))
    assert plan.evaluations <= trials / 3 + 1e-9
    each = len(schedules) == n_blocks
    assert each == (plan.left_out == "") == (trials >= plan.trials_for_each)
    if not each:
        # The number that is named is true, and the least that is.
        [named] = re.findall(r"From --trials (\d+) on", plan.left_out)
        assert plan_ablations(space, int(named), "portfolio", fidelity)[1].left_out == ""
        assert plan_ablations(space, int(named) - 1, "portfolio", fidelity)[1].left_out != ""
        assert f"{trials} trials are too few to ablate each of {n_blocks} blocks" in plan.left_out


def test_at_a_quarter_of_the_items_30_blocks_take_4_evaluations_and_160_are_ablated_in_60() -> None:
    schedules, plan = plan_ablations(ScheduleSpace(30, 0.25), 60, "portfolio", 0.25)
    assert len(schedules) == 30 and plan.evaluations == pytest.approx(0.25 * 31 / 2)
    assert len(plan_ablations(ScheduleSpace(158, 0.25), 60, "portfolio", 0.25)[0]) == 158


def test_what_is_left_out_is_called_what_it_is() -> None:
    for granularity, ablated in (("block", "12 blocks"), ("half", "24 halves of blocks")):
        _, plan = plan_ablations(ScheduleSpace(12, granularity=granularity), 12, "portfolio")
        assert f"each of {ablated} by itself" in plan.left_out


def test_the_initial_design_takes_a_fifth_of_a_search_beyond_the_shortened_prompt() -> None:
    space = ScheduleSpace(30, 0.25)
    assert plan_design(space, 10) == initial_design(space)[:3]
    assert plan_design(space, 60) == initial_design(space)


def test_ablations_are_evaluated_on_a_quarter_of_the_items_unless_these_are_few() -> None:
    assert ablation_fidelity(32, (1.0,)) == 0.25 and ablation_fidelity(16, (1.0,)) == 0.5
    assert ablation_fidelity(8, (1.0,)) == ablation_fidelity(3, (1.0,)) == 1.0
    assert ablation_fidelity(32, (0.125, 1.0)) == 0.125


def test_where_nobody_learns_from_ablations_none_is_made_and_none_left_out() -> None:
    schedules, plan = plan_ablations(ScheduleSpace(12), 10, "deap,tpe")
    assert schedules == [] and plan.left_out == "" and plan.evaluations == 0


def test_blocks_that_may_not_skip_are_not_ablated() -> None:
    schedules, _ = plan_ablations(ScheduleSpace(12, dense_blocks=(0, -1)), 200, "additive")
    assert len(schedules) == 10 and not any(indices[0] or indices[-1] for indices in schedules)
