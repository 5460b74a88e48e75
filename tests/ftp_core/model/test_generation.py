"""`generate` in all its ways writes what it writes without a cache; outputs are transformers' own."""

from __future__ import annotations

import threading

import pytest
import torch
from transformers import AutoTokenizer, DynamicCache, LlamaForCausalLM, StaticCache, pipeline

from ftp_core.demo import assets
from ftp_core.errors import DataError, ModelError
from ftp_core.loading.models import load_model
from ftp_core.model.causal_lm import FTPForCausalLM
from ftp_core.routers import RandomRouter, Router, StaticRouter
from ftp_core.skipping.cache import FTPCache
from tests.ftp_core.made_up_routers import random_router
from tests.ftp_core.model.test_causal_lm import MIXED, TOLERANCE, padded
from tests.ftp_core.tiny_models import CONFIGS, LENGTH_DEPENDENT, N_BLOCKS, ORIGINAL_CONTEXT, each, fresh_tiny, tiny

FAMILIES = ["llama", "mistral-sliding", "gemma3_text", "gpt2"]


@pytest.mark.parametrize("name", ["llama", "gemma2", "gpt_neox"])
def test_beam_search_with_a_cache_equals_beam_search_without(name: str) -> None:
    pruned = FTPForCausalLM.from_dense(tiny(name), MIXED, random_router(2, window=4))
    batch = padded([list(range(3, 20)), [5, 9, 13, 17, 21]], "left")
    options = {"max_new_tokens": 6, "num_beams": 3, "attention_mask": batch["attention_mask"]}
    cached = pruned.generate(batch["input_ids"], **options)
    assert torch.equal(cached, pruned.generate(batch["input_ids"], **options, use_cache=False))


def pruned_tiny(name: str = "llama", **options: float) -> FTPForCausalLM:
    return FTPForCausalLM.from_dense(tiny(name), MIXED, random_router(2, window=4), **options)


@pytest.mark.parametrize("name", FAMILIES)
def test_candidates_looked_up_in_the_prompt_change_nothing(name: str) -> None:
    pruned = pruned_tiny(name)
    ids = torch.randint(3, 9, (1, 24))
    options = {"max_new_tokens": 20, "min_new_tokens": 20, "do_sample": False}
    greedy = pruned.generate(ids, **options)
    assert torch.equal(pruned.generate(ids, **options, prompt_lookup_num_tokens=4), greedy)


@pytest.mark.parametrize("name", ["llama", "mistral-sliding"])
def test_a_pruned_model_assists_and_is_assisted_without_changing_the_text(name: str) -> None:
    pruned, dense = pruned_tiny(name), tiny(name)
    ids = torch.randint(3, 50, (1, 20))
    options = {"max_new_tokens": 16, "min_new_tokens": 16, "do_sample": False}
    assert torch.equal(dense.generate(ids, **options, assistant_model=pruned), dense.generate(ids, **options))
    assert torch.equal(pruned.generate(ids, **options, assistant_model=dense), pruned.generate(ids, **options))


@pytest.mark.parametrize("name", FAMILIES)
def test_tokens_taken_back_leave_no_trace(name: str) -> None:
    pruned, ids = pruned_tiny(name), torch.randint(3, 50, (2, 40))
    with torch.no_grad():
        cache = pruned(ids[:, :24], use_cache=True).past_key_values
        cache.activate_past_recording()
        pruned(ids[:, 30:36], past_key_values=cache)
        cache.crop(-6)
        assert cache.get_seq_length() == 24
        for column in range(24, 40):
            found = pruned(ids[:, column : column + 1], past_key_values=cache).logits
            cache.crop(0)
            expected = pruned(ids[:, : column + 1], prompt_length=24).logits[:, -1:]
            torch.testing.assert_close(found, expected, **TOLERANCE)


def test_a_cache_says_what_it_cannot_take_back() -> None:
    pruned, ids = pruned_tiny("mistral-sliding"), torch.randint(3, 50, (1, 100))
    with torch.no_grad():
        cache = pruned(ids[:, :60], use_cache=True).past_key_values
        with pytest.raises(ModelError, match="call activate_past_recording before"):
            cache.crop(-10)
        with pytest.raises(ModelError, match="give a negative number"):
            cache.crop(3)
        with pytest.raises(ModelError, match="only 60 have been seen"):
            cache.crop(-61)
        routed = pruned_tiny(decode_sparsity=0.5)
        cache = routed(ids, use_cache=True).past_key_values
    assert not cache.is_croppable
    with pytest.raises(ModelError, match="set decode_sparsity to 0"):
        cache.crop(-1)


@pytest.mark.parametrize("decode_sparsity", [0.0, 0.5])
@pytest.mark.parametrize("use_cache", [True, False])
@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_embeddings_generate_what_their_tokens_generate(name: str, use_cache: bool, decode_sparsity: float) -> None:
    pruned, ids = pruned_tiny(name, decode_sparsity=decode_sparsity), torch.randint(3, 50, (2, 12))
    options = {"max_new_tokens": 6, "min_new_tokens": 6, "use_cache": use_cache}
    expected = pruned.generate(ids, **options)[:, 12:]
    embeddings = pruned.get_input_embeddings()(ids)
    assert torch.equal(pruned.generate(inputs_embeds=embeddings, **options), expected)


@pytest.mark.parametrize("beams", [1, 3])
def test_rows_whose_prompts_end_at_different_columns_generate_as_without_a_cache(beams: int) -> None:
    pruned, ids = pruned_tiny(), torch.randint(3, 50, (2, 16))
    options = {"max_new_tokens": 6, "prompt_length": torch.tensor([12, 9]), "num_beams": beams}
    assert torch.equal(pruned.generate(ids, **options), pruned.generate(ids, **options, use_cache=False))
    pruned.decode_sparsity = 0.5
    with pytest.raises(ModelError, match="end at different columns"):
        pruned.generate(ids, **options)


def test_a_cache_of_the_users_own_is_filled() -> None:
    pruned, ids = pruned_tiny(decode_sparsity=0.5), torch.randint(3, 50, (1, 12))
    cache = FTPCache([None] * N_BLOCKS)
    with torch.no_grad():
        out = pruned(ids, past_key_values=cache, prompt_length=8)
    assert out.past_key_values is cache and cache.get_seq_length() == 12


@pytest.mark.parametrize("decode_sparsity", [0.0, 0.5])
def test_outputs_are_those_of_transformers(decode_sparsity: float) -> None:
    pruned, ids = pruned_tiny(decode_sparsity=decode_sparsity), torch.randint(3, 50, (1, 16))
    labels = ids.masked_fill(torch.arange(16) < 10, -100)
    with torch.no_grad():
        plain = pruned(ids, labels=labels)
        scaled = pruned(ids, labels=labels, num_items_in_batch=12)
        loss, logits, *_ = pruned(ids, labels=labels, return_dict=False)
    # transformers divides the summed loss by what the trainer says.
    torch.testing.assert_close(scaled.loss, plain.loss * 6 / 12)
    assert torch.equal(loss, plain.loss) and torch.equal(logits, plain.logits)
    if decode_sparsity:
        with pytest.raises(ModelError, match="output_hidden_states is not to be had"):
            pruned(ids, labels=labels, output_hidden_states=True)
    else:
        assert len(pruned(ids, output_hidden_states=True).hidden_states) == N_BLOCKS + 1


def test_decoding_goes_on_where_its_sparsity_is_switched_off() -> None:
    pruned, ids = pruned_tiny(decode_sparsity=0.5), torch.randint(3, 50, (1, 16))
    with torch.no_grad():
        cache = pruned(ids[:, :10], use_cache=True).past_key_values
        pruned(ids[:, 10:12], past_key_values=cache)
        pruned.decode_sparsity = 0.0
        pruned(ids[:, 12:13], past_key_values=cache)
        pruned.decode_sparsity = 0.5
        assert pruned(ids[:, 13:14], past_key_values=cache).logits.isfinite().all()
    assert cache.get_seq_length() == 14


@pytest.mark.parametrize("router", [random_router(2, window=4), RandomRouter(1), StaticRouter()])
def test_the_schedule_may_change_while_tokens_are_decoded(router: Router) -> None:
    pruned = FTPForCausalLM.from_dense(tiny(), [0.5, 0.0, 0.8], router, decode_sparsity=0.9)
    ids = torch.randint(3, 50, (2, 16))
    with torch.no_grad():
        cache = pruned(ids[:, :10], use_cache=True).past_key_values
        # Nothing was compared in the middle block: there, no token is skipped.
        pruned.schedule = [0.5, 0.5, 0.5]
        pruned(ids[:, 10:13], past_key_values=cache)
        assert int(cache.decode.skipped[1].sum()) == 0
        for schedule in ([0.0, 0.0, 0.0], [0.5, 0.5, 0.5]):
            pruned.schedule = schedule
            assert pruned(ids[:, 13:14], past_key_values=cache).logits.isfinite().all()
    assert cache.get_seq_length() == 15


def test_threads_take_turns() -> None:
    pruned, dense = pruned_tiny(), fresh_tiny()
    other = FTPForCausalLM.from_dense(pruned.base, [0.0] * N_BLOCKS)
    ids = torch.randint(3, 50, (1, 20))
    with torch.no_grad():
        expected = {pruned: pruned(ids).logits, other: dense(ids).logits}
    wrong: list[object] = []

    def work(model: FTPForCausalLM) -> None:
        try:
            with torch.no_grad():
                wrong.extend(1 for _ in range(15) if not torch.equal(model(ids).logits, expected[model]))
        except Exception as error:
            wrong.append(error)

    threads = [threading.Thread(target=work, args=(model,)) for model in (pruned, other) * 3]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
    assert all("forward" not in block.__dict__ for block in pruned.base.model.layers)


def test_the_pipeline_of_transformers_writes_what_generate_writes() -> None:
    loaded = load_model("demo")
    pruned = FTPForCausalLM.from_dense(loaded.skipping.model, [0.3] * 12)
    tokenizer = AutoTokenizer.from_pretrained(assets())
    prompt = "Mary went to the garden. John is in the kitchen. Where is Mary?"
    [written] = pipeline("text-generation", model=pruned, tokenizer=tokenizer)(
        prompt, max_new_tokens=5, do_sample=False
    )
    ids = tokenizer(prompt, return_tensors="pt")["input_ids"]
    expected = pruned.generate(ids, max_new_tokens=5, do_sample=False)
    assert written["generated_text"] == tokenizer.decode(expected[0], skip_special_tokens=True)


# The texts grow from one set of rotary frequencies into the other while they are generated.
GROWING = {"max_new_tokens": 12, "min_new_tokens": 12, "do_sample": False}


@pytest.mark.parametrize("beams", [1, 2])
@pytest.mark.parametrize("n_prompt", [ORIGINAL_CONTEXT - 4, ORIGINAL_CONTEXT, ORIGINAL_CONTEXT + 1])
@pytest.mark.parametrize("name", list(LENGTH_DEPENDENT))
def test_a_schedule_of_zeros_stays_the_dense_model_where_frequencies_change(
    name: str, n_prompt: int, beams: int
) -> None:
    dense, ids = tiny(name), torch.randint(3, 50, (2, n_prompt))
    pruned = FTPForCausalLM.from_dense(dense, [0.0] * N_BLOCKS)
    options = {**GROWING, "num_beams": beams, "output_logits": True, "return_dict_in_generate": True}
    found, expected = pruned.generate(ids, **options), dense.generate(ids, **options)
    assert torch.equal(found.sequences, expected.sequences)
    assert all(map(torch.equal, found.logits, expected.logits))


@pytest.mark.parametrize("decode_sparsity", [0.0, 0.4])
def test_a_cache_is_filled_anew_where_frequencies_change(decode_sparsity: float) -> None:
    pruned = pruned_tiny("phi3-longrope", decode_sparsity=decode_sparsity)
    ids = torch.randint(3, 50, (2, ORIGINAL_CONTEXT - 4))
    options = {**GROWING, "output_logits": True, "return_dict_in_generate": True}
    cached, again = pruned.generate(ids, **options), pruned.generate(ids, **options, use_cache=False)
    assert torch.equal(cached.sequences, again.sequences)
    torch.testing.assert_close(torch.stack(cached.logits), torch.stack(again.logits), **TOLERANCE)


@pytest.mark.parametrize("options", [{"cache_implementation": "static"}, {"prefill_chunk_size": 5}], ids=str)
@pytest.mark.parametrize("name", each([*CONFIGS, *LENGTH_DEPENDENT]))
def test_a_schedule_of_zeros_takes_every_cache_and_pass_that_the_dense_model_takes(
    name: str, options: dict[str, object]
) -> None:
    dense, batch = tiny(name), padded([list(range(3, 20)), [5, 9, 13, 17, 21]], "left")
    pruned = FTPForCausalLM.from_dense(dense, [0.0] * N_BLOCKS)
    inputs = {"attention_mask": batch["attention_mask"], "max_new_tokens": 8, **options}
    try:
        expected = dense.generate(batch["input_ids"], **inputs)
    except Exception as error:
        with pytest.raises(type(error)):
            pruned.generate(batch["input_ids"], **inputs)
        return
    assert torch.equal(pruned.generate(batch["input_ids"], **inputs), expected)


@pytest.mark.parametrize("kind", ["static", "offloaded_static", "offloaded", "quantized"])
@pytest.mark.parametrize("name", ["llama", "gemma3_text"])
def test_caches_that_hold_equal_blocks_are_refused_before_anything_runs(name: str, kind: str) -> None:
    with pytest.raises(ModelError, match=f"cache_implementation='{kind}'.*leave it out"):
        pruned_tiny(name).generate(torch.randint(3, 50, (1, 9)), max_new_tokens=3, cache_implementation=kind)


@pytest.mark.parametrize("name", ["llama", "gemma3_text"])
def test_caches_of_the_users_own_that_hold_equal_blocks_are_refused(name: str) -> None:
    pruned, ids = pruned_tiny(name), torch.randint(3, 50, (1, 9))
    caches = [
        StaticCache(config=pruned.base.config, max_cache_len=16),
        DynamicCache(config=pruned.base.config, offloading=True),
    ]
    for cache in caches:
        with pytest.raises(ModelError, match="cannot hold other tokens in every block"):
            pruned(ids, past_key_values=cache)
        with pytest.raises(ModelError, match="cannot hold other tokens in every block"):
            pruned.generate(ids, past_key_values=cache, max_new_tokens=3)


def test_masks_of_all_pairs_are_refused_where_tokens_skip() -> None:
    pruned, ids = pruned_tiny("gemma3_text"), torch.randint(3, 50, (1, 4))
    pairs = torch.ones(1, 1, 4, 4, dtype=torch.bool).tril()
    with pytest.raises(DataError, match=r"\(1, 1, 4, 4\).*skipping needs \(1, 4\)"):
        pruned(ids, attention_mask=pairs)
    with pytest.raises(DataError, match=r"dict.*skipping needs \(1, 4\)"):
        pruned(ids, attention_mask={"full_attention": pairs, "sliding_attention": pairs})


def test_a_schedule_of_zeros_takes_the_masks_of_the_dense_model() -> None:
    dense, ids = tiny("gemma3_text"), torch.randint(3, 50, (1, 4))
    pruned, pairs = FTPForCausalLM.from_dense(dense, [0.0] * N_BLOCKS), torch.ones(1, 1, 4, 4, dtype=torch.bool).tril()
    for mask in (pairs, {"full_attention": pairs, "sliding_attention": pairs}):
        with torch.no_grad():
            assert torch.equal(pruned(ids, attention_mask=mask).logits, dense(ids, attention_mask=mask).logits)


def test_prompts_that_skip_come_in_one_pass_or_are_refused() -> None:
    pruned, ids = pruned_tiny(), torch.randint(3, 50, (2, 12))
    with pytest.raises(ModelError, match="prefill_chunk_size=5 hands the 12 columns"):
        pruned.generate(ids, max_new_tokens=3, prefill_chunk_size=5)
    embeddings = pruned.get_input_embeddings()(ids)
    with pytest.raises(ModelError, match="prefill_chunk_size=5 hands the 12 columns"):
        pruned.generate(inputs_embeds=embeddings, max_new_tokens=3, prefill_chunk_size=5)
    expected = pruned.generate(ids, max_new_tokens=3)
    assert torch.equal(pruned.generate(ids, max_new_tokens=3, prefill_chunk_size=12), expected)


def test_what_follows_a_cached_prompt_may_come_in_parts() -> None:
    pruned, ids = pruned_tiny(), torch.randint(3, 50, (2, 24))

    def cached() -> FTPCache:
        with torch.no_grad():
            return pruned(ids[:, :12], use_cache=True).past_key_values

    expected = pruned.generate(ids, past_key_values=cached(), max_new_tokens=6)
    assert torch.equal(pruned.generate(ids, past_key_values=cached(), max_new_tokens=6, prefill_chunk_size=5), expected)


def test_batching_by_pages_is_refused() -> None:
    with pytest.raises(ModelError, match="Continuous batching"):
        pruned_tiny().generate_batch([[5, 6, 7]])


class _OwnGeneration(LlamaForCausalLM):
    def _update_model_kwargs_for_generation(self, *args: object, **kwargs: object) -> dict[str, object]:
        return super()._update_model_kwargs_for_generation(*args, **kwargs)


def test_a_dense_class_that_generates_in_a_way_of_its_own_is_refused() -> None:
    dense = fresh_tiny()
    dense.__class__ = _OwnGeneration
    pruned = FTPForCausalLM.from_dense(dense, MIXED)
    with pytest.raises(ModelError, match="_OwnGeneration generates in a way of its own .*_update_model_kwargs"):
        pruned.generate(torch.randint(3, 50, (1, 9)), max_new_tokens=3)


@pytest.mark.parametrize("lengths", [(12, 12), (12, 9)], ids=str)
@pytest.mark.parametrize("name", list(LENGTH_DEPENDENT))
def test_a_completion_that_runs_token_by_token_has_the_frequencies_of_its_whole_text(
    name: str, lengths: tuple[int, int]
) -> None:
    # The static router keeps every decoded token: nothing but the way there differs.
    routed, plain = (FTPForCausalLM.from_dense(tiny(name), MIXED, decode_sparsity=share) for share in (0.4, 0.0))
    batch = {"input_ids": torch.randint(3, 50, (2, ORIGINAL_CONTEXT + 4)), "prompt_length": torch.tensor(lengths)}
    with torch.no_grad():
        torch.testing.assert_close(routed(**batch).logits, plain(**batch).logits, **TOLERANCE)
        prompt, rest = batch["input_ids"][:, :12], batch["input_ids"][:, 12:]
        found, expected = (
            model(rest, past_key_values=model(prompt, use_cache=True).past_key_values).logits
            for model in (routed, plain)
        )
    torch.testing.assert_close(found, expected, **TOLERANCE)
