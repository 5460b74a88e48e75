"""The ids of a prompt and of what follows it are those of the whole text, wherever a token spans both."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoTokenizer, ByT5Tokenizer, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerBase

from ftp_core.demo.examples import demo_examples
from ftp_core.errors import ModelError
from ftp_core.quality.quality import QualitySet
from ftp_core.routers import StaticRouter
from ftp_core.skipping.skipping_model import SkippingModel
from ftp_core.sources.json_lines import load_jsonl
from ftp_core.text.boundary import common_length, divide
from ftp_core.text.data import Example
from ftp_core.text.encoding import ExampleError, LeftOut, encode
from ftp_core.training.gated import TrainingBatch
from tests.ftp_core.small_tokenizers import KINDS, PIECES, ids_around, tokenizer_of

CONTEXT = 10_000
texts = st.lists(st.sampled_from(PIECES), max_size=6).map("".join)
answers = st.lists(texts, min_size=1, max_size=3)


def whole_ids(tokenizer: PreTrainedTokenizerBase, behind: list[int], text: str) -> list[int]:
    """What the tokenizer itself makes of a text, but for what it appends."""
    ids: list[int] = tokenizer(text)["input_ids"]
    assert ids[len(ids) - len(behind) :] == behind
    return ids[: len(ids) - len(behind)]


def longest_agreement(alone: list[int], wholes: list[list[int]]) -> int:
    """By trying every length, the longest first."""
    return next(n for n in range(len(alone), -1, -1) if all(whole[:n] == alone[:n] for whole in wholes))


def as_lm_eval(tokenizer: PreTrainedTokenizerBase, prompt: str, text: str) -> tuple[list[int], list[int]]:
    """`TemplateLM._encode_pair` of lm-eval 0.4.13."""
    n_spaces = len(prompt) - len(prompt.rstrip())
    if n_spaces > 0:
        prompt, text = prompt[:-n_spaces], prompt[-n_spaces:] + text
    context, whole = tokenizer(prompt)["input_ids"], tokenizer(prompt + text)["input_ids"]
    return context, whole[len(context) :]


def assert_divided(
    tokenizer: PreTrainedTokenizerBase, around: tuple[list[int], list[int]], prompt: str, choices: list[str]
) -> None:
    before, behind = around
    wholes = [whole_ids(tokenizer, behind, prompt + choice) for choice in choices]
    alone = whole_ids(tokenizer, behind, prompt.rstrip())
    n = longest_agreement(alone, wholes)
    divided = divide(tokenizer, prompt, choices)
    if wholes == [before] * len(choices):
        assert not any(divided.continuations)
        return
    assert divided.prompt == tuple(alone[:n]) and divided.prompt[: len(before)] == tuple(before)
    assert divided.n_shared == len(alone) - n
    for ids, whole in zip(divided.continuations, wholes, strict=True):
        assert [*divided.prompt, *ids] == whole
    # Without special tokens, the same boundary.
    bare = divide(tokenizer, prompt, choices, special_tokens=False)
    assert bare.prompt == divided.prompt[len(before) :] and bare.continuations == divided.continuations
    example = Example(prompt, choices[0], tuple(choices), 0)
    if n == 0 or any(len(whole) == n for whole in wholes):
        with pytest.raises(ExampleError) as caught:
            encode(tokenizer, [example], CONTEXT)
        every_one_adds = all(len(whole) > n for whole in wholes)
        assert caught.value.reason is (LeftOut.NO_PROMPT if every_one_adds else LeftOut.NO_CONTINUATION)
        return
    (one,) = encode(tokenizer, [example], CONTEXT)
    assert (one.prompt, one.continuations, one.n_shared) == (divided.prompt, divided.continuations, divided.n_shared)


@pytest.mark.parametrize("kind", KINDS)
@given(prompt=texts, choices=answers)
def test_behind_each_other_the_ids_are_those_of_the_whole_text(kind: str, prompt: str, choices: list[str]) -> None:
    assert_divided(tokenizer_of(kind), ids_around(kind), prompt, choices)


@given(prompt=texts, choices=answers)
def test_the_same_goes_for_a_tokenizer_of_a_pretrained_model(assets: Path, prompt: str, choices: list[str]) -> None:
    tokenizer = AutoTokenizer.from_pretrained(assets / "models/stories260K")
    assert_divided(tokenizer, ([tokenizer.bos_token_id], []), prompt, choices)


@pytest.mark.parametrize("kind", KINDS)
@given(prompt=texts, answer=texts)
def test_where_no_token_is_shared_the_ids_are_those_of_lm_eval(kind: str, prompt: str, answer: str) -> None:
    tokenizer, (_, behind) = tokenizer_of(kind), ids_around(kind)
    context, continuation = as_lm_eval(tokenizer, prompt, answer)
    divided = divide(tokenizer, prompt, [answer])
    # lm-eval counts what is appended to the prompt alone, too.
    if divided.n_shared or behind or not divided.continuations[0]:
        return
    assert (list(divided.prompt), list(divided.continuations[0])) == (context, continuation)


@pytest.mark.parametrize("name", ["alpaca", "arc_easy", "arc_challenge", "hellaswag", "winogrande"])
def test_real_data_that_shares_no_token_reads_as_it_always_did(assets: Path, name: str) -> None:
    tokenizer = AutoTokenizer.from_pretrained(assets / "models/stories260K")
    for example in load_jsonl(assets / "data" / f"{name}.jsonl")[:100]:
        choices = example.choices or (example.completion,)
        pairs = [as_lm_eval(tokenizer, example.prompt, choice) for choice in choices]
        divided = divide(tokenizer, example.prompt, choices)
        assert divided.n_shared == 0
        assert [(list(divided.prompt), list(ids)) for ids in divided.continuations] == pairs


def test_the_demo_reads_as_it_always_did() -> None:
    tokenizer = tokenizer_of("demo")
    for example in demo_examples("test", 50, 0):
        divided = divide(tokenizer, example.prompt, example.choices)
        pairs = [as_lm_eval(tokenizer, example.prompt, choice) for choice in example.choices]
        assert [(list(divided.prompt), list(ids)) for ids in divided.continuations] == pairs


@pytest.mark.parametrize(
    ("kind", "prompt", "completion", "read", "follows"),
    [
        ("line breaks", "print(", '"hello")', "print", '("hello")'),
        ("line breaks", "hello wor", "ld", "hello", " world"),
        ("line breaks", "### Response:", "\nhello", "### Response", ":\nhello"),
        ("line breaks", "### Response:\n", "hello", "### Response", ":\nhello"),
        ("across words", "zz: hello wor", "ld, the answer", "zz: ", "hello world, the answer"),
        ("composed", "hello cafe", "\u0301", "hello", " café"),
        ("byte fallback", "hello, 你", "好世界", "hello, ", "你好世界"),
        ("unigram", "hello wor", "ld", "hello", " world"),
        ("slow words", "hello wor", "ld", "hello", "world"),
    ],
)
def test_a_token_that_spans_the_end_of_the_prompt_is_a_part_of_what_follows(
    kind: str, prompt: str, completion: str, read: str, follows: str
) -> None:
    tokenizer = tokenizer_of(kind)
    (one,) = encode(tokenizer, [Example(prompt, completion)], CONTEXT)
    assert one.n_shared > 0
    assert tokenizer.decode(one.prompt, skip_special_tokens=True).strip() == read.strip()
    assert tokenizer.decode(one.continuations[0], skip_special_tokens=True).strip() == follows.strip()


def test_a_character_may_be_cut_between_its_bytes() -> None:
    tokenizer = tokenizer_of("split characters")
    (one,) = encode(tokenizer, [Example("说 你", "好")], CONTEXT)
    assert one.n_shared == 1 and tokenizer.decode(one.prompt, skip_special_tokens=True) == "说 \ufffd"
    assert tokenizer.decode([*one.prompt, *one.continuations[0]], skip_special_tokens=True) == "说 你好"


def test_choices_continue_one_prompt_and_each_has_the_same_text_of_it_before_its_own() -> None:
    tokenizer = tokenizer_of("line breaks")
    item = Example("def print(", '"hello")', ('"hello")', "world):", " hello"), 0)
    (one,) = encode(tokenizer, [item], CONTEXT)
    # Only the first choice shares a token with the prompt.
    assert [divide(tokenizer, item.prompt, [choice]).n_shared for choice in item.choices] == [1, 0, 0]
    decoded = [tokenizer.decode(ids) for ids in one.continuations]
    assert decoded == ['("hello")', "(world):", "( hello"]
    assert one.choice_lengths == (len('"hello")'), len("world):"), len("hello"))


@pytest.mark.parametrize("kind", ["line breaks", "across words", "byte fallback", "wordpiece"])
def test_choices_are_compared_by_the_likelihood_of_their_whole_texts(kind: str) -> None:
    tokenizer = tokenizer_of(kind)
    choices = ('"hello")', "hello):", " hello", "你好")
    items = [
        Example(prompt, choices[0], choices, 0)
        for prompt in ("zz def print(", "zz hello world print(", "zz: C print(", "zz, print(hello world) print(")
    ]
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        initializer_range=0.4,
    )
    dense = LlamaForCausalLM(config).eval()
    encoded = encode(tokenizer, items, CONTEXT)
    skipping = SkippingModel(dense)
    found = QualitySet(skipping, encoded).per_item([0.0, 0.0], StaticRouter())
    _, behind = ids_around(kind)
    margins = []
    for item, one, answer in zip(items, encoded, found, strict=True):
        scores, likelihoods = [], []
        for choice in choices:
            ids = torch.tensor([whole_ids(tokenizer, behind, item.prompt + choice)])
            with torch.no_grad():
                log_probs = dense(ids).logits[0, :-1].log_softmax(-1).gather(-1, ids[0, 1:, None])[:, 0]
            scores.append(float(log_probs.sum()))
            likelihoods.append(float(log_probs[len(one.prompt) - 1 :].sum()))
        # What all texts begin with says nothing of the choices.
        ranked = sorted(range(len(choices)), key=scores.__getitem__, reverse=True)
        assert ranked == sorted(range(len(choices)), key=likelihoods.__getitem__, reverse=True)
        margins.append(scores[ranked[0]] - scores[ranked[1]])
        assert answer.choice == ranked[0]
    assert min(margins) > 1e-3


def test_training_and_evaluation_read_the_same_text() -> None:
    tokenizer = tokenizer_of("line breaks")
    examples = [Example("print(", '"hello")'), Example("hello wor", "ld"), Example("你", "好世界")]
    encoded = encode(tokenizer, examples, CONTEXT)
    batch = TrainingBatch.of(encoded)
    for row, one, example in zip(batch.ids.tolist(), encoded, examples, strict=True):
        n = len(one.prompt) + len(one.continuations[0])
        assert row[:n] == tokenizer(example.prompt + example.completion)["input_ids"]
    assert batch.prompt_lengths.tolist() == [len(one.prompt) for one in encoded]


@pytest.mark.parametrize(
    ("kind", "example", "reason", "message"),
    [
        ("across words", Example("Ans", "wer"), LeftOut.NO_PROMPT, "no token that is of its prompt alone"),
        ("across words", Example("", "hello"), LeftOut.NO_PROMPT, "a prompt without any token"),
        ("slow words", Example("hel", "lo"), LeftOut.NO_PROMPT, "End the prompt where a word ends"),
        ("wordpiece", Example("hello cafe", "\u0301"), LeftOut.NO_CONTINUATION, "the same tokens of its prompt"),
        ("demo", Example("hello", ""), LeftOut.NO_CONTINUATION, "without any token"),
        ("demo", Example("hello", " a", (" a", ""), 0), LeftOut.NO_CONTINUATION, "a choice without any token"),
        ("demo", Example("hello" * 30, "x"), LeftOut.TOO_LONG, "tokens long, but the model reads 20"),
    ],
)
def test_what_cannot_be_evaluated_is_an_error_with_its_reason(
    kind: str, example: Example, reason: LeftOut, message: str
) -> None:
    with pytest.raises(ExampleError, match=message) as caught:
        encode(tokenizer_of(kind), [example], context=20)
    assert caught.value.reason is reason


def test_a_prompt_of_which_nothing_is_left_is_the_token_that_every_text_begins_with() -> None:
    tokenizer = tokenizer_of("line breaks")
    for prompt in ("Ans", ""):
        (one,) = encode(tokenizer, [Example(prompt, "wer" if prompt else "Answer")], CONTEXT)
        assert one.prompt == (tokenizer.bos_token_id,)
        assert tokenizer.decode(one.continuations[0]) == "Answer"


@pytest.mark.parametrize("kind", ["line breaks", "byte fallback", "demo", "unigram"])
def test_special_tokens_that_are_written_are_not_put_there_again(kind: str) -> None:
    tokenizer = tokenizer_of(kind)
    plain, written = (divide(tokenizer, f"{start}hello", [" world</s>"]) for start in ("", "<s>"))
    start, end = tokenizer.convert_tokens_to_ids(["<s>", "</s>"])
    for divided in (plain, written):
        ids = [*divided.prompt, *divided.continuations[0]]
        assert ids.count(start) == 1 and ids[0] == start
        assert ids.count(end) == 1 and ids[-1] == end


class _Marked(ByT5Tokenizer):
    """Writes special tokens within a text."""

    def build_inputs_with_special_tokens(self, token_ids_0: list[int], *_: Any) -> list[int]:
        return [token for pair in token_ids_0 for token in (pair, 1)]


def test_a_tokenizer_whose_special_tokens_are_everywhere_is_refused() -> None:
    with pytest.raises(ModelError, match="_Marked.*otherwise with special tokens than without"):
        divide(_Marked(extra_ids=0), "hello", [" world"])


@given(one=texts, other=texts)
def test_what_two_texts_begin_with_is_the_longest_beginning_of_both(one: str, other: str) -> None:
    n = common_length(one, other)
    assert one[:n] == other[:n]
    assert n == min(len(one), len(other)) or one[n] != other[n]
