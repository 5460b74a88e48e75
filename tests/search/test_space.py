"""The space holds schedules on the grid, and repairs what lies outside."""

from __future__ import annotations

import random

from hypothesis import given
from hypothesis import strategies as st

from search.space import ScheduleSpace

spaces = st.builds(
    ScheduleSpace,
    n_blocks=st.integers(1, 16),
    target_sparsity=st.none() | st.floats(0.0, 0.95),
)
anything = st.lists(st.floats(-30, 60), min_size=16, max_size=16)


def inside(space: ScheduleSpace, levels: tuple[int, ...]) -> bool:
    in_range = len(levels) == space.n_blocks and all(0 <= level <= 19 for level in levels)
    return in_range and (space.target_total is None or sum(levels) == space.target_total)


@given(space=spaces, raw=anything, seed=st.integers(0, 99))
def test_whatever_is_repaired_or_sampled_lies_inside(space: ScheduleSpace, raw: list[float], seed: int) -> None:
    rng = random.Random(seed)
    assert inside(space, space.repair(raw[: space.n_blocks], rng))
    assert inside(space, space.sample(rng))
    assert all(inside(space, levels) for levels in space.anchors())


@given(space=spaces, seed=st.integers(0, 99))
def test_what_lies_inside_is_not_repaired(space: ScheduleSpace, seed: int) -> None:
    levels = space.sample(random.Random(seed))
    assert space.repair(levels, random.Random(seed)) == levels
    assert space.levels(space.schedule(levels)) == levels


@given(n_blocks=st.integers(1, 16), target=st.floats(0.0, 0.95))
def test_the_target_is_met_to_the_grid(n_blocks: int, target: float) -> None:
    space = ScheduleSpace(n_blocks, target)
    overall = space.schedule(space.sample(random.Random(0))).overall
    assert abs(overall - target) <= 0.5 * space.step / n_blocks + 1e-9


def test_samples_cover_low_and_high_overall_sparsities() -> None:
    rng, space = random.Random(0), ScheduleSpace(12)
    overall = [space.schedule(space.sample(rng)).overall for _ in range(400)]
    assert min(overall) < 0.05 and max(overall) > 0.6
