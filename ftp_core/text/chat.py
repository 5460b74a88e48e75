"""Prompts as a model's chat template writes them."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace

from transformers import PreTrainedTokenizerBase

from ftp_core.errors import DataError
from ftp_core.text.boundary import common_length
from ftp_core.text.data import Example


def as_chat(tokenizer: PreTrainedTokenizerBase, example: Example) -> Example:
    """An example as a chat: its messages, or its prompt as the user's, and what follows it as the assistant's answer.

    White space before an answer is left out, as in lm-evaluation-harness. What fills a gap is the end of the message.

    Raises:
        DataError: The tokenizer has no chat template, or it refuses the messages.
    """
    if not example.scored:
        prompt = _written(tokenizer, example.turns or (("user", example.prompt),))
        choices = tuple(choice.lstrip() for choice in example.choices)
        return replace(example, prompt=prompt, completion=example.completion.lstrip(), choices=choices, turns=())
    scored = example.scored.lstrip()
    messages = [example.prompt + choice.removesuffix(example.scored) for choice in example.choices]
    written = [_written(tokenizer, (("user", message),)) for message in messages]
    # Cut where a word begins.
    prompt = re.sub(r"\S+$", "", written[0][: common_length(min(written), max(written))])
    choices = tuple(text[len(prompt) :] + scored for text in written)
    assert example.answer is not None
    return replace(example, prompt=prompt, completion=choices[example.answer], choices=choices, scored=scored)


def _written(tokenizer: PreTrainedTokenizerBase, turns: Sequence[tuple[str, str]]) -> str:
    if not tokenizer.chat_template:
        raise DataError(
            "--chat needs a chat template, and the model's tokenizer has none: leave it out, or give a model that was "
            "tuned for chats."
        )
    messages = [{"role": role, "content": content} for role, content in turns]
    try:
        text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    except Exception as error:  # a template refuses a role with whatever error it likes
        roles = ", ".join(role for role, _ in turns)
        raise DataError(
            f"The chat template of the model's tokenizer refuses messages of {roles}: {' '.join(str(error).split())}"
        ) from error
    assert isinstance(text, str)
    return text
