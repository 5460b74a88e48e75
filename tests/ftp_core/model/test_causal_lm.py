"""The pruned model as a Hugging Face model: exact in every family, batch and cache; saved, loaded, generating."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from transformers import DynamicCache

from ftp_core.errors import DataError, ModelError, ScheduleError
from ftp_core.model.causal_lm import FTPForCausalLM
from ftp_core.routers import DynamicRouter, HiddenRouter, LocalRouter, OnePassRouter, RandomRouter, Router, StaticRouter
from ftp_core.schedule import SparsitySchedule
from ftp_core.skipping.cache import FTPCache
from ftp_core.skipping.families import Family, register_family, supported_families
from ftp_core.skipping.skipping_model import SkippingModel
from ftp_core.text.encoding import PromptBatch
from ftp_core.training.calibration import calibrate_thresholds
from tests.ftp_core.made_up_routers import random_router
from tests.ftp_core.slow_reference import slow_decoded_logits, slow_logits
from tests.ftp_core.tiny_models import CONFIGS, CONTEXT, N_BLOCKS, crossed, fresh_tiny, in_turns, tiny

TOLERANCE = {"atol": 5e-4, "rtol": 1e-3}
tokens = st.lists(st.integers(3, 49), min_size=1, max_size=24)
schedules = st.lists(st.integers(0, 19), min_size=N_BLOCKS, max_size=N_BLOCKS).map(SparsitySchedule.from_grid_indices)
MIXED = SparsitySchedule([0.3, 0.0, 0.6])


def router_of(kind: str) -> Router:
    return {"static": StaticRouter(), "random": RandomRouter(3), "dynamic": random_router(1, window=3)}[kind]


def padded(rows: list[list[int]], side: str) -> dict[str, Tensor]:
    """A batch as a tokenizer makes it, with the position ids that `generate` would derive."""
    width = max(map(len, rows))
    ids, mask = torch.zeros(len(rows), width, dtype=torch.long), torch.zeros(len(rows), width, dtype=torch.long)
    for index, row in enumerate(rows):
        where = slice(width - len(row), width) if side == "left" else slice(0, len(row))
        ids[index, where], mask[index, where] = torch.tensor(row), 1
    return {"input_ids": ids, "attention_mask": mask, "position_ids": (mask.cumsum(1) - 1).clamp(min=0)}


@pytest.mark.parametrize(("name", "kind"), in_turns(CONFIGS, ["static", "dynamic"]))
@settings(max_examples=6)
@given(
    rows=st.lists(st.tuples(tokens, st.lists(st.integers(3, 49), max_size=4)), min_size=1, max_size=3),
    schedule=schedules,
    side=st.sampled_from(["left", "right"]),
)
def test_every_family_equals_a_masked_full_computation(
    name: str, kind: str, rows: list[tuple[list[int], list[int]]], schedule: SparsitySchedule, side: str
) -> None:
    model, router = tiny(name), router_of(kind)
    pruned = FTPForCausalLM.from_dense(model, schedule, router)
    batch = padded([prompt + completion for prompt, completion in rows], side)
    width = batch["input_ids"].shape[1]
    totals = [len(prompt) + len(completion) for prompt, completion in rows]
    starts = [width - total if side == "left" else 0 for total in totals]
    lengths = torch.tensor([start + len(prompt) for start, (prompt, _) in zip(starts, rows, strict=True)])
    with torch.no_grad():
        logits = pruned(**batch, prompt_length=lengths).logits
    for row, (prompt, completion) in enumerate(rows):
        expected, _ = slow_logits(model, prompt, completion, schedule, router)
        found = logits[row, starts[row] : starts[row] + totals[row]]
        torch.testing.assert_close(found, expected, **TOLERANCE)


@pytest.mark.parametrize(("name", "side"), crossed(CONFIGS, ["left", "right"]))
def test_a_schedule_of_zeros_is_the_dense_model_to_the_bit(name: str, side: str) -> None:
    model = tiny(name)
    pruned = FTPForCausalLM.from_dense(model, [0.0] * N_BLOCKS, random_router())
    batch = padded([[5, 6, 7, 8, 9, 10, 11], [12, 13, 14], [15]], side)
    with torch.no_grad():
        assert torch.equal(pruned(**batch).logits, model(**batch).logits)
        assert torch.equal(
            pruned.generate(batch["input_ids"], attention_mask=batch["attention_mask"], max_new_tokens=6),
            model.generate(batch["input_ids"], attention_mask=batch["attention_mask"], max_new_tokens=6),
        )


@pytest.mark.parametrize(("name", "kind"), crossed(CONFIGS, ["dynamic", "static", "random"]))
def test_cached_decoding_equals_recomputation(name: str, kind: str) -> None:
    pruned = FTPForCausalLM.from_dense(tiny(name), MIXED, router_of(kind))
    prompts = [list(range(3, 20)), [5, 9, 13, 17, 21], [30, 31]]
    batch = padded(prompts, "left")
    options = {"max_new_tokens": 12, "do_sample": False, "output_logits": True, "return_dict_in_generate": True}
    inputs = {key: batch[key] for key in ("input_ids", "attention_mask")}
    cached = pruned.generate(**inputs, **options)
    again = pruned.generate(**inputs, **options, use_cache=False)
    assert torch.equal(cached.sequences, again.sequences)
    torch.testing.assert_close(torch.stack(cached.logits), torch.stack(again.logits), **TOLERANCE)
    assert isinstance(cached.past_key_values, FTPCache)


@pytest.mark.parametrize("name", ["llama", "mistral-sliding", "gpt2"])
def test_a_batch_generates_what_its_rows_generate_alone(name: str) -> None:
    pruned = FTPForCausalLM.from_dense(tiny(name), MIXED, random_router(2, window=4))
    prompts = [list(range(3, 20)), [5, 9, 13, 17, 21], [30, 31]]
    batch = padded(prompts, "left")
    together = pruned.generate(batch["input_ids"], attention_mask=batch["attention_mask"], max_new_tokens=8)
    for row, prompt in enumerate(prompts):
        alone = pruned.generate(torch.tensor([prompt]), max_new_tokens=8)[0, len(prompt) :]
        found = together[row, batch["input_ids"].shape[1] :]
        n = min(len(alone), len(found))
        assert torch.equal(found[:n], alone[:n])


def test_the_cache_holds_what_was_kept_and_says_how_much() -> None:
    pruned = FTPForCausalLM.from_dense(tiny(), [0.0, 0.5, 0.9])
    ids = torch.randint(3, 50, (2, 20))
    with torch.no_grad():
        cache = pruned(ids, use_cache=True).past_key_values
    assert cache.held() == (20, 10, 2)
    assert cache.get_seq_length() == 20
    # Keys and values of 2 rows, 2 key heads of width 8, in float32.
    assert cache.kv_bytes() == 2 * (20 + 10 + 2) * 2 * 2 * 8 * 4
    with torch.no_grad():
        pruned(ids[:, :1], past_key_values=cache)
    assert cache.held() == (21, 11, 3)


def test_a_sliding_window_lets_go_of_keys_that_it_passed() -> None:
    pruned = FTPForCausalLM.from_dense(tiny("mistral-sliding"), [0.0, 0.5, 0.5])
    out = pruned.generate(
        torch.randint(3, 50, (1, 20)), max_new_tokens=60, min_new_tokens=60, return_dict_in_generate=True
    )
    assert max(out.past_key_values.held()) <= 5 + 16 + 1


@settings(max_examples=10)
@given(rows=st.lists(tokens, min_size=1, max_size=3), share=st.sampled_from([0.25, 0.5, 0.9]), seed=st.integers(0, 9))
def test_decoded_tokens_skip_up_to_their_cap_row_by_row(rows: list[list[int]], share: float, seed: int) -> None:
    pruned = FTPForCausalLM.from_dense(tiny(), [0.5, 0.0, 0.8], random_router(seed, window=3), decode_sparsity=share)
    batch = padded(rows, "left")
    inputs = {key: batch[key] for key in ("input_ids", "attention_mask")}
    options = {"max_new_tokens": 10, "min_new_tokens": 10, "output_logits": True, "return_dict_in_generate": True}
    together = pruned.generate(**inputs, **options)
    skipped = torch.stack(together.past_key_values.decode.skipped)
    assert int(skipped.max()) <= share * 9 + 1e-9
    assert int(skipped[1].sum()) == 0
    for row, prompt in enumerate(rows):
        alone = pruned.generate(torch.tensor([prompt]), **options)
        first = torch.stack(alone.logits)[:, 0]
        torch.testing.assert_close(torch.stack(together.logits)[:, row], first, **TOLERANCE)


@pytest.mark.parametrize("share", [0.3, 0.9])
@pytest.mark.parametrize("kind", ["static", "dynamic", "local", "thresholds"])
@pytest.mark.parametrize("name", ["llama", "mistral-sliding", "gemma2", "gpt2"])
def test_routed_decoding_equals_a_masked_full_computation(name: str, kind: str, share: float) -> None:
    schedule, ids = SparsitySchedule([0.5, 0.3, 0.8]), torch.randint(3, 50, (1, 26))
    router = (
        LocalRouter(N_BLOCKS, window=4) if kind == "local" else router_of("static" if kind == "static" else "dynamic")
    )
    if kind == "thresholds":
        prompts = PromptBatch(torch.randint(3, 50, (4, 20)), torch.full((4,), 20))
        router = calibrate_thresholds(SkippingModel(fresh_tiny(name)), router, prompts, schedule)
    pruned = FTPForCausalLM.from_dense(tiny(name), schedule, router, decode_sparsity=share)
    with torch.no_grad():
        found = pruned(ids, prompt_length=14, use_cache=True)
    expected, skipped = slow_decoded_logits(tiny(name), ids[0].tolist(), 14, schedule, router, share)
    torch.testing.assert_close(found.logits[0, 13:], expected, **TOLERANCE)
    assert [int(count) for count in found.past_key_values.decode.skipped] == skipped


def test_random_routers_skip_decoded_tokens_about_as_often_as_prompt_tokens() -> None:
    pruned = FTPForCausalLM.from_dense(tiny(), [0.5, 0.0, 0.8], RandomRouter(1), decode_sparsity=0.95)
    ids = torch.randint(3, 50, (8, 20))
    out = pruned.generate(ids, max_new_tokens=61, min_new_tokens=61, return_dict_in_generate=True)
    shares = torch.stack(out.past_key_values.decode.skipped).double().mean(1) / 60
    assert shares.tolist() == pytest.approx([0.5, 0.0, 0.8], abs=0.15)


def test_routed_decoding_equals_scoring_the_same_tokens() -> None:
    pruned = FTPForCausalLM.from_dense(tiny(), [0.5, 0.3, 0.8], random_router(4, window=3), decode_sparsity=0.5)
    ids = torch.randint(3, 50, (2, 12))
    out = pruned.generate(ids, max_new_tokens=8, output_logits=True, return_dict_in_generate=True, min_new_tokens=8)
    with torch.no_grad():
        scored = pruned(out.sequences, prompt_length=12).logits
        ragged = pruned(out.sequences, prompt_length=torch.tensor([12, 9])).logits
    torch.testing.assert_close(scored[:, 11:-1], torch.stack(out.logits, 1), **TOLERANCE)
    torch.testing.assert_close(ragged[0], scored[0], **TOLERANCE)
    assert any(int(skipped.sum()) for skipped in out.past_key_values.decode.skipped)


def test_labels_say_where_the_completion_begins() -> None:
    model, router = tiny(), random_router(1, window=3)
    pruned = FTPForCausalLM.from_dense(model, MIXED, router)
    ids = torch.randint(3, 50, (1, 16))
    labels = ids.masked_fill(torch.arange(16) < 10, -100)
    with torch.no_grad():
        out = pruned(ids, labels=labels)
        whole = pruned(ids, labels=ids)
        dense = model(ids, labels=ids)
    expected, _ = slow_logits(model, ids[0, :10].tolist(), ids[0, 10:].tolist(), MIXED, router)
    torch.testing.assert_close(out.logits[0], expected, **TOLERANCE)
    nll = torch.nn.functional.cross_entropy(expected[9:-1], ids[0, 10:])
    torch.testing.assert_close(out.loss, nll, **TOLERANCE)
    # With labels for everything there is no prompt, so nothing is skipped.
    torch.testing.assert_close(whole.loss, dense.loss)


@settings(max_examples=10)
@given(seed=st.integers(0, 999), changed=st.integers(11, 15))
def test_a_changed_completion_token_changes_nothing_before_it(seed: int, changed: int) -> None:
    pruned = FTPForCausalLM.from_dense(tiny(), MIXED, random_router(seed % 7, window=3))
    ids = torch.randint(3, 50, (1, 16), generator=torch.Generator().manual_seed(seed))
    other = ids.clone()
    other[0, changed] = 3 if int(ids[0, changed]) != 3 else 4
    with torch.no_grad():
        one, two = (pruned(tokens, prompt_length=10).logits for tokens in (ids, other))
    assert torch.equal(one[:, :changed], two[:, :changed])
    assert not torch.equal(one[:, changed:], two[:, changed:])


def test_blocks_compute_kept_tokens_only() -> None:
    model, seen = fresh_tiny(), []
    for block in model.model.layers:
        block.mlp.register_forward_hook(lambda _module, inputs, _output: seen.append(inputs[0].shape[:2]))
    with torch.no_grad():
        FTPForCausalLM.from_dense(model, [0.2, 0.5, 0.9], random_router())(torch.randint(3, 50, (2, 20)))
    assert seen == [(2, 16), (2, 10), (2, 2)]


def test_a_decoded_token_that_skips_is_not_computed() -> None:
    model, seen = fresh_tiny(), []
    model.model.layers[0].mlp.register_forward_hook(lambda _m, inputs, _o: seen.append(inputs[0].shape[1]))
    pruned = FTPForCausalLM.from_dense(model, [0.9, 0.0, 0.0], random_router(1), decode_sparsity=0.5)
    out = pruned.generate(
        torch.randint(3, 50, (1, 20)), max_new_tokens=20, min_new_tokens=20, return_dict_in_generate=True
    )
    skipped = int(out.past_key_values.decode.skipped[0])
    assert len(seen) == 1 + 19 - skipped


def test_no_mask_of_all_pairs_is_made_that_the_dense_model_does_not_make() -> None:
    pruned = FTPForCausalLM.from_dense(tiny(), MIXED, random_router(1, window=4))
    masks: list[object] = []
    for block in pruned.base.model.layers:
        block.self_attn.register_forward_pre_hook(
            lambda _module, _args, kwargs: masks.append(kwargs["attention_mask"]), with_kwargs=True
        )
    try:
        with torch.no_grad():
            pruned(torch.randint(3, 50, (3, 30)))
            pruned(padded([[4] * 30, [5] * 30], "right")["input_ids"])
    finally:
        for block in pruned.base.model.layers:
            block.self_attn._forward_pre_hooks.clear()
            block.self_attn._forward_pre_hooks_with_kwargs.clear()
    assert masks == [None] * 6


def test_rows_of_different_lengths_get_the_masks_of_the_dense_model_at_most() -> None:
    pruned, masks = FTPForCausalLM.from_dense(fresh_tiny(), MIXED, random_router(1, window=4)), []
    for block in pruned.base.model.layers:
        block.self_attn.register_forward_pre_hook(
            lambda _module, _args, kwargs: masks.append(kwargs["attention_mask"]), with_kwargs=True
        )
    with torch.no_grad():
        pruned(**padded([[4] * 30, [5] * 12], "right"))
    # The middle block runs whole, with the mask that the dense model makes.
    assert masks[0] is None and masks[2] is None
    assert masks[1] is not None and masks[1].shape[-2:] == (30, 30)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_follows_full_precision(dtype: torch.dtype) -> None:
    ids = torch.randint(3, 50, (2, 20))
    full = FTPForCausalLM.from_dense(fresh_tiny(), MIXED, StaticRouter())
    half = FTPForCausalLM.from_dense(fresh_tiny().to(dtype), MIXED, StaticRouter())
    dynamic = FTPForCausalLM.from_dense(fresh_tiny().to(dtype), MIXED, random_router())
    with torch.no_grad():
        expected, found = full(ids).logits.softmax(-1), half(ids).logits
        assert found.dtype == dtype
        assert bool(dynamic(ids).logits.isfinite().all())
    assert float((found.float().softmax(-1) - expected).abs().max()) < 0.1
    assert dynamic.generate(ids, max_new_tokens=3).shape[0] == 2


def test_gradients_flow_through_kept_tokens() -> None:
    pruned = FTPForCausalLM.from_dense(fresh_tiny(), MIXED).train()
    ids = torch.randint(3, 50, (2, 20))
    pruned(ids, labels=ids.masked_fill(torch.arange(20) < 10, -100)).loss.backward()
    assert all(parameter.grad is not None for parameter in pruned.base.model.layers.parameters())


def test_the_schedule_can_be_switched_without_loading_again() -> None:
    pruned = FTPForCausalLM.from_dense(tiny(), MIXED, random_router())
    ids = torch.randint(3, 50, (1, 20))
    with torch.no_grad():
        first = pruned(ids).logits
        pruned.schedule = [0.0, 0.0, 0.0]
        assert torch.equal(pruned(ids).logits, tiny()(ids).logits)
        pruned.schedule = MIXED
        assert torch.equal(pruned(ids).logits, first)


@pytest.mark.slow
def test_compiled_blocks_compute_the_same() -> None:
    pruned = FTPForCausalLM.from_dense(fresh_tiny(), MIXED)
    ids = torch.randint(3, 50, (2, 20))
    with torch.no_grad():
        expected = pruned(ids).logits
        pruned.compile_blocks(backend="aot_eager")
        torch.testing.assert_close(pruned(ids).logits, expected, **TOLERANCE)


def pickled(model: FTPForCausalLM) -> FTPForCausalLM:
    copied: FTPForCausalLM = pickle.loads(pickle.dumps(model))
    return copied


@pytest.mark.parametrize("make", [copy.deepcopy, pickled])
@pytest.mark.parametrize("is_compiled", [False, True])
def test_a_copy_runs_its_own_weights_even_if_the_blocks_were_compiled(
    make: Callable[[FTPForCausalLM], FTPForCausalLM], is_compiled: bool
) -> None:
    pruned, ids = FTPForCausalLM.from_dense(fresh_tiny(), MIXED, random_router(1)), torch.randint(3, 50, (2, 20))
    if is_compiled:
        pruned.compile_blocks(backend="eager")
    with torch.no_grad():
        expected = pruned(ids).logits
        copied = make(pruned)
        torch.testing.assert_close(copied(ids).logits, expected, **TOLERANCE)
        for parameter in copied.base.model.layers.parameters():
            parameter.zero_()
        # Blocks of zeros hand hidden states on as they are.
        embedded = copied.base.model.norm(copied.get_input_embeddings()(ids))
        torch.testing.assert_close(copied(ids).logits, copied.base.lm_head(embedded), **TOLERANCE)
        assert torch.equal(pruned(ids).logits, expected)
        # A copy of the copy, and blocks that are compiled again, are no exceptions.
        copied.compile_blocks(backend="eager")
        copied.compile_blocks(backend="eager")
        torch.testing.assert_close(make(copied)(ids).logits, copied.base.lm_head(embedded), **TOLERANCE)


@pytest.mark.parametrize(
    ("schedule", "message"),
    [
        ([0.1, 0.1], "2 sparsities, but the model has 3 blocks"),
        ([0.1, 0.1, 1.0], "Sparsity 1.0 of block 2 is outside"),
        ([0.1, -0.1, 0.0], "Sparsity -0.1 of block 1 is outside"),
        ([float("nan"), 0.0, 0.0], "Sparsity nan of block 0 is outside"),
        ([0.1, "a", 0.0], "Sparsity 'a' of block 1 is not a number"),
        ([0.1, None, 0.0], "Sparsity None of block 1 is not a number"),
        (0.3, "one sparsity per block, but 0.3 was given"),
    ],
)
def test_a_schedule_that_does_not_fit_is_refused(schedule: Any, message: str) -> None:
    with pytest.raises(ScheduleError, match=message):
        FTPForCausalLM.from_dense(tiny(), schedule)


def test_prompts_that_cannot_run_are_refused() -> None:
    pruned = FTPForCausalLM.from_dense(tiny(), MIXED)
    with pytest.raises(DataError, match="empty"):
        pruned(torch.zeros(1, 0, dtype=torch.long))
    with pytest.raises(
        DataError, match=f"Row 0 of the batch is {CONTEXT + 1} tokens long, but the model reads {CONTEXT}"
    ):
        pruned(torch.ones(1, CONTEXT + 1, dtype=torch.long))
    with pytest.raises(DataError, match="Row 1 of the batch is all padding"):
        pruned(torch.ones(2, 4, dtype=torch.long), attention_mask=torch.tensor([[1] * 4, [0] * 4]))
    for shape in ((1, 1, 4, 4), (1, 3), (2, 4)):
        with pytest.raises(DataError, match=rf"shape \({', '.join(map(str, shape))}\), but skipping needs \(1, 4\)"):
            pruned(torch.ones(1, 4, dtype=torch.long), attention_mask=torch.ones(*shape))
    for length in (0, 5, torch.tensor([2, 2])):
        with pytest.raises(DataError, match="must be between 1 and the 4 columns"):
            pruned(torch.ones(1, 4, dtype=torch.long), prompt_length=length)


@pytest.mark.parametrize("schedule", [MIXED, [0.0] * N_BLOCKS])
@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        (
            {"input_ids": torch.ones(4, dtype=torch.long)},
            r"input_ids has the shape \(4,\), but must be a tensor \[B, L\]",
        ),
        ({"input_ids": [[1, 2, 3]]}, r"input_ids is a list, but must be a tensor \[B, L\]"),
        ({"inputs_embeds": torch.ones(1, 4)}, r"inputs_embeds has the shape \(1, 4\), but .* \[B, L, D\]"),
        (
            {"input_ids": torch.tensor([[3, 50]])},
            "input_ids holds the token 50, but the model knows 50 tokens, 0 to 49",
        ),
        ({"input_ids": torch.tensor([[3, -2]])}, "input_ids holds the token -2"),
        ({}, "either input_ids or inputs_embeds"),
    ],
)
def test_inputs_that_are_no_batch_of_the_models_tokens_are_refused(
    inputs: dict[str, Any], message: str, schedule: Any
) -> None:
    with pytest.raises(DataError, match=message):
        FTPForCausalLM.from_dense(tiny(), schedule)(**inputs)


@pytest.mark.parametrize("share", [1.0, -0.1, float("nan"), "half", None])
def test_a_share_of_decoded_tokens_that_is_none_is_refused(share: Any) -> None:
    with pytest.raises(ScheduleError, match=rf"decode_sparsity is {share!r}, but must be a number in \[0, 0.95\]"):
        FTPForCausalLM.from_dense(tiny(), MIXED, decode_sparsity=share)


def test_what_is_no_dense_model_or_no_router_is_refused() -> None:
    pruned = FTPForCausalLM.from_dense(tiny(), MIXED)
    for model in ("a/model", torch.nn.Linear(2, 2), SkippingModel(fresh_tiny()), pruned):
        with pytest.raises(ModelError, match=f"A {type(model).__name__} is no dense model: give a transformers model"):
            FTPForCausalLM.from_dense(model, MIXED)  # type: ignore[arg-type]
    for router in ("static", StaticRouter, 3):
        with pytest.raises(ModelError, match=r"is no router: give an object such as StaticRouter\(\)"):
            FTPForCausalLM.from_dense(tiny(), MIXED, router)  # type: ignore[arg-type]
        with pytest.raises(ModelError, match="is no router"):
            pruned.set_router(router)  # type: ignore[arg-type]


def test_tokens_behind_a_prompt_that_cannot_run_are_refused() -> None:
    pruned = FTPForCausalLM.from_dense(tiny("gpt2"), MIXED)
    with torch.no_grad():
        cache = pruned(torch.ones(2, CONTEXT - 1, dtype=torch.long), use_cache=True).past_key_values
        with pytest.raises(DataError, match="no new token"):
            pruned(torch.ones(2, 0, dtype=torch.long), past_key_values=cache)
        with pytest.raises(DataError, match="1 rows, but the cache holds 2"):
            pruned(torch.ones(1, 1, dtype=torch.long), past_key_values=cache)
        with pytest.raises(DataError, match="shape .2, 1., but skipping needs .2, 128."):
            pruned(torch.ones(2, 1, dtype=torch.long), attention_mask=torch.ones(2, 1), past_key_values=cache)
        pruned(torch.ones(2, 1, dtype=torch.long), past_key_values=cache)
        with pytest.raises(DataError, match="129 tokens are more than the 128 that the model has positions for"):
            pruned(torch.ones(2, 1, dtype=torch.long), past_key_values=cache)


def test_a_cache_whose_pass_broke_off_is_refused() -> None:
    model = fresh_tiny()
    pruned = FTPForCausalLM.from_dense(model, MIXED)
    ids = torch.randint(3, 50, (1, 12))

    def fail(*_: object) -> None:
        raise MemoryError

    with torch.no_grad():
        cache = pruned(ids, use_cache=True).past_key_values
        handle = model.model.layers[1].mlp.register_forward_hook(fail)
        with pytest.raises(MemoryError):
            pruned(ids[:, :1], past_key_values=cache)
        handle.remove()
        with pytest.raises(ModelError, match="broke off while it filled this cache"):
            pruned(ids[:, :1], past_key_values=cache)
        assert pruned(ids).logits.shape == (1, 12, 50)


def test_models_and_routers_that_do_not_fit_are_refused() -> None:
    broken = fresh_tiny()
    broken.model.layers[1].mlp.up_proj.weight.data[0, 0] = float("nan")
    with pytest.raises(ModelError, match=r"layers\.1\.mlp\.up_proj\.weight of the model is not finite"):
        FTPForCausalLM.from_dense(broken, MIXED)
    router = DynamicRouter()
    router.trained_for = "another"
    with pytest.raises(ModelError, match="trained for another model"):
        FTPForCausalLM.from_dense(tiny(), MIXED, router)
    for unfit, message in (
        (LocalRouter(2), "2 blocks, but the model has 3"),
        (HiddenRouter(16), "width 16, but"),
        (
            OnePassRouter(16, 3),
            "3 blocks and states of width 16, but the model has 3 blocks, and its states are 32 wide",
        ),
        (OnePassRouter(32, 2), "2 blocks and states of width 32, but the model has 3 blocks"),
    ):
        with pytest.raises(ModelError, match=message):
            FTPForCausalLM.from_dense(tiny(), MIXED, unfit)
    router = DynamicRouter()
    router.set_thresholds([0.0], SparsitySchedule([0.5]))
    with pytest.raises(ModelError, match="1 thresholds, but the model has 3 blocks"):
        FTPForCausalLM.from_dense(tiny(), MIXED, router)
    router = DynamicRouter()
    router.mlp[0].weight.data[0, 0] = float("inf")
    with pytest.raises(ModelError, match="not finite"):
        FTPForCausalLM.from_dense(tiny(), MIXED, router)
    cache = DynamicCache()
    cache.update(torch.zeros(1, 2, 4, 8), torch.zeros(1, 2, 4, 8), 0)
    with pytest.raises(ModelError, match="cannot go on"):
        FTPForCausalLM.from_dense(tiny(), MIXED)(torch.ones(1, 2, dtype=torch.long), past_key_values=cache)


def test_families_can_be_added_but_not_replaced() -> None:
    register_family("llama", Family())
    with pytest.raises(ModelError, match="registered already"):
        register_family("llama", Family(decoder="other"))
    assert {"llama", "qwen2", "qwen3", "mistral", "gemma2", "gemma3_text", "phi3", "olmo2", "gpt_neox", "gpt2"} <= set(
        supported_families()
    )
