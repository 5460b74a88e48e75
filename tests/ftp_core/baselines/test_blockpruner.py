"""Halves go one by one, each time the one without which perplexity is lowest."""

from __future__ import annotations

import pytest
import torch
from transformers import PreTrainedModel

from ftp_core.baselines import Budget
from ftp_core.baselines.blockpruner import BlockPruner
from ftp_core.baselines.fitting import first_texts
from ftp_core.baselines.sharing import AddsNothing, PassesThrough
from ftp_core.errors import ModelError
from ftp_core.skipping.families import family_of
from ftp_core.skipping.skipping_model import SkippingModel
from tests.ftp_core.baselines.slow_models import N_BLOCKS, deep_base, examples, slow_nll

Half = tuple[int, int]


def silence(model: PreTrainedModel, half: Half) -> torch.utils.hooks.RemovableHandle:
    """Lets a half compute, and throws the result away."""
    family = family_of(model.config)
    assert family.halves is not None

    def nothing(_: object, __: object, out: object) -> object:
        return (torch.zeros_like(out[0]), *out[1:]) if isinstance(out, tuple) else torch.zeros_like(out)  # type: ignore

    return family.blocks_of(model)[half[0]].get_submodule(family.halves[half[1]]).register_forward_hook(nothing)


@torch.no_grad()
def slow_order(model: PreTrainedModel, n: int) -> list[Half]:
    """The halves that go first, by a whole pass for each candidate and text."""
    gone: list[Half] = []
    for _ in range(n):
        losses = {}
        for half in ((block, part) for block in range(N_BLOCKS) for part in (0, 1)):
            if half not in gone:
                hook = silence(model, half)
                losses[half] = float(slow_nll(model, examples()))
                hook.remove()
        gone.append(min(losses, key=losses.__getitem__))
        silence(model, gone[-1])
    return gone


@pytest.mark.parametrize("family", ["llama", "gpt_neox"])
def test_the_halves_go_that_a_slow_search_takes_and_the_model_is_the_one_without_them(family: str) -> None:
    pruned = BlockPruner().fit(SkippingModel(deep_base(family)), examples(), Budget(0.35, 2, 40))
    gone = set()
    assert pruned.model.family.halves is not None
    for index, block in enumerate(pruned.model.blocks):
        whole = isinstance(block, PassesThrough)
        halves = pruned.model.family.halves
        gone |= {(index, p) for p in (0, 1) if whole or isinstance(block.get_submodule(halves[p]), AddsNothing)}
    silent = deep_base(family)
    assert gone == set(slow_order(silent, len(gone))) and len(gone) >= 3
    assert pruned.sparsity.value == len(gone) / (2 * N_BLOCKS)
    ids = torch.arange(5, 24)[None]
    logits = pruned.step_of(pruned.dense.model)(ids, None)[0]
    torch.testing.assert_close(logits, silent(ids).logits[:, -1], atol=1e-4, rtol=1e-4)


def test_the_first_texts_decide_that_have_enough_tokens() -> None:
    texts = examples()
    lengths = [len(one.prompt) + len(one.continuations[one.answer]) for one in texts]
    for wanted, n in ((1, 1), (lengths[0], 1), (lengths[0] + 1, 2), (sum(lengths), len(texts)), (10**6, len(texts))):
        assert first_texts(texts, wanted) == texts[:n]
    model, budget = SkippingModel(deep_base("llama")), Budget(0.35, 2, 40)
    few = BlockPruner(tokens=lengths[0] + 1).fit(model, texts, budget)
    same, every = BlockPruner().fit(model, texts[:2], budget), BlockPruner().fit(model, texts, budget)
    assert few.preparation.tokens == same.preparation.tokens < every.preparation.tokens
    with pytest.raises(ModelError, match="decide by 0 tokens"):
        BlockPruner(tokens=0)


def test_progress_is_told_with_every_loss_and_ends_at_one() -> None:
    told: list[float] = []
    BlockPruner().fit(SkippingModel(deep_base("llama")), examples(), Budget(0.35, 2, 40), on_step=told.append)
    assert max(told) == told[-1] == 1.0 and min(told) > 0 and len(told) > 3 * N_BLOCKS
