"""The space holds schedules on the grid, and repairs what lies outside."""

from __future__ import annotations

import math
import random
from typing import Any

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from ftp_core.schedule import SparsitySchedule
from search.errors import ConfigError
from search.problem.space import LatencyLimit, ScheduleSpace


def milliseconds(schedule: SparsitySchedule) -> float:
    """Blocks that cost less and less, and gathering that costs a little."""
    return sum(4.0 * (1 - s) / (1 + 0.2 * block) + (0.1 if s else 0.0) for block, s in enumerate(schedule))


@st.composite
def spaces(draw: st.DrawFn) -> ScheduleSpace:
    n_blocks = draw(st.integers(1, 16))
    dense = draw(st.sets(st.integers(0, n_blocks - 1), max_size=n_blocks - 1))
    most = 0.95 * (n_blocks - len(dense)) / n_blocks
    target = draw(st.none() | st.floats(0.0, most).map(lambda target: math.floor(target * 100) / 100))
    whole = milliseconds(SparsitySchedule.uniform(0.0, n_blocks))
    limit = draw(st.none() | st.floats(0.3, 1.1))
    try:
        return ScheduleSpace(
            n_blocks,
            target,
            dense_blocks=tuple(block - draw(st.sampled_from([0, n_blocks])) for block in sorted(dense)),
            latency_limit=None if limit is None else LatencyLimit(milliseconds, limit * whole),
        )
    except ConfigError:
        assume(False)
        raise


anything = st.lists(st.floats(-30, 60), min_size=16, max_size=16)


def inside(space: ScheduleSpace, indices: tuple[int, ...]) -> bool:
    dense = {block % space.n_blocks for block in space.dense_blocks}
    in_range = len(indices) == space.n_blocks and all(0 <= index <= 19 for index in indices)
    in_time = space.latency_limit is None or milliseconds(space.schedule(indices)) <= space.latency_limit.max_ms
    on_target = space.target_total is None or sum(indices) == space.target_total
    return in_range and in_time and on_target and all(indices[block] == 0 for block in dense)


@given(space=spaces(), raw=anything, seed=st.integers(0, 99))
def test_whatever_is_repaired_or_sampled_lies_inside(space: ScheduleSpace, raw: list[float], seed: int) -> None:
    rng = random.Random(seed)
    assert inside(space, space.repair(raw[: space.n_blocks], rng))
    assert inside(space, space.sample(rng))
    assert all(inside(space, indices) for indices in space.initial_design())


@given(space=spaces(), raw=st.lists(st.integers(-1, 20), min_size=16, max_size=16))
def test_what_a_space_contains_is_what_keeps_its_constraints(space: ScheduleSpace, raw: list[int]) -> None:
    indices = tuple(raw[: space.n_blocks])
    outside = any(not 0 <= index <= 19 for index in indices)
    assert space.contains(indices) is (not outside and inside(space, indices))
    assert all(space.contains(indices) for indices in space.initial_design())


@given(space=spaces(), raw=st.lists(st.integers(0, 19), min_size=16, max_size=16))
def test_constraints_are_broken_by_the_distance_from_the_target_and_the_share_of_time_above_the_limit(
    space: ScheduleSpace, raw: list[int]
) -> None:
    indices = tuple(raw[: space.n_blocks])
    off = 0.0 if space.target_total is None else abs(sum(indices) - space.target_total) / (20 * space.n_blocks)
    limit, ms = space.latency_limit, milliseconds(space.schedule(indices))
    late = 0.0 if limit is None or ms <= limit.max_ms else (ms - limit.max_ms) / limit.max_ms
    assert space.constraint_violation(indices) == pytest.approx(off + late)


@given(space=spaces())
def test_in_an_ablation_one_block_alone_skips_all_that_it_may(space: ScheduleSpace) -> None:
    ablations = space.ablations()
    assert all(sorted(indices) == [0] * (space.n_blocks - 1) + [19] for indices in ablations)
    assert [indices.index(19) for indices in ablations] == list(reversed(space.free_blocks))


@given(space=spaces(), most=st.integers(1, 40))
def test_blocks_that_are_too_many_are_ablated_with_their_neighbours(space: ScheduleSpace, most: int) -> None:
    groups = [space.ablated(indices) for indices in space.ablations(most)]
    assert len(groups) == min(most, len(space.free_blocks))
    # Each free block is in one of them, in order, and none is larger than another by more than one.
    assert [block for group in reversed(groups) for block in group] == list(space.free_blocks) or len(groups) == 1
    assert max(map(len, groups)) - min(map(len, groups)) <= 1


@given(space=spaces(), seed=st.integers(0, 99))
def test_what_is_no_ablation_ablates_nothing(space: ScheduleSpace, seed: int) -> None:
    indices = random.Random(seed).choices((0, 0, space.top, 3), k=space.n_blocks)
    skipping = [block for block in space.free_blocks if indices[block]]
    apart = [space.free_blocks.index(block) for block in skipping]
    neighbours = bool(apart) and apart == list(range(apart[0], apart[-1] + 1))
    is_one = all(indices[block] == space.top for block in skipping) and neighbours
    is_one = is_one and (len(skipping) < len(space.free_blocks) or len(skipping) == 1)
    inside = [index if block in space.free_blocks else 0 for block, index in enumerate(indices)]
    assert space.ablated(inside) == (tuple(skipping) if is_one else ())


def test_where_blocks_may_skip_nothing_none_is_ablated() -> None:
    assert ScheduleSpace(4, max_sparsity=0.0).ablations() == ScheduleSpace(1, dense_blocks=(0,)).ablations() == []


@given(space=spaces(), seed=st.integers(0, 99))
def test_what_lies_inside_is_not_repaired(space: ScheduleSpace, seed: int) -> None:
    indices = space.sample(random.Random(seed))
    assert space.repair(indices, random.Random(seed)) == indices
    assert space.grid_indices(space.schedule(indices)) == indices


@given(n_blocks=st.integers(1, 16), target=st.floats(0.0, 0.95))
def test_the_target_is_met_to_the_grid(n_blocks: int, target: float) -> None:
    space = ScheduleSpace(n_blocks, target)
    overall = space.schedule(space.sample(random.Random(0))).overall
    assert abs(overall - target) <= 0.5 * space.step / n_blocks + 1e-9


def test_samples_cover_low_and_high_overall_sparsities() -> None:
    rng, space = random.Random(0), ScheduleSpace(12)
    overall = [space.schedule(space.sample(rng)).overall for _ in range(400)]
    assert min(overall) < 0.05 and max(overall) > 0.6


def test_a_grid_ends_below_the_highest_sparsity() -> None:
    assert ScheduleSpace(4, step=0.25, max_sparsity=0.75).top == 3
    assert ScheduleSpace(4, step=0.25).top == 3
    assert ScheduleSpace(4).top == 19


def test_repairing_for_latency_skips_more_and_keeps_what_was_skipped() -> None:
    space = ScheduleSpace(6, latency_limit=LatencyLimit(milliseconds, 8.0))
    asked = (3, 0, 0, 0, 5, 0)
    repaired = space.repair(asked, random.Random(0))
    assert milliseconds(space.schedule(repaired)) <= 8.0
    assert all(after >= before for after, before in zip(repaired, asked, strict=True))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dense_blocks": (0, 6)}, "Dense block 6 is none of the model's 6: expected -6 to 5"),
        ({"target_sparsity": 0.6, "dense_blocks": (0, 1, 2)}, "0.6 cannot be reached: with 3 of 6.* at most 0.4[78]"),
        (
            {"latency_limit": LatencyLimit(milliseconds, 1.0)},
            "No schedule takes at most 1 ms: .* 1.[0-9] ms",
        ),
        (
            {"target_sparsity": 0.1, "latency_limit": LatencyLimit(milliseconds, 10.0)},
            "No schedule takes at most 10 ms",
        ),
    ],
)
def test_constraints_that_no_schedule_keeps_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        ScheduleSpace(6, **options)
