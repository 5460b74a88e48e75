"""Protected tokens at the beginning of prompts, and beginnings that prompts share without protection."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence

from transformers import PreTrainedTokenizerBase

from ftp_core.errors import DataError
from ftp_core.text.beginnings import SystemTurn, shared_beginning
from ftp_core.text.boundary import beginning_length
from ftp_core.text.encoding import EncodedExample
from search.config.groups import KeepFirst

# So many tokens that most prompts begin with, such as "Question:", are nothing to warn of.
_FEW = 8


def n_protected_tokens(asked: KeepFirst, tokenizer: PreTrainedTokenizerBase, prompts: Iterable[str]) -> int:
    """Number of tokens at the beginning of every prompt that are protected; "system" asks for the system turn.

    Raises:
        DataError: The system turn is asked for, but prompts begin with none, or with different ones.
        ModelError: The tokenizer cannot be used (see `ftp_core.text.boundary.divide`).
    """
    if asked != "system":
        return asked
    turn = SystemTurn.of(tokenizer)
    if turn is None:
        raise DataError(
            "--keep-first is system, but the model's tokenizer has no chat template that writes a system turn: give "
            "the number of tokens that shall be kept at the beginning of every prompt."
        )
    found: Counter[str | None] = Counter()
    longest = shortest = 0
    for prompt in prompts:
        system = turn.in_text(tokenizer, prompt)
        if system is not None:
            n_tokens = beginning_length(tokenizer, system, prompt)
            longest, shortest = max(longest, n_tokens), min(shortest or n_tokens, n_tokens)
        found[system] += 1
    if found[None] == found.total():
        raise DataError(
            f"--keep-first is system, but no prompt begins with a system turn as the chat template of the model's "
            f"tokenizer writes it ({turn.before!r}, the text, {turn.behind!r}): write prompts with "
            "tokenizer.apply_chat_template(messages, tokenize=False), or give a number of tokens."
        )
    if len(+found) > 1:
        without = f"{found[None]} of {found.total()} prompts begin with none, and the others" if found[None] else "they"
        raise DataError(
            f"--keep-first is system, but the prompts do not begin with the same system turn ({without} have system "
            f"turns of {shortest} to {longest} tokens): give a number, the same for all prompts; --keep-first "
            f"{longest} protects the longest."
        )
    return longest


def unprotected_beginning(
    tokenizer: PreTrainedTokenizerBase, examples: Sequence[EncodedExample], keep_first: int
) -> str | None:
    """A warning that most prompts begin with the same tokens, which skip first; None if there is nothing to warn of."""
    prompts = [example.prompt for example in examples]
    shared = shared_beginning(prompts, 1.0)
    if len(shared.tokens) <= _FEW:
        # Templates may come in several forms, and chats with several system prompts.
        shared = shared_beginning(prompts, 0.5)
    n_tokens = len(shared.tokens)
    if n_tokens - keep_first <= _FEW:
        return None
    text, turn = str(tokenizer.decode(list(shared.tokens))), SystemTurn.of(tokenizer)
    has_turn = turn is not None and turn.in_text(tokenizer, text) is not None
    asked = "system" if has_turn and shared.n_prompts == len(examples) else str(n_tokens)
    so_far = f", of which {keep_first} are protected" if keep_first else ""
    return (
        f"{shared.n_prompts} of {len(examples)} prompts begin with the same {n_tokens} tokens{so_far}"
        f"{', a system turn' if has_turn else ''} ({_short(text)!r}): the static router lets the beginning of a prompt "
        f"skip first, in every block that skips any. --keep-first {asked} protects it; "
        "what follows it skips in its place."
    )


def _short(text: object) -> str:
    words = " ".join(str(text).split())
    return words if len(words) <= 60 else words[:57] + "..."
