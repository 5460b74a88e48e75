"""A search begins with the shortened prompt and what depth suggests; ablations say what single blocks harm."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ftp_core.schedule import SparsitySchedule
from search.problem.cost_limit import CostLimit
from search.problem.genes import Granularity
from search.problem.initial_design import ablated, ablations, initial_design, uniform_design
from search.problem.space import ScheduleSpace
from tests.search.deep_objective import DeepObjective
from tests.search.problem.test_space import inside, spaces

LEVEL = 12


@given(space=spaces())
def test_every_schedule_of_the_design_is_inside_and_there_once_the_uniform_ones_first(space: ScheduleSpace) -> None:
    design, uniform = initial_design(space), uniform_design(space)
    assert all(inside(space, indices) for indices in design) and len(set(design)) == len(design)
    assert design[: len(uniform)] == uniform and 1 <= len(design) <= 18


def test_the_design_spares_the_first_blocks_and_skips_most_in_the_last_ones() -> None:
    for target in (0.25, 0.4):
        first, *others = initial_design(ScheduleSpace(30, target))
        assert first == (round(target * 20),) * 30 and 7 <= len(others) <= 11
        assert all(one[0] == one[1] == 0 for one in others)
        # They ascend, and reach the target with plateaus from the middle on, the later the higher.
        assert all(list(one) == sorted(one) for one in others)
        starts = {sum(index == 0 for index in one): max(one) for one in others}
        assert {15, 12, 3} <= set(starts) and starts[15] > starts[12] > starts[3]


@pytest.mark.parametrize("target", [0.25, 0.4, 0.7])
@pytest.mark.parametrize("granularity", ["block", "half"])
def test_where_keys_are_kept_the_design_is_better_than_the_shortened_prompt_and_ruins_nothing(
    target: float, granularity: Granularity
) -> None:
    def flops(schedule: SparsitySchedule) -> float:
        return sum(1 - 0.2 * block.attention - 0.75 * block.mlp for block in schedule.blocks)

    limits = (CostLimit("target_flops_saved", target, flops, 30.0),)
    space, truth = ScheduleSpace(30, limits=limits, granularity=granularity, kv="keep"), DeepObjective(30)
    first, *others = [truth(space.schedule(indices)) for indices in initial_design(space)]
    shortened, even = truth([target] * 30), space.even_at_target
    assert even is not None and truth(space.schedule(even)) > 5 * max([first, *others])
    assert target > 0.5 or (first < 0.75 * shortened and sorted([first, *others])[2] < 0.9 * shortened)


@pytest.mark.parametrize("granularity", ["block", "half"])
@pytest.mark.parametrize("target", [0.15, 0.25, 0.33])
def test_at_a_target_of_cost_no_token_comes_back(target: float, granularity: Granularity) -> None:
    def flops(schedule: SparsitySchedule) -> float:
        return sum(1 - 0.2 * block.attention - 0.75 * block.mlp for block in schedule.blocks)

    limits = (CostLimit("target_flops_saved", target, flops, 30.0),)
    space = ScheduleSpace(30, limits=limits, granularity=granularity, kv="keep")
    for schedule in map(space.schedule, initial_design(space)):
        assert list(schedule.attention) == sorted(schedule.attention) and list(schedule.mlp) == sorted(schedule.mlp)
        # And nothing is skipped for nothing.
        assert target <= 1 - flops(schedule) / 30 + 1e-9 < target + 0.002


def test_without_a_target_the_design_spreads_over_costs() -> None:
    design = initial_design(ScheduleSpace(30))
    overall = sorted(sum(one) / 600 for one in design if len(set(one)) > 1)
    assert len(overall) >= 5 and overall[0] <= 0.2 and overall[-1] >= 0.35


@given(space=spaces())
def test_in_an_ablation_one_gene_alone_skips(space: ScheduleSpace) -> None:
    planned = ablations(space)
    assert all(sorted(indices) == [0] * (space.n_genes - 1) + [LEVEL] for indices in planned)
    assert [indices.index(LEVEL) for indices in planned] == list(reversed(space.free_genes))


@given(space=spaces(), most=st.integers(1, 40))
def test_blocks_that_are_too_many_are_ablated_with_their_neighbours(space: ScheduleSpace, most: int) -> None:
    groups = [ablated(space, indices) for indices in ablations(space, most)]
    assert len(groups) == min(most, len(space.free_genes))
    # Each free block is in one of them, in order, and none is larger than another by more than one.
    assert [block for group in reversed(groups) for block in group] == list(space.free_genes) or len(groups) == 1
    assert max(map(len, groups)) - min(map(len, groups)) <= 1


@given(space=spaces(), seed=st.integers(0, 99))
def test_what_is_no_ablation_ablates_nothing(space: ScheduleSpace, seed: int) -> None:
    indices = random.Random(seed).choices((0, 0, LEVEL, 3), k=space.n_genes)
    skipping = [block for block in space.free_genes if indices[block]]
    apart = [space.free_genes.index(block) for block in skipping]
    neighbours = bool(apart) and apart == list(range(apart[0], apart[-1] + 1))
    is_one = len({indices[block] for block in skipping}) == 1 and neighbours
    is_one = is_one and (len(skipping) < len(space.free_genes) or len(skipping) == 1)
    inside = [index if block in space.free_genes else 0 for block, index in enumerate(indices)]
    assert ablated(space, inside) == (tuple(skipping) if is_one else ())


def test_where_blocks_may_skip_nothing_none_is_ablated() -> None:
    assert ablations(ScheduleSpace(4, max_sparsity=0.0)) == ablations(ScheduleSpace(1, dense_blocks=(0,))) == []
