"""Tokens become the text that they stand for, and greedy answers are those that `generate` writes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from ftp_core.demo.examples import demo_examples
from ftp_core.loading.models import LoadedModel, load_model
from ftp_core.model.causal_lm import FTPForCausalLM
from ftp_core.routers import StaticRouter
from ftp_core.schedule import SparsitySchedule
from ftp_core.skipping.skipping_model import SkippingModel
from ftp_core.text.data import Example
from ftp_core.text.encoding import EncodedExample, encode
from search.stages.completions import first_words, greedy_answers, prompt_pieces, prompt_text, text_of
from tests.ftp_core.made_up_routers import random_router
from tests.ftp_core.small_tokenizers import tokenizer_of
from tests.ftp_core.tiny_models import CONTEXT, N_BLOCKS, ORIGINAL_CONTEXT, tiny

PRUNED = SparsitySchedule([0.0] * 4 + [0.5] * 8)
DENSE = SparsitySchedule([0.0] * 12)


@pytest.fixture(scope="module")
def loaded() -> LoadedModel:
    return load_model("demo")


@pytest.fixture(scope="module")
def llama_tokenizer(assets: Path) -> PreTrainedTokenizerBase:
    """Begins every text with a space, and writes what it does not know as bytes."""
    tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(assets / "models/stories260K")
    return tokenizer


def encoded(loaded: LoadedModel, examples: list[Example]) -> list[EncodedExample]:
    return encode(loaded.tokenizer, examples, loaded.skipping.context)


def assert_pieces_are_the_text(tokenizer: PreTrainedTokenizerBase, text: str) -> None:
    ids = tokenizer(text)["input_ids"]
    pieces = prompt_pieces(tokenizer, ids)
    assert "".join(piece for piece, _ in pieces) == prompt_text(tokenizer, ids) == text
    # Every token but those that the tokenizer puts before a text is in one piece.
    places = [place for _, tokens in pieces for place in tokens]
    assert places == list(range(len(ids) - len(places), len(ids)))
    assert all(token in tokenizer.all_special_ids for token in ids[: len(ids) - len(places)])


# No U+0000, which is no text, and no special token, which is no text either.
texts = st.text(st.characters(codec="utf-8", exclude_characters="\0<"), min_size=1)


@given(text=texts)
def test_pieces_of_bytes_join_to_the_text(loaded: LoadedModel, text: str) -> None:
    assert_pieces_are_the_text(loaded.tokenizer, text)


@given(text=texts.map(lambda text: f"a{text}"))
def test_pieces_of_words_and_bytes_join_to_the_text(llama_tokenizer: PreTrainedTokenizerBase, text: str) -> None:
    assert_pieces_are_the_text(llama_tokenizer, text)


def test_a_character_of_several_tokens_is_one_piece_and_every_other_token_its_own(
    loaded: LoadedModel, llama_tokenizer: PreTrainedTokenizerBase
) -> None:
    text = "Anna costs 3 € — naïve 日本 👩."
    ids = loaded.tokenizer(text)["input_ids"]
    pieces = [piece for piece, tokens in prompt_pieces(loaded.tokenizer, ids) if len(tokens) > 1]
    assert pieces == ["€", "—", "ï", "日", "本", "👩"]
    ids = llama_tokenizer(text)["input_ids"]
    pieces = [piece for piece, tokens in prompt_pieces(llama_tokenizer, ids) if len(tokens) > 1]
    assert pieces == ["A", "ï", "日", "本", "👩"]


def test_special_tokens_that_were_written_are_text(loaded: LoadedModel) -> None:
    ids = loaded.tokenizer("Anna</s> Ben")["input_ids"]
    assert prompt_text(loaded.tokenizer, ids) == "Anna</s> Ben"
    assert prompt_text(loaded.tokenizer, [loaded.tokenizer.bos_token_id]) == "<s>"
    assert text_of(loaded.tokenizer, ids, loaded.tokenizer(" Ben.")["input_ids"]) == "Ben."


@pytest.mark.parametrize(
    ("kind", "prompt", "completion", "read", "answered"),
    [
        ("demo", "Anna has the", " lamp", "Anna has the", "lamp"),
        ("line breaks", "print(", '"hello")', "print", '("hello")'),
        ("split characters", "说 你", "好", "说 \ufffd", "你好"),
        ("byte fallback", "zz 你", "好世界", "zz", "你好世界"),
    ],
)
def test_an_answer_is_what_the_text_has_more_than_the_prompt_that_is_read(
    kind: str, prompt: str, completion: str, read: str, answered: str
) -> None:
    tokenizer = tokenizer_of(kind)
    (one,) = encode(tokenizer, [Example(prompt, completion)], 100)
    assert text_of(tokenizer, one.prompt, one.continuations[0]) == answered
    pieces = prompt_pieces(tokenizer, one.prompt)
    assert "".join(piece for piece, _ in pieces) == prompt_text(tokenizer, one.prompt) == read


@pytest.mark.parametrize("window", [0, 8])
def test_greedy_answers_are_what_generate_writes(loaded: LoadedModel, window: int) -> None:
    router = random_router(1, window=window) if window else StaticRouter()
    examples = encoded(loaded, demo_examples("test", 18))
    found = greedy_answers(loaded.skipping, loaded.tokenizer, examples, PRUNED, router, 9)
    pruned = FTPForCausalLM.from_dense(loaded.skipping.model, PRUNED, router)
    for text, example in zip(found, examples, strict=True):
        ids = torch.tensor([example.prompt])
        written = pruned.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=9, do_sample=False)
        assert text == text_of(loaded.tokenizer, example.prompt, written[0, ids.shape[1] :].tolist())
    assert len(set(found)) > 9


def test_a_greedy_answer_ends_where_the_text_does_and_within_the_context(
    loaded: LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    examples = encoded(loaded, demo_examples("test", 3))
    router = StaticRouter()
    whole = greedy_answers(loaded.skipping, loaded.tokenizer, examples, DENSE, router)
    (dot,) = loaded.tokenizer(".", add_special_tokens=False)["input_ids"]
    monkeypatch.setattr(loaded.skipping.model.generation_config, "eos_token_id", [dot, 0])
    ended = greedy_answers(loaded.skipping, loaded.tokenizer, examples, DENSE, router)
    assert ended == [text.partition(".")[0] for text in whole]
    long = [EncodedExample((1, *[dot] * (loaded.skipping.context - 3)), ((dot,),), 0, False)]
    monkeypatch.undo()
    two = greedy_answers(loaded.skipping, loaded.tokenizer, long, DENSE, router, 2)
    assert greedy_answers(loaded.skipping, loaded.tokenizer, long, DENSE, router) == two
    assert greedy_answers(loaded.skipping, loaded.tokenizer, [], DENSE, router) == []


@pytest.mark.parametrize("schedule", [[0.0] * N_BLOCKS, [0.3, 0.0, 0.6]], ids=str)
@pytest.mark.parametrize("name", ["mistral-sliding", "gemma3_text", "phi3-longrope", "gpt2"])
def test_a_greedy_answer_does_not_hang_on_its_neighbours(loaded: LoadedModel, name: str, schedule: list[float]) -> None:
    # One that fills the context, others around a window, and one that grows beyond the original context.
    model, generator = tiny(name), torch.Generator().manual_seed(2)
    lengths = [CONTEXT - 2, 23, 24, 5, ORIGINAL_CONTEXT - 4]
    prompts = [tuple(torch.randint(3, 50, (length,), generator=generator).tolist()) for length in lengths]
    examples = [EncodedExample(prompt, ((3,),), 0, False) for prompt in prompts]
    found = greedy_answers(
        SkippingModel(model), loaded.tokenizer, examples, SparsitySchedule(schedule), StaticRouter(), 9
    )
    pruned = FTPForCausalLM.from_dense(model, schedule)
    for text, prompt in zip(found, prompts, strict=True):
        room = min(9, CONTEXT - len(prompt))
        written = pruned.generate(torch.tensor([prompt]), max_new_tokens=room, do_sample=False)
        assert text == text_of(loaded.tokenizer, prompt, written[0, len(prompt) :].tolist())


def test_the_first_word_of_an_answer_stands_behind_its_white_space(loaded: LoadedModel) -> None:
    stories = demo_examples("test", 18)
    plain = encoded(loaded, [Example(one.prompt, one.completion) for one in stories])
    found = first_words(loaded.skipping, loaded.tokenizer, plain, DENSE, StaticRouter())
    greedy = greedy_answers(loaded.skipping, loaded.tokenizer, plain, DENSE, StaticRouter(), 1)
    for (token, is_right), text, example in zip(found, greedy, plain, strict=True):
        assert text_of(loaded.tokenizer, (), [token]) == text
        assert is_right == (token == example.continuations[0][0])
    assert sum(is_right for _, is_right in found) > 12
    # A line break before the answer, as in Alpaca's data, is taken for given.
    (line_break,) = loaded.tokenizer("\n", add_special_tokens=False)["input_ids"]
    broken = [replace(one, continuations=((line_break, line_break, *one.continuations[0]),)) for one in plain]
    behind = first_words(loaded.skipping, loaded.tokenizer, broken, DENSE, StaticRouter())
    for (token, is_right), example in zip(behind, broken, strict=True):
        with torch.no_grad():
            logits = loaded.skipping.model(torch.tensor([[*example.prompt, line_break, line_break]])).logits[0, -1]
        assert token == int(logits.argmax()) and is_right == (token == example.continuations[0][2])
    blank = [replace(one, continuations=((line_break,) * 2,)) for one in plain[:2]]
    assert len(first_words(loaded.skipping, loaded.tokenizer, blank, DENSE, StaticRouter())) == 2
