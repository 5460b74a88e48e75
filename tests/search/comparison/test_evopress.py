"""EvoPress passes the shipped checks, keeps the budget, and finds what a search through all removals would."""

from __future__ import annotations

import random
from collections.abc import Callable
from functools import cache, partial
from itertools import product

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.functional import kl_div
from transformers import PreTrainedModel

from ftp_core.baselines import Budget, ScheduledModel
from ftp_core.baselines.halves import Half, flops_of_halves
from ftp_core.baselines.testing import CHECKS, Subject
from ftp_core.errors import ModelError
from ftp_core.skipping.skipping_model import SkippingModel
from search.comparison.evopress import EvoPress, Removals
from tests.ftp_core.baselines.slow_models import N_BLOCKS, deep_base, examples
from tests.ftp_core.baselines.test_blockpruner import silence
from tests.search.comparison.test_puzzle import ALTERNATIVES, removed_of

# On a small model the program's own effort finds the same removal from any seed.
BRIEF = partial(EvoPress, generations=1, offspring=2, starts=2)


@cache
def subject(family: str) -> Subject:
    return Subject(BRIEF, SkippingModel(deep_base(family)), examples(), 0.05)


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
@pytest.mark.parametrize("family", ["llama", pytest.param("gpt_neox", marks=pytest.mark.slow)])
def test_the_shipped_checks_pass(family: str, check: Callable[[Subject], None]) -> None:
    check(subject(family))


@given(
    st.lists(st.tuples(st.integers(1, 9), st.integers(1, 9)), min_size=2, max_size=8),
    st.floats(0.05, 0.9),
    st.integers(0, 99),
)
@settings(max_examples=30)
def test_every_child_is_at_the_budget_and_another_than_its_parent(
    costs: list[tuple[int, int]], share: float, seed: int
) -> None:
    of_halves = {Half(i, part): float(both[part]) for i, both in enumerate(costs) for part in (0, 1)}
    removals, rng = Removals(of_halves, share * sum(of_halves.values())), random.Random(seed)
    starts = removals.starts(4, rng)
    furthest = max(min(of_halves.values()) / 2, min(map(removals.gap, starts)))
    assert all(removals.gap(start) <= furthest for start in starts)
    parent = starts[0]
    for _ in range(20):
        child = removals.child(parent, rng)
        saved = sum(of_halves[half] for half in removals.halves_of(child))
        assert abs(saved - share * sum(of_halves.values())) <= furthest * (1 + 1e-9)
        parent = child


def test_children_switch_halves_of_a_kind_or_trade_them_for_others() -> None:
    of_halves = {Half(i, part): (1.0, 3.0)[part] for i in range(8) for part in (0, 1)}
    removals, rng = Removals(of_halves, 9.0), random.Random(0)
    parent = removals.starts(1, rng)[0]
    switched, traded = 0, set()
    for _ in range(100):
        child = removals.child(parent, rng)
        counts = [sum(half.part == part for half in removals.halves_of(child)) for part in (0, 1)]
        before = [sum(half.part == part for half in removals.halves_of(parent)) for part in (0, 1)]
        assert child != parent and counts[0] + 3 * counts[1] == 9
        if counts == before:
            switched += 1
            assert sum(own != other for own, other in zip(child, parent, strict=True)) in (2, 4, 6)
        else:
            traded.add(counts[0] - before[0])
    assert switched > 70 and traded <= {-6, -3, 3, 6} and traded


def with_idle(base: PreTrainedModel, idle: tuple[int, ...]) -> SkippingModel:
    """A model some of whose blocks add nothing."""
    with torch.no_grad():
        for index in idle:
            block = base.model.layers[index]
            for weight in (block.self_attn.o_proj.weight, block.mlp.down_proj.weight):
                weight.zero_()
    return SkippingModel(base)


def test_blocks_that_add_nothing_are_removed() -> None:
    pruned = EvoPress(generations=40).fit(with_idle(deep_base(), (1, 4)), examples(2), Budget(2 / N_BLOCKS, 2, 40))
    assert removed_of(pruned.model) == (0, 3, 0, 0, 3, 0)
    assert pruned.sparsity.value == 2 / N_BLOCKS


@torch.no_grad()
def slow_kl(model: PreTrainedModel, removed: list[tuple[int, int]]) -> float:
    """KL of a model without some halves, by whole passes."""
    total, texts = 0.0, [torch.tensor([[*one.prompt, *one.continuations[one.answer]]]) for one in examples(2)]
    dense = [model(ids).logits[0, :-1].float().log_softmax(-1) for ids in texts]
    hooks = [silence(model, half) for half in removed]
    for ids, other in zip(texts, dense, strict=True):
        own = model(ids).logits[0, :-1].float().log_softmax(-1)
        total += float(kl_div(own, other, log_target=True, reduction="sum"))
    for hook in hooks:
        hook.remove()
    return total


def halves_of(pruned: ScheduledModel) -> list[tuple[int, int]]:
    return [(block, part) for block, index in enumerate(removed_of(pruned.model)) for part in ALTERNATIVES[index]]


def test_more_generations_are_never_worse_and_find_the_best_removal_at_the_budget() -> None:
    model, budget = SkippingModel(deep_base(n_blocks=4)), Budget(0.4, 2, 40)
    costs, target = flops_of_halves(model, budget), 0.4 * budget.dense_flops(model)
    halves = [(half.block, half.part) for half in costs]
    every = [
        [half for half, is_gone in zip(halves, gone, strict=True) if is_gone] for gone in product((0, 1), repeat=8)
    ]
    near = [gone for gone in every if abs(sum(costs[Half(*half)] for half in gone) - target) <= min(costs.values()) / 2]
    best = min(slow_kl(model.model, gone) for gone in near)
    found, steps = [], list[float]()
    for generations in (0, 2, 25):
        pruned = EvoPress(generations, starts=2).fit(model, examples(2), budget, 1, steps.append)
        assert halves_of(pruned) in near
        found.append(slow_kl(model.model, halves_of(pruned)))
    assert found == sorted(found, reverse=True) and found[0] > found[-1]
    assert len(near) > 20 and found[-1] == pytest.approx(best, rel=1e-4)
    assert steps[-26:] == [*(n / 25 for n in range(25)), 1.0]


def test_the_effort_is_bounded_and_counted() -> None:
    few, many = (
        EvoPress(generations=2, tokens=120).fit(SkippingModel(deep_base()), examples(n), Budget(0.3, 2, 40))
        for n in (6, 60)
    )
    assert many.preparation.tokens < 2 * few.preparation.tokens
    for wrong in ({"generations": -1}, {"offspring": 0}):
        with pytest.raises(ModelError, match="at least one of all else"):
            EvoPress(**wrong)
