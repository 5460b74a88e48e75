"""Grids of sparsities, and their inverse."""

from __future__ import annotations

import random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from search.errors import ConfigError
from search.problem.grid import Grid
from search.problem.space import ScheduleSpace

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


@given(seed=st.integers(0, 99), granularity=st.sampled_from(["block", "half"]))
def test_genes_skip_nothing_or_at_least_the_first_sparsity(seed: int, granularity: str) -> None:
    space = ScheduleSpace(6, first=6, granularity=granularity, kv="keep")  # type: ignore[arg-type]
    indices = space.sample(random.Random(seed))
    schedule = space.schedule(indices)
    assert space.grid_indices(schedule.numbers) == indices
    assert all(
        not share or 0.3 - 1e-9 <= share <= 0.95 + 1e-9 for one in schedule.blocks for share in (one.attention, one.mlp)
    )
    # The highest one is still the highest.
    assert space.grid.sparsity(space.top) == pytest.approx(space.max_sparsity)


def test_overall_sparsity_is_moved_in_single_steps() -> None:
    with pytest.raises(ConfigError, match="one step where overall sparsity is the target"):
        ScheduleSpace(6, 0.3, first=6, granularity="half", kv="keep")
