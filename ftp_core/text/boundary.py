"""The boundary between a prompt and its continuations, in the tokens of the whole text."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from transformers import PreTrainedTokenizerBase

from ftp_core.errors import ModelError


@dataclass(frozen=True)
class DividedText:
    """Token ids of a prompt and of its continuations; together they are those of the whole texts.

    Attributes:
        prompt: Special tokens that the tokenizer puts before a text, and the prompt's own tokens; perhaps none.
        continuations: The rest of each whole text, without special tokens that the tokenizer appends; perhaps empty.
        n_shared: Tokens at the end of the prompt, encoded alone, that a whole text does not have: their text belongs to
            the continuations.
    """

    prompt: tuple[int, ...]
    continuations: tuple[tuple[int, ...], ...]
    n_shared: int


def divide(
    tokenizer: PreTrainedTokenizerBase, prompt: str, continuations: Sequence[str], special_tokens: bool = True
) -> DividedText:
    """Encode a prompt with each of its continuations, and cut where all of them still agree with the prompt alone.

    As in lm-evaluation-harness (`TemplateLM._encode_pair`), white space that ends the prompt belongs to the
    continuation, which is the rest of the whole text: encoded alone it would begin like a text. Where one token spans
    both, the prompt is the longest common prefix of its own tokens and those of all whole texts: no text is lost, and
    all continuations follow the same prompt.

    Args:
        tokenizer: The model's tokenizer.
        prompt: The text to be continued.
        continuations: Texts that may follow it, at least one.
        special_tokens: Put special tokens before the text, as the tokenizer does; never those that it begins with by
            itself.

    Raises:
        ModelError: The tokenizer's special tokens do not stand around those of the text.
    """
    wholes = [_ids(tokenizer, prompt + text) for text in continuations]
    alone = _ids(tokenizer, prompt.rstrip())
    n = min(common_length(alone, whole) for whole in wholes)
    # Special tokens before an empty text cannot be told apart, so the longest text is used.
    longest = max(range(len(wholes)), key=lambda place: len(wholes[place]))
    before = _put_before(tokenizer, prompt + continuations[longest], wholes[longest]) if special_tokens else []
    return DividedText((*before, *alone[:n]), tuple(tuple(whole[n:]) for whole in wholes), len(alone) - n)


def _ids(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    ids: list[int] = tokenizer(text, add_special_tokens=False)["input_ids"]
    return ids


def _put_before(tokenizer: PreTrainedTokenizerBase, text: str, ids: list[int]) -> list[int]:
    """Special tokens that the tokenizer puts before a text; none if the text begins with them already."""
    whole: list[int] = tokenizer(text)["input_ids"]
    for n in range(len(whole) - len(ids) + 1):
        if whole[n : n + len(ids)] == ids:
            return [] if ids[:n] == whole[:n] else whole[:n]
    raise ModelError(
        f"The tokenizer ({type(tokenizer).__name__}) encodes a text otherwise with special tokens than without, but "
        "must only put them before and behind it: give another tokenizer, or switch its special tokens off."
    )


def beginning_length(tokenizer: PreTrainedTokenizerBase, beginning: str, text: str) -> int:
    """Tokens of the beginning of a text: special ones before it, and one that reaches beyond it, count.

    Raises:
        ModelError: The tokenizer's special tokens do not stand around those of the text.
    """
    alone, whole = _ids(tokenizer, beginning), _ids(tokenizer, text)
    n = common_length(alone, whole)
    return len(_put_before(tokenizer, text, whole)) + n + (n < len(alone))


def common_length(one: Sequence[object], other: Sequence[object]) -> int:
    """Length of the common beginning of two sequences."""
    shorter = min(len(one), len(other))
    return next((place for place in range(shorter) if one[place] != other[place]), shorter)
