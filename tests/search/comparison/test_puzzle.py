"""Puzzle passes the shipped checks, and chooses by single scores what a search through all choices would."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from itertools import product

import pytest
import torch
from torch.nn.functional import kl_div

from ftp_core.baselines import Budget
from ftp_core.baselines.sharing import AddsNothing, PassesThrough
from ftp_core.baselines.testing import CHECKS, Subject
from ftp_core.skipping.families import family_of
from ftp_core.skipping.skipping_model import SkippingModel
from search.comparison.puzzle import Puzzle
from tests.ftp_core.baselines.slow_models import N_BLOCKS, deep_base, examples
from tests.ftp_core.baselines.test_blockpruner import silence

Choice = tuple[int, ...]
# Parts that are removed: none, the attention, the MLP, both.
ALTERNATIVES = ((), (0,), (1,), (0, 1))


@cache
def subject(family: str) -> Subject:
    return Subject(Puzzle, SkippingModel(deep_base(family)), examples(), 0.1)


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
@pytest.mark.parametrize("family", ["llama", pytest.param("gpt_neox", marks=pytest.mark.slow)])
def test_the_shipped_checks_pass(family: str, check: Callable[[Subject], None]) -> None:
    check(subject(family))


@torch.no_grad()
def slow_scores(family: str) -> list[list[float]]:
    """KL without parts of each block, by a whole pass for each and each text."""
    texts = [torch.tensor([[*one.prompt, *one.continuations[one.answer]]]) for one in examples()]

    def predictions(removed: list[tuple[int, int]]) -> list[torch.Tensor]:
        model = deep_base(family)
        for half in removed:
            silence(model, half)
        return [model(ids).logits[0, :-1].float().log_softmax(-1) for ids in texts]

    dense = predictions([])

    def kl(removed: list[tuple[int, int]]) -> float:
        pairs = zip(predictions(removed), dense, strict=True)
        return sum(float(kl_div(own, one, log_target=True, reduction="sum")) for own, one in pairs)

    return [[kl([(block, part) for part in parts]) for parts in ALTERNATIVES] for block in range(N_BLOCKS)]


def removed_of(pruned: SkippingModel) -> Choice:
    """Index of what is removed of each block."""
    halves = family_of(pruned.model.config).halves
    assert halves is not None
    found = []
    for block in pruned.blocks:
        if isinstance(block, PassesThrough):
            found.append(3)
            continue
        gone = tuple(part for part in (0, 1) if isinstance(block.get_submodule(halves[part]), AddsNothing))
        found.append(ALTERNATIVES.index(gone))
    return tuple(found)


@pytest.mark.parametrize("share", [0.2, 0.45])
def test_the_choice_has_the_least_sum_of_scores_within_the_budget(share: float) -> None:
    one, budget = subject("llama"), Budget(share, 2, 40)
    pruned = Puzzle().fit(one.model, examples(), budget)
    scores = slow_scores("llama")
    most = budget.target_flops(one.model)

    def flops(choice: Choice) -> float:
        return left_by[choice]

    dense = budget.dense_flops(one.model)
    # By the methods' own counts, of models that lack one part of one block.
    parts = {}
    for block, index in product(range(N_BLOCKS), (1, 2, 3)):
        parts[block, index] = _flops_of(one.model, block, index, budget)
    left_by = {
        choice: dense - sum(parts[block, index] for block, index in enumerate(choice) if index)
        for choice in product(range(4), repeat=N_BLOCKS)
    }
    sums = {choice: sum(scores[b][i] for b, i in enumerate(choice)) for choice in left_by if flops(choice) <= most}
    best = min(sums, key=sums.__getitem__)
    chosen = removed_of(pruned.model)
    assert pruned.flops(2, 40) <= most * (1 + 1e-6)
    assert chosen in sums and sums[chosen] <= sums[best] * 1.01 + 1e-6


def _flops_of(model: SkippingModel, block: int, index: int, budget: Budget) -> float:
    """Operations that parts of a block take."""
    from ftp_core.baselines.halves import Half, flops_of_halves

    costs = flops_of_halves(model, budget)
    return sum(costs[Half(block, part)] for part in ALTERNATIVES[index])
