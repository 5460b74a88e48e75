"""What prompts begin with is found in their tokens, and a chat's system turn as the tokenizer's template writes it."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from ftp_core.demo import assets
from ftp_core.text.beginnings import SystemTurn, shared_beginning
from ftp_core.text.boundary import beginning_length
from tests.ftp_core.small_tokenizers import KINDS, PIECES, TEXTS, ids_around, tokenizer_of

CHATML = (
    "{% for m in messages %}{{ '<|' + m['role'] + '|>\n' + m['content'] + '</s>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif %}"
)
TEMPLATES = {
    "chatml": CHATML,
    "begins with the token of every text": "{{ bos_token }}" + CHATML,
    "trims": CHATML.replace("m['content']", "m['content'] | trim"),
    "system in the first user turn": (
        "{% for m in messages %}{% if m['role'] == 'system' %}"
        "{{ '[INST] <<SYS>>\n' + m['content'] + '\n<</SYS>>\n\n' }}"
        "{% else %}{{ m['content'] + ' [/INST]' }}{% endif %}{% endfor %}"
    ),
}
NO_SYSTEM = {
    "none": None,
    "refuses": "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system') }}{% endif %}" + CHATML,
    "leaves it out": "{% for m in messages %}{% if m['role'] == 'user' %}{{ m['content'] }}{% endif %}{% endfor %}",
}


@pytest.fixture(scope="module")
def demo() -> PreTrainedTokenizerBase:
    tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(assets())
    return tokenizer


def with_template(tokenizer: PreTrainedTokenizerBase, template: str | None) -> PreTrainedTokenizerBase:
    other = copy.deepcopy(tokenizer)
    other.chat_template = template
    return other


def chat(tokenizer: PreTrainedTokenizerBase, system: str, user: str) -> str:
    messages = [{"role": "system", "content": system}, {"role": "user", "content": user}]
    return str(tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True))


@given(
    prompts=st.lists(st.lists(st.integers(0, 2), max_size=6), min_size=1, max_size=8),
    percent=st.integers(1, 100),
)
def test_the_shared_beginning_is_the_longest_that_enough_prompts_have(prompts: list[list[int]], percent: int) -> None:
    shared = shared_beginning(prompts, percent / 100)

    def n_with(tokens: Sequence[int]) -> int:
        return sum(prompt[: len(tokens)] == list(tokens) for prompt in prompts)

    every = {tuple(prompt[:n]) for prompt in prompts for n in range(len(prompt) + 1)}
    enough = [one for one in every if 100 * n_with(one) >= percent * len(prompts)]
    assert len(shared.tokens) == max(map(len, enough))
    assert shared.n_prompts == n_with(shared.tokens) and shared.tokens in enough


@pytest.mark.parametrize("name", TEMPLATES)
def test_the_system_turn_of_a_chat_is_what_its_template_writes(name: str, demo: PreTrainedTokenizerBase) -> None:
    tokenizer = with_template(demo, TEMPLATES[name])
    turn = SystemTurn.of(tokenizer)
    assert turn is not None
    whole = chat(tokenizer, "Be short.", "Who are you?")
    begin = whole[: whole.index("Who")]
    # A tokenizer may put the token before the text that the template has written already.
    for prompt in (whole, whole.removeprefix("<s>"), "<s>" + whole.removeprefix("<s>")):
        found = turn.in_text(tokenizer, prompt)
        assert found is not None and prompt.startswith(found)
        assert found.removeprefix("<s>") == begin.removeprefix("<s>")
    assert turn.in_text(tokenizer, "Who are you?") is None
    assert turn.in_text(tokenizer, turn.before + "Be short.") is None


@pytest.mark.parametrize("name", NO_SYSTEM)
def test_templates_without_a_system_turn_have_none(name: str, demo: PreTrainedTokenizerBase) -> None:
    assert SystemTurn.of(with_template(demo, NO_SYSTEM[name])) is None


@pytest.mark.parametrize("kind", KINDS)
@given(beginning=st.sampled_from(TEXTS), rest=st.sampled_from(PIECES))
def test_a_beginning_ends_with_the_last_token_that_it_shares_with_the_text(
    kind: str, beginning: str, rest: str
) -> None:
    tokenizer, (before, behind) = tokenizer_of(kind), ids_around(kind)
    wholes: list[list[int]] = [tokenizer(text)["input_ids"] for text in (beginning, beginning + rest)]
    alone, whole = (ids[: len(ids) - len(behind)] for ids in wholes)
    agreeing = max(n for n in range(min(len(alone), len(whole)) + 1) if alone[:n] == whole[:n])
    expected = len(alone) if agreeing == len(alone) else agreeing + 1
    assert beginning_length(tokenizer, beginning, beginning + rest) == expected >= len(before)


def test_a_token_that_reaches_beyond_a_beginning_is_of_it() -> None:
    tokenizer = tokenizer_of("line breaks")
    text = "Question: who?\nAnswer: C"
    colon = "Question:"
    assert beginning_length(tokenizer, colon, text) == len(tokenizer(colon)["input_ids"])
    cut = "Question: who?\nAns"
    first = tokenizer(text)["input_ids"][: beginning_length(tokenizer, cut, text)]
    assert str(tokenizer.decode(first, skip_special_tokens=True)).startswith(cut)
