"""Prompts are written as a model's chat template writes them, and answers begin where the template ends."""

from __future__ import annotations

import pytest
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from ftp_core.demo import assets
from ftp_core.errors import DataError
from ftp_core.sources.rows import example_of
from ftp_core.text.chat import as_chat
from ftp_core.text.data import Example

TEMPLATE = (
    "{% for m in messages %}{% if m.role == 'tool' %}{{ raise_exception('no tools') }}{% endif %}"
    "<{{ m.role }}>{{ m.content }}</>\n{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}"
)


@pytest.fixture
def tokenizer() -> PreTrainedTokenizerBase:
    loaded: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(assets())
    loaded.chat_template = TEMPLATE
    return loaded


def test_a_prompt_is_the_user_s_message(tokenizer: PreTrainedTokenizerBase) -> None:
    found = as_chat(tokenizer, Example("Why?", " So.", (" So.", " No."), 0, "far"))
    assert found == Example("<user>Why?</>\n<assistant>", "So.", ("So.", "No."), 0)
    assert found.group == "far"


def test_instructions_and_chats_are_messages_without_a_template_of_their_own(
    tokenizer: PreTrainedTokenizerBase,
) -> None:
    alpaca = as_chat(tokenizer, example_of({"instruction": "Add.", "input": "1 2", "output": "3"}))
    assert (alpaca.prompt, alpaca.completion) == ("<user>Add.\n\n1 2</>\n<assistant>", "3")
    turns = [("system", "Be kind."), ("user", "Hi"), ("assistant", "Hello"), ("user", "Bye"), ("assistant", "Ciao")]
    chat = as_chat(tokenizer, example_of({"messages": [{"role": role, "content": text} for role, text in turns]}))
    assert chat.prompt.startswith("<system>Be kind.</>\n<user>Hi</>\n<assistant>Hello</>")
    assert chat.prompt.endswith("<user>Bye</>\n<assistant>") and chat.completion == "Ciao"


def test_a_gap_is_filled_in_the_message_and_what_follows_is_the_answer(tokenizer: PreTrainedTokenizerBase) -> None:
    row = {"sentence": "It is with _ in the hall.", "option1": "Ann", "option2": "Anna", "answer": "2"}
    found = as_chat(tokenizer, example_of(row))
    assert found.prompt == "<user>It is with "
    assert found.choices == ("Ann</>\n<assistant>in the hall.", "Anna</>\n<assistant>in the hall.")
    assert found.scored == "in the hall." and found.completion == found.choices[1]


def test_a_missing_or_refusing_template_is_an_error(tokenizer: PreTrainedTokenizerBase) -> None:
    with pytest.raises(DataError, match="refuses messages of tool: no tools"):
        as_chat(tokenizer, Example("a", "b", turns=(("tool", "x"),)))
    tokenizer.chat_template = None
    with pytest.raises(DataError, match="--chat needs a chat template"):
        as_chat(tokenizer, Example("a", "b"))
