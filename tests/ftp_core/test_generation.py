"""`generate` in all its ways writes what it writes without a cache; outputs are transformers' own."""

from __future__ import annotations

import threading

import pytest
import torch
from transformers import AutoTokenizer, pipeline

from ftp_core.cache import FTPCache
from ftp_core.causal_lm import FTPForCausalLM
from ftp_core.demo import assets
from ftp_core.errors import ModelError
from ftp_core.models import load_model
from ftp_core.routers import RandomRouter, Router, StaticRouter
from tests.ftp_core.routers import random_router
from tests.ftp_core.test_causal_lm import MIXED, TOLERANCE, padded
from tests.ftp_core.tiny_models import N_BLOCKS, fresh_tiny, tiny

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
