"""Skipping removes work without changing what it means: the slow reference masks a full computation instead."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from transformers import (
    BloomConfig,
    BloomForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from ftp_core.errors import ModelError, ScheduleError
from ftp_core.routers import DynamicRouter, Router, RoutingState, StaticRouter
from ftp_core.schedule import SparsitySchedule
from ftp_core.skipping.skipping_model import SkippingModel
from ftp_core.text.encoding import IGNORED, ContinuationBatch, PromptBatch, pad_right
from tests.ftp_core.made_up_routers import random_router

N_BLOCKS = 3
SHAPE = {
    "vocab_size": 50,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": N_BLOCKS,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 128,
    "initializer_range": 0.3,
}


def tiny(family: str = "llama") -> PreTrainedModel:
    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(**SHAPE)) if family == "llama" else Qwen3ForCausalLM(Qwen3Config(**SHAPE))
    return model.eval()


MODELS = {family: tiny(family) for family in ("llama", "qwen3")}


def slow_logits(
    model: PreTrainedModel, prompt: list[int], continuation: list[int], schedule: SparsitySchedule, router: Router
) -> tuple[Tensor, list[Tensor]]:
    """Logits that predict the continuation, from full blocks under explicit masks, one row at a time."""
    length, total = len(prompt), len(prompt) + len(continuation)
    ids = torch.tensor([prompt + continuation])
    position_ids = torch.arange(total)[None]
    hidden = model.model.embed_tokens(ids)
    rotary = model.model.rotary_emb(hidden, position_ids=position_ids)
    state = RoutingState.padded_right(torch.tensor([length]), length)
    causal = torch.ones(total, total, dtype=torch.bool).tril()
    kept = []
    for block, sparsity in zip(model.model.layers, schedule, strict=True):
        keep = state.real if sparsity == 0 else router.keep(sparsity, state)
        kept.append(keep[0])
        runs = torch.cat([keep[0], torch.ones(len(continuation), dtype=torch.bool)])
        mask = (causal & runs[None, :]) | torch.eye(total, dtype=torch.bool)
        out = block(hidden, attention_mask=mask[None, None], position_ids=position_ids, position_embeddings=rotary)
        if router.window:
            received = slow_attention_received(model, block, hidden[:, :length], rotary, keep[0], router.window)
            state.observe(received[None], keep)
        hidden = torch.where(runs[None, :, None], out, hidden)
    return model.lm_head(model.model.norm(hidden))[0, length - 1 : total - 1], kept


def slow_attention_received(
    model: PreTrainedModel,
    block: torch.nn.Module,
    hidden: Tensor,
    rotary: tuple[Tensor, Tensor],
    keep: Tensor,
    window: int,
) -> Tensor:
    """Attention of the last kept queries to each token, from whole matrices and one query at a time."""
    from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

    attention, length = block.self_attn, hidden.shape[1]
    normed = block.input_layernorm(hidden)

    def heads(projection: str, norm: str) -> Tensor:
        out = getattr(attention, projection)(normed).view(1, length, -1, attention.head_dim)
        return (getattr(attention, norm)(out) if hasattr(attention, norm) else out).transpose(1, 2)

    query, key = apply_rotary_pos_emb(
        heads("q_proj", "q_norm"), heads("k_proj", "k_norm"), rotary[0][:, :length], rotary[1][:, :length]
    )
    key = key.repeat_interleave(query.shape[1] // key.shape[1], 1)
    listeners = keep.nonzero().flatten()[-window:]
    total = torch.zeros(length)
    for position in listeners.tolist():
        allowed = keep & (torch.arange(length) <= position)
        scores = (key[0] @ query[0, :, position, :, None]).squeeze(-1) * attention.scaling
        total += scores.masked_fill(~allowed, -torch.inf).softmax(-1).mean(0)
    return total / len(listeners)


tokens = st.lists(st.integers(1, 49), min_size=1, max_size=20)
schedules = st.lists(st.integers(0, 19), min_size=N_BLOCKS, max_size=N_BLOCKS).map(SparsitySchedule.from_grid_indices)


@st.composite
def rows(draw: st.DrawFn) -> list[tuple[list[int], list[int]]]:
    return draw(
        st.lists(st.tuples(tokens, st.lists(st.integers(1, 49), min_size=1, max_size=4)), min_size=1, max_size=4)
    )


@pytest.mark.parametrize("kind", ["static", "dynamic"])
@pytest.mark.parametrize("family", list(MODELS))
@settings(max_examples=40)
@given(rows=rows(), schedule=schedules)
def test_skipping_equals_a_masked_full_computation(
    family: str, kind: str, rows: list[tuple[list[int], list[int]]], schedule: SparsitySchedule
) -> None:
    torch.manual_seed(1)
    model, router = MODELS[family], StaticRouter() if kind == "static" else DynamicRouter(window=3)
    prompts = PromptBatch(pad_right([p for p, _ in rows], 0), torch.tensor([len(p) for p, _ in rows]))
    continuations = ContinuationBatch(pad_right([c for _, c in rows], IGNORED), torch.arange(len(rows)))
    with torch.no_grad():
        skipping = SkippingModel(model)
        prefill = skipping.prefill(prompts, schedule, router)
        logits = skipping.continuation_logits(prefill, continuations)
        for row, (prompt, continuation) in enumerate(rows):
            expected, kept = slow_logits(model, prompt, continuation, schedule, router)
            for fast, slow in zip(prefill.kept, kept, strict=True):
                assert torch.equal(fast[row, : len(prompt)], slow)
            torch.testing.assert_close(logits[row, : len(continuation)], expected, atol=2e-4, rtol=1e-4)


@given(length=st.integers(2, 40))
def test_a_schedule_of_zeros_is_bit_identical_to_the_dense_model(length: int) -> None:
    model = MODELS["llama"]
    ids = torch.randint(1, 50, (2, length), generator=torch.Generator().manual_seed(length))
    prompts = PromptBatch(ids, torch.tensor([length, length]))
    for router in (StaticRouter(), random_router()):
        prefill = SkippingModel(model).prefill(prompts, SparsitySchedule.uniform(0.0, N_BLOCKS), router)
        dense = model.model(ids)
        # Behind the blocks, as the head's matrix product rounds differently for one row than for many.
        assert torch.equal(prefill.last_hidden, dense.last_hidden_state[:, -1])
        for index, layer in enumerate(dense.past_key_values.layers):
            assert torch.equal(prefill.cache.layers[index].keys, layer.keys)
            assert torch.equal(prefill.cache.layers[index].values, layer.values)


@given(lengths=st.lists(st.integers(1, 30), min_size=1, max_size=5), schedule=schedules, seed=st.integers(0, 99))
def test_each_row_keeps_exactly_its_kept_count(lengths: list[int], schedule: SparsitySchedule, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    prompts = PromptBatch(
        torch.randint(1, 50, (len(lengths), max(lengths)), generator=generator), torch.tensor(lengths)
    )
    for router in (StaticRouter(), random_router()):
        prefill = SkippingModel(MODELS["llama"]).prefill(prompts, schedule, router)
        for row, length in enumerate(lengths):
            assert tuple(int(keep[row].sum()) for keep in prefill.kept) == schedule.kept_counts(length)
            assert not any(keep[row, length:].any() for keep in prefill.kept)


def test_blocks_hold_keys_of_kept_tokens_only() -> None:
    prompts = PromptBatch(torch.randint(1, 50, (2, 20)), torch.tensor([20, 20]))
    prefill = SkippingModel(MODELS["llama"]).prefill(prompts, SparsitySchedule([0.0, 0.5, 0.9]), StaticRouter())
    assert prefill.cache.held() == (20, 10, 2)


def test_blocks_compute_kept_tokens_only() -> None:
    model, seen = tiny(), []
    for block in model.model.layers:
        block.mlp.register_forward_hook(lambda _module, inputs, _output: seen.append(inputs[0].shape[1]))
    prompts = PromptBatch(torch.randint(1, 50, (2, 20)), torch.tensor([20, 20]))
    SkippingModel(model).prefill(prompts, SparsitySchedule([0.2, 0.5, 0.9]), StaticRouter())
    assert seen == [16, 10, 2]


def test_an_option_never_influences_which_prompt_tokens_are_kept_nor_another_option() -> None:
    torch.manual_seed(0)
    skipping, router = SkippingModel(MODELS["llama"]), random_router()
    prompts = PromptBatch(torch.randint(1, 50, (1, 12)), torch.tensor([12]))
    schedule = SparsitySchedule([0.3, 0.5, 0.5])
    alone = skipping.continuation_logits(
        skipping.prefill(prompts, schedule, router), ContinuationBatch(torch.tensor([[5, 6, 7]]), torch.tensor([0]))
    )
    together = skipping.continuation_logits(
        skipping.prefill(prompts, schedule, router),
        ContinuationBatch(torch.tensor([[5, 6, 7], [9, 9, 9]]), torch.tensor([0, 0])),
    )
    torch.testing.assert_close(together[0], alone[0])


def test_a_changed_completion_token_leaves_the_logits_before_it() -> None:
    skipping = SkippingModel(MODELS["llama"])
    prefill = skipping.prefill(
        PromptBatch(torch.randint(1, 50, (1, 12)), torch.tensor([12])),
        SparsitySchedule([0.3, 0.5, 0.5]),
        StaticRouter(),
    )
    one = skipping.continuation_logits(prefill, ContinuationBatch(torch.tensor([[5, 6, 7, 8]]), torch.tensor([0])))
    two = skipping.continuation_logits(prefill, ContinuationBatch(torch.tensor([[5, 6, 9, 8]]), torch.tensor([0])))
    assert torch.equal(one[:, :3], two[:, :3])
    assert not torch.allclose(one[:, 3], two[:, 3])


def test_a_schedule_of_the_wrong_length_is_refused() -> None:
    prompts = PromptBatch(torch.ones(1, 4, dtype=torch.long), torch.tensor([4]))
    with pytest.raises(ScheduleError, match="2 sparsities, but the model has 3 blocks"):
        SkippingModel(MODELS["llama"]).prefill(prompts, SparsitySchedule([0.1, 0.1]), StaticRouter())


def test_an_unsupported_family_lists_the_supported_ones() -> None:
    with pytest.raises(ModelError, match="'bloom' cannot skip tokens: .* Supported are cohere, cohere2, "):
        SkippingModel(BloomForCausalLM(BloomConfig(n_layer=1, hidden_size=8, n_head=2, vocab_size=10)))


def test_the_models_own_kernel_is_restored() -> None:
    model = tiny()
    prompts = PromptBatch(torch.randint(1, 50, (2, 20)), torch.tensor([20, 20]))
    SkippingModel(model).prefill(prompts, SparsitySchedule([0.2, 0.5, 0.9]), random_router())
    assert model.config._attn_implementation == "sdpa"


class FirstOnes(StaticRouter):
    """Keeps the first tokens."""

    def keep(self, sparsity: float, state: RoutingState) -> Tensor:
        return (state.positions < state.kept_counts(sparsity)[:, None]) & state.real


def test_a_router_made_from_the_static_one_decides_for_itself() -> None:
    model = SkippingModel(tiny())
    prompts = PromptBatch(torch.arange(3, 23)[None], torch.tensor([20]))
    prefill = model.prefill(prompts, SparsitySchedule.uniform(0.5, N_BLOCKS), FirstOnes())
    assert prefill.cache.block(0).positions.tolist() == [list(range(10))]
