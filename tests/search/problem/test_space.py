"""The space holds schedules on the grid, and repairs what lies outside."""

from __future__ import annotations

import math
import random
import time
from typing import Any

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from ftp_core.schedule import SparsitySchedule
from search.errors import ConfigError
from search.problem.cost_limit import CostLimit, LimitKind
from search.problem.gene_costs import GeneCosts
from search.problem.genes import Granularity
from search.problem.space import ScheduleSpace


def milliseconds(schedule: SparsitySchedule) -> float:
    """Blocks that cost less and less, MLPs three quarters of them, and gathering that costs a little."""
    return sum(
        share * 4.0 * (1 - s) / (1 + 0.2 * place) + (0.1 * share if s else 0.0)
        for place, block in enumerate(schedule.blocks)
        for share, s in ((0.25, block.attention), (0.75, block.mlp))
    )


def taken_apart(schedule: SparsitySchedule) -> float:
    """Tokens are taken apart once for each share, and those that skip both halves pass no norms: a sum over blocks."""
    return sum(
        4.0 * (0.2 * (1 - one.attention) + 0.6 * (1 - one.mlp) + 0.2 * (1 - min(one.attention, one.mlp)))
        + 0.5 * len({one.attention, one.mlp} - {0.0})
        for one in schedule.blocks
    )


def listened(schedule: SparsitySchedule) -> float:
    """The same with a router that listens to the block before one that skips: no sum over blocks."""
    kept = [1 - block.overall for block in schedule.blocks]
    heard = sum(0.3 * before for before, block in zip(kept, schedule.blocks[1:], strict=False) if not block.is_dense)
    return milliseconds(schedule) + heard


def limit(kind: LimitKind, asked: float, n_blocks: int, cost: Any = milliseconds) -> CostLimit:
    return CostLimit(kind, asked, cost, cost(SparsitySchedule.uniform(0.0, n_blocks)))


@st.composite
def limits(draw: st.DrawFn, n_blocks: int, has_target: bool) -> tuple[CostLimit, ...]:
    cost, share = (
        draw(st.sampled_from([milliseconds, taken_apart] if has_target else [milliseconds, taken_apart, listened])),
        draw(st.floats(0.3, 0.95)),
    )
    whole = cost(SparsitySchedule.uniform(0.0, n_blocks))
    asked: dict[LimitKind, float] = {
        "max_latency_ms": whole * draw(st.floats(0.3, 1.1)),
        "target_speedup": 1 / share,
        "target_flops_saved": 1 - share,
    }
    kind = draw(st.sampled_from(["target_speedup", "target_flops_saved"]))
    kinds: set[LimitKind] = draw(st.sets(st.sampled_from(["max_latency_ms", kind])))
    kinds |= {kind} if has_target else set()
    return tuple(limit(kind, asked[kind], n_blocks, cost) for kind in sorted(kinds))


@st.composite
def spaces(draw: st.DrawFn, has_cost_target: bool = False) -> ScheduleSpace:
    granularity: Granularity = draw(st.sampled_from(["block", "half"]))
    n_blocks = draw(st.integers(1, 16 if granularity == "block" else 8))
    dense = draw(st.sets(st.integers(0, n_blocks - 1), max_size=n_blocks - 1))
    most = 0.95 * (n_blocks - len(dense)) / n_blocks
    given = st.none() | st.floats(0.0, most).map(lambda target: math.floor(target * 100) / 100)
    try:
        return ScheduleSpace(
            n_blocks,
            None if has_cost_target else draw(given),
            dense_blocks=tuple(block - draw(st.sampled_from([0, n_blocks])) for block in sorted(dense)),
            limits=draw(limits(n_blocks, has_cost_target)),
            granularity=granularity,
            kv=draw(st.sampled_from(["drop", "keep"])),
        )
    except ConfigError:
        assume(False)
        raise


anything = st.lists(st.floats(-30, 60), min_size=16, max_size=16)


def inside(space: ScheduleSpace, indices: tuple[int, ...]) -> bool:
    dense = {block % space.n_blocks for block in space.dense_blocks}
    if len(indices) != space.n_genes or not all(0 <= index <= 19 for index in indices):
        return False
    schedule = space.schedule(indices)
    in_time = all(limit.cost(schedule) <= limit.most * (1 + 1e-9) for limit in space.limits)
    on_target = space.target_total is None or sum(indices) == space.target_total
    return in_time and on_target and all(schedule.blocks[block].is_dense for block in dense)


@given(space=spaces(), raw=anything, seed=st.integers(0, 99))
def test_whatever_is_repaired_or_sampled_lies_inside(space: ScheduleSpace, raw: list[float], seed: int) -> None:
    rng = random.Random(seed)
    assert inside(space, space.repair(raw[: space.n_genes], rng))
    assert inside(space, space.sample(rng))


@given(space=spaces(), raw=st.lists(st.integers(-1, 20), min_size=16, max_size=16))
def test_what_a_space_contains_is_what_keeps_its_constraints(space: ScheduleSpace, raw: list[int]) -> None:
    indices = tuple(raw[: space.n_genes])
    assert space.contains(indices) is inside(space, indices)


@given(space=spaces(), raw=st.lists(st.integers(0, 19), min_size=16, max_size=16))
def test_constraints_are_broken_by_the_distance_from_the_target_and_the_share_of_time_above_the_limit(
    space: ScheduleSpace, raw: list[int]
) -> None:
    indices = tuple(raw[: space.n_genes])
    off = 0.0 if space.target_total is None else abs(sum(indices) - space.target_total) / (20 * space.n_genes)
    costs = [(limit.cost(space.schedule(indices)), limit.most) for limit in space.limits]
    late = sum(max(0.0, cost / most - 1) for cost, most in costs)
    assert space.constraint_violation(indices) == pytest.approx(off + late, abs=1e-8)


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
    space = ScheduleSpace(6, limits=(limit("max_latency_ms", 8.0, 6),))
    asked = (3, 0, 0, 0, 5, 0)
    repaired = space.repair(asked, random.Random(0))
    assert milliseconds(space.schedule(repaired)) <= 8.0
    assert all(after >= before for after, before in zip(repaired, asked, strict=True))


@given(space=spaces(has_cost_target=True), raw=anything, seed=st.integers(0, 99))
def test_no_step_can_be_given_back_where_a_cost_is_the_target(
    space: ScheduleSpace, raw: list[float], seed: int
) -> None:
    repaired = space.repair(raw[: space.n_genes], random.Random(seed))
    for gene in (gene for gene, index in enumerate(repaired) if index):
        fewer = space.schedule((*repaired[:gene], repaired[gene] - 1, *repaired[gene + 1 :]))
        # To the rounding of sums.
        costs = [one.cost(fewer) for one in space.limits]
        assert any(cost > one.most * (1 - 1e-9) for cost, one in zip(costs, space.limits, strict=True))


@pytest.mark.parametrize("cost", [milliseconds, taken_apart, listened])
@pytest.mark.parametrize("granularity", ["block", "half"])
def test_proposals_for_a_speed_up_lie_close_to_it(cost: Any, granularity: Granularity) -> None:
    speedup = limit("target_speedup", 1.3, 30, cost)
    space, rng = ScheduleSpace(30, limits=(speedup,), granularity=granularity, kv="keep"), random.Random(0)
    found = [speedup.dense / cost(space.schedule(space.sample(rng))) for _ in range(30)]
    assert min(found) >= 1.3 * (1 - 1e-9)
    assert max(found) < (1.31)


@given(space=spaces())
def test_the_table_of_genes_adds_up_to_the_cost(space: ScheduleSpace) -> None:
    for limit, costs in zip(space.limits, space.costs, strict=True):
        assert isinstance(costs, GeneCosts) and (limit.cost is listened or costs.is_additive)
        indices = space.sample(random.Random(1))
        assert costs.of(indices) == pytest.approx(limit.cost(space.schedule(indices)))


@given(space=spaces())
def test_the_even_schedule_at_a_target_skips_no_more_than_it_needs(space: ScheduleSpace) -> None:
    even = space.even_at_target
    assert (even is None) == (not space.has_target)
    if space.target_limit is None or even is None or space.target_total is not None:
        return
    free = space.of_free_genes(even)
    assume(max(free) - min(free) <= 1 and sum(free) > 0)
    costs = space.costs[space.limits.index(space.target_limit)]
    assert space.target_limit.is_kept_by(costs.of(even))
    assert not space.target_limit.is_kept_by(costs.of(space.even(sum(free) - 1)))


def test_genes_of_halves_come_in_the_order_in_which_a_model_runs_them() -> None:
    space = ScheduleSpace(3, step=0.1, granularity="half", kv="keep", dense_blocks=(1,))
    assert space.genes.names[:3] == ("attention_0", "mlp_0", "attention_1") and space.n_genes == 6
    assert space.free_genes == (0, 1, 4, 5) and space.genes.blocks == (0, 0, 1, 1, 2, 2)
    schedule = space.schedule((1, 2, 0, 0, 0, 6))
    assert schedule == SparsitySchedule.of_halves([0.1, 0, 0], [0.2, 0, 0.6], [True, False, False])
    assert space.grid_indices(schedule) == space.grid_indices(tuple(schedule.numbers)) == (1, 2, 0, 0, 0, 6)


def test_whole_blocks_that_keep_keys_and_values_have_a_gene_each() -> None:
    space = ScheduleSpace(2, step=0.1, kv="keep")
    assert space.genes.names == ("block_0", "block_1")
    assert space.schedule((1, 0)) == SparsitySchedule.of_halves([0.1, 0], [0.1, 0], True)


@given(one=spaces(), other=spaces(), seed=st.integers(0, 99))
def test_genes_express_what_they_wrote_and_nothing_that_they_could_not_have(
    one: ScheduleSpace, other: ScheduleSpace, seed: int
) -> None:
    schedule = one.schedule(one.sample(random.Random(seed)))
    assert one.genes.express(schedule) and one.genes.express(schedule.numbers)
    if other.n_blocks == one.n_blocks:
        remade = other.schedule(other.grid_indices(schedule))
        assert other.genes.express(schedule) == (remade == schedule)


@pytest.mark.parametrize("cost", [milliseconds, taken_apart])
def test_repairing_eighty_blocks_with_halves_takes_milliseconds(cost: Any) -> None:
    space = ScheduleSpace(80, limits=(limit("target_speedup", 1.3, 80, cost),), granularity="half")
    space.sample(rng := random.Random(0))
    began = time.process_time()
    for _ in range(20):
        space.sample(rng)
    assert (time.process_time() - began) / 20 < 0.1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dense_blocks": (0, 6)}, "Dense block 6 is none of the model's 6: expected -6 to 5"),
        ({"target_sparsity": 0.6, "dense_blocks": (0, 1, 2)}, "0.6 cannot be reached: with 3 of 6.* at most 0.4[78]"),
        (
            {"limits": (limit("max_latency_ms", 1.0, 6),)},
            "No schedule takes at most 1 ms: .* 1.[0-9] ms",
        ),
        (
            {"target_sparsity": 0.1, "limits": (limit("max_latency_ms", 10.0, 6),)},
            "No schedule takes at most 10 ms",
        ),
        (
            {"limits": (limit("target_flops_saved", 0.95, 6),), "dense_blocks": (0,)},
            r"0.95 of the FLOPs saved cannot be reached: .* at most 0\.\d{3} of the dense prefill's can be",
        ),
        ({"limits": (limit("target_speedup", 30, 6),)}, r"speed-up of 30 cannot be reached: .* at most 1\d\.\d"),
    ],
)
def test_constraints_that_no_schedule_keeps_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        ScheduleSpace(6, **options)
