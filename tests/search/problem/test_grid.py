"""Grids of sparsities, and their inverse."""

from __future__ import annotations

import random
from typing import get_args

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ftp_core.schedule import SparsitySchedule
from search.engine.portfolio import Portfolio
from search.engine.proposals import Proposals
from search.errors import ConfigError
from search.problem.cost_limit import CostLimit
from search.problem.genes import Granularity
from search.problem.grid import Grid
from search.problem.space import ScheduleSpace
from search.proposers.catalogue import make_proposers
from studies import Trial, TrialState

grids = st.builds(Grid, st.sampled_from([0.05, 0.1, 0.25]), st.integers(1, 4))


@given(grid=grids, index=st.integers(0, 12))
def test_sparsities_have_the_indices_that_they_are_of(grid: Grid, index: int) -> None:
    assert grid.index(grid.sparsity(index)) == index
    assert grid.sparsities(np.array([float(index)])) == [grid.sparsity(index)]
    assert grid.sparsity(index) == 0 or grid.sparsity(index) >= grid.first * grid.step


@given(grid=grids, sparsity=st.floats(0.0, 0.95))
def test_any_sparsity_has_the_nearest_index(grid: Grid, sparsity: float) -> None:
    known = [grid.sparsity(index) for index in range(40)]
    nearest = min(abs(one - sparsity) for one in known)
    assert abs(grid.sparsity(grid.index(sparsity)) - sparsity) <= nearest + 1e-9


@given(seed=st.integers(0, 99), granularity=st.sampled_from(get_args(Granularity)))
def test_genes_skip_nothing_or_at_least_the_first_sparsity(seed: int, granularity: Granularity) -> None:
    space = ScheduleSpace(6, first=6, granularity=granularity, kv="keep")
    indices = space.sample(random.Random(seed))
    schedule = space.schedule(indices)
    assert space.grid_indices(schedule.numbers) == indices
    assert all(
        not share or 0.3 - 1e-9 <= share <= 0.95 + 1e-9 for one in schedule.blocks for share in (one.attention, one.mlp)
    )
    # The highest one is still the highest.
    assert space.grid.sparsity(space.top) == pytest.approx(space.max_sparsity)


def test_schedules_below_the_least_sparsity_are_judged_by_their_own_costs() -> None:
    kept = CostLimit("target_flops_saved", 0.2, lambda schedule: 1 - schedule.overall, 1.0)
    space = ScheduleSpace(6, first=6, granularity="half", kv="keep", limits=(kept,))
    own = SparsitySchedule.of_halves([0.3] * 6, [0.35] * 6, True)
    below = SparsitySchedule.of_halves([0.175] * 6, [0.2] * 6, True)
    assert space.expresses(own) and space.expresses(own.numbers) and space.violation_of(own) == 0
    # The nearest grid point would save 30 % and keep the limit.
    assert not space.expresses(below) and space.constraint_violation(space.grid_indices(below)) == 0
    assert space.violation_of(below) == pytest.approx((1 - 0.1875) / 0.8 - 1)
    assert ScheduleSpace(6, 0.2, granularity="half", kv="keep").expresses(below)


def test_proposers_are_told_of_no_schedule_that_would_be_taken_for_another() -> None:
    space = ScheduleSpace(6, first=6, granularity="half", kv="keep")
    portfolio = Portfolio(make_proposers("additive", space, 0), 0)
    told: list[Trial] = []
    portfolio.learn = told.append  # type: ignore[method-assign]
    proposals = Proposals(space, portfolio, 0, [], [], [])
    for number, share in enumerate((0.25, 0.6)):
        schedule = SparsitySchedule.of_halves([0.0] * 6, [share] * 6, True)
        proposals.learn(Trial(number, schedule, "", state=TrialState.FINISHED, values=(0.1, 1.0)))
    assert [trial.number for trial in told] == [1]


def test_overall_sparsity_is_moved_in_single_steps() -> None:
    with pytest.raises(ConfigError, match="one step where overall sparsity is the target"):
        ScheduleSpace(6, 0.3, first=6, granularity="half", kv="keep")
