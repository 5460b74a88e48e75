"""Halves of blocks skip apart, and skipped tokens may keep keys and values, in every family."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import PreTrainedModel

from ftp_core.errors import ModelError
from ftp_core.quality.quality import QualitySet
from ftp_core.routers import RandomRouter, Router, StaticRouter
from ftp_core.schedule import SparsitySchedule
from ftp_core.skipping.families import family_of
from ftp_core.skipping.prefixes import PrefixStore
from ftp_core.skipping.skipping_model import SkippingModel
from ftp_core.text.encoding import IGNORED, ContinuationBatch, EncodedExample, PromptBatch, pad_right
from tests.ftp_core.made_up_routers import random_router
from tests.ftp_core.slow_reference import slow_logits
from tests.ftp_core.tiny_models import CONFIGS, N_BLOCKS, VOCABULARY, fresh_tiny, in_turns, tiny

ABLE = [name for name in CONFIGS if family_of(tiny(name).config).halves is not None]
shares = st.lists(st.sampled_from([0.0, 0.0, 0.3, 0.55, 0.8, 0.95]), min_size=N_BLOCKS, max_size=N_BLOCKS)
flags = st.lists(st.booleans(), min_size=N_BLOCKS, max_size=N_BLOCKS)
schedules = st.builds(SparsitySchedule.of_halves, shares, shares, flags)
words = st.integers(3, VOCABULARY - 1)
rows = st.lists(
    st.tuples(st.lists(words, min_size=1, max_size=20), st.lists(words, min_size=1, max_size=4)), min_size=1, max_size=4
)
same_lengths = st.integers(1, 20).flatmap(
    lambda length: st.lists(
        st.tuples(st.lists(words, min_size=length, max_size=length), st.lists(words, min_size=2, max_size=2)),
        min_size=1,
        max_size=3,
    )
)


def made(kind: str) -> Router:
    routers = {"static": StaticRouter, "dynamic": lambda: random_router(window=3), "random": RandomRouter}
    return routers[kind]()


def check(
    model: PreTrainedModel, kind: str, texts: list[tuple[list[int], list[int]]], schedule: SparsitySchedule
) -> None:
    router = made(kind)
    prompts = PromptBatch(pad_right([p for p, _ in texts], 0), torch.tensor([len(p) for p, _ in texts]))
    continuations = ContinuationBatch(pad_right([c for _, c in texts], IGNORED), torch.arange(len(texts)))
    skipping = SkippingModel(model)
    prefill = skipping.prefill(prompts, schedule, router)
    found = skipping.continuation_logits(prefill, continuations)
    for row, (prompt, continuation) in enumerate(texts):
        n, expected = len(prompt), slow_logits(model, prompt, continuation, schedule, made(kind))
        for index, kept in enumerate(expected[1]):
            assert torch.equal(prefill.kept[index][row, :n], kept)
        wanted = expected[0][n - 1 : n - 1 + len(continuation)]
        torch.testing.assert_close(found[row, : len(continuation)], wanted, atol=2e-4, rtol=1e-3)


@pytest.mark.parametrize(("name", "kind"), in_turns(ABLE, ["static", "dynamic"]))
@settings(max_examples=6)
@given(texts=rows | same_lengths, schedule=schedules)
def test_halves_equal_a_masked_full_computation(
    name: str, kind: str, texts: list[tuple[list[int], list[int]]], schedule: SparsitySchedule
) -> None:
    check(tiny(name), kind, texts, schedule)


@settings(max_examples=60)
@given(texts=rows | same_lengths, schedule=schedules, kind=st.sampled_from(["static", "dynamic"]))
def test_halves_of_llama_equal_a_masked_full_computation(
    texts: list[tuple[list[int], list[int]]], schedule: SparsitySchedule, kind: str
) -> None:
    check(tiny("llama"), kind, texts, schedule)


@pytest.mark.parametrize("kind", ["static", "dynamic"])
@pytest.mark.parametrize("name", ["llama", "gemma2", "gpt_neox"])
def test_results_behind_blocks_are_shared_by_schedules_that_begin_alike(name: str, kind: str) -> None:
    model, generator = SkippingModel(tiny(name)), torch.Generator().manual_seed(3)
    examples = [
        EncodedExample(tuple(torch.randint(3, VOCABULARY, (n,), generator=generator).tolist()), ((5, 6),), 0, False)
        for n in (9, 12, 12, 17)
    ]
    quality, router, prefixes = QualitySet(model, examples), made(kind), PrefixStore(1 << 26)
    ends = [([0.5, 0.3], [0.5, 0.0], True), ([0.5, 0.3], [0.5, 0.0], False), ([0.3, 0.3], [0.5, 0.55], True)]
    for attention, mlp, keeps in ends:
        for first in (0.0, 0.3):
            schedule = SparsitySchedule.of_halves([first, *attention], [0.5, *mlp], keeps)
            alone = quality.evaluate(schedule, router)
            assert quality.evaluate(schedule, router, prefixes=prefixes).kl == pytest.approx(alone.kl, rel=1e-5)
    assert prefixes.blocks_reused > 0


def test_a_block_with_other_parts_skips_as_a_whole_only() -> None:
    model = SkippingModel(tiny("gemma4_text"))
    prompts = PromptBatch(torch.full((1, 6), 5), torch.tensor([6]))
    model.prefill(prompts, SparsitySchedule.uniform(0.5, N_BLOCKS), StaticRouter())
    with pytest.raises(ModelError, match="Blocks of gemma4_text models have parts beside attention and MLP"):
        model.prefill(prompts, SparsitySchedule.of_halves([0.0] * 3, [0.5] * 3), StaticRouter())


def test_a_token_that_skips_attention_computes_no_query_and_no_output() -> None:
    model = fresh_tiny("llama")
    skipping, seen = SkippingModel(model), dict[str, list[int]]()
    block = model.model.layers[1]
    for name in ("o_proj", "k_proj", "v_proj", "gate_proj", "up_proj", "down_proj"):
        module = getattr(block.self_attn if name[0] in "okv" else block.mlp, name)
        lengths = seen.setdefault(name, [])
        module.register_forward_hook(lambda _, inputs, __, lengths=lengths: lengths.append(inputs[0].shape[1]))
    prompts = PromptBatch(torch.full((2, 20), 5), torch.tensor([20, 20]))
    schedule = SparsitySchedule.of_halves([0.0, 0.5, 0.0], [0.0, 0.8, 0.0], True)
    cache = skipping.prefill(prompts, schedule, StaticRouter()).cache
    # 10 tokens run attention, 4 the MLP; all have keys.
    assert seen["o_proj"] == [10] and sum(seen["k_proj"]) == sum(seen["v_proj"]) == 20
    assert seen["gate_proj"] == seen["up_proj"] == seen["down_proj"] == [4]
    assert cache.held() == (20, 20, 20)
    schedule = SparsitySchedule.of_halves([0.0, 0.5, 0.0], [0.0, 0.8, 0.0])
    dropped = skipping.prefill(prompts, schedule, StaticRouter())
    assert dropped.cache.held() == (20, 10, 20)
