"""Prompts and their continuations as right-padded batches of token ids.

Shapes: B rows, L tokens of a row, R continuations, C tokens of a continuation.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from ftp_core.errors import DataError
from ftp_core.text.boundary import DividedText, divide
from ftp_core.text.data import Example

IGNORED = -100
_INT = {int}


class LeftOut(StrEnum):
    """Reasons why an example cannot be evaluated, as reports say them."""

    TOO_LONG = "longer than the model's context"
    NO_PROMPT = "without a token that is of the prompt alone"
    NO_CONTINUATION = "with a completion or a choice that adds no token"


class ExampleError(DataError):
    """An example that a model with its tokenizer cannot be evaluated on."""

    def __init__(self, reason: LeftOut, message: str) -> None:
        super().__init__(message)
        self.reason = reason


@dataclass(frozen=True)
class EncodedExample:
    """Token ids of one example.

    Attributes:
        prompt: Ids of the prompt, with the tokenizer's special tokens before it.
        continuations: The completion, or every choice in full. Behind the prompt they are the ids of the whole text: a
            token that spans the end of the prompt belongs to them.
        answer: Index of the right continuation.
        has_choices: True if the item is multiple choice.
        choice_lengths: Characters of each choice without the space before it, as lm-evaluation-harness counts them for
            `acc_norm`; empty if it is no multiple choice.
        group: Kind of the item; None if unknown. It is no part of fingerprints.
        n_shared: See `DividedText`. It is no part of fingerprints.
        unscored: Tokens at the beginning of each continuation that are read, but not scored as a choice, such as those
            of what fills a gap; empty if all are scored.

    Raises:
        DataError: The prompt or a continuation has no token, or one that is no whole number from 0; there is no
            continuation; the answer or the lengths do not fit them.
    """

    prompt: tuple[int, ...]
    continuations: tuple[tuple[int, ...], ...]
    answer: int
    has_choices: bool
    choice_lengths: tuple[int, ...] = ()
    group: str | None = field(default=None, repr=False, compare=False)
    n_shared: int = field(default=0, repr=False, compare=False)
    unscored: tuple[int, ...] = field(default=(), repr=False)

    def __post_init__(self) -> None:
        """Check the values; quick, as there are thousands of examples."""
        _check_ids("The prompt", self.prompt)
        if not isinstance(self.continuations, tuple) or not self.continuations:
            raise DataError(
                f"The continuations are {_short(self.continuations)}, but must be a tuple with at least one, each a "
                "tuple of token ids: what may follow the prompt."
            )
        for continuation in self.continuations:
            _check_ids("A continuation", continuation)
        n = len(self.continuations)
        if type(self.answer) is not int or not 0 <= self.answer < n:
            raise DataError(
                f"The answer is {_short(self.answer)}, but must be the index of one of the {n} continuations, 0 to "
                f"{n - 1}: the right one's."
            )
        if self.unscored and (
            len(self.unscored) != n
            or any(not 0 <= a < len(b) for a, b in zip(self.unscored, self.continuations, strict=False))
        ):
            raise DataError(
                f"The unscored tokens are {_short(self.unscored)}, but must be {n} numbers, each from 0 and below the "
                "tokens of its continuation: one for each, or none."
            )
        lengths = self.choice_lengths
        if lengths and (len(lengths) != n or set(map(type, lengths)) != _INT or min(lengths) < 1):
            raise DataError(
                f"The choices' lengths are {_short(lengths)}, but must be {n} numbers of characters, each at least 1: "
                "one for each continuation, or none."
            )


def _check_ids(name: str, ids: object) -> None:
    # Not isinstance: True is an int, and numpy's integers have a repr, thus a fingerprint, of their own.
    if isinstance(ids, tuple) and ids and set(map(type, ids)) == _INT and min(ids) >= 0:
        return
    if not isinstance(ids, tuple):
        raise DataError(f"{name} is {_short(ids)}, but must be a tuple of token ids.")
    if not ids:
        raise DataError(f"{name} is empty: give it at least one token.")
    place, token = next((place, token) for place, token in enumerate(ids) if type(token) is not int or token < 0)
    raise DataError(f"{name} has {_short(token)} at place {place}, but token ids are whole numbers (int) from 0.")


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."


@dataclass(frozen=True)
class PromptBatch:
    """Prompts, padded right.

    Attributes:
        ids: Token ids `[B, L]`; anything where padded.
        lengths: Real tokens of each row `[B]`.
        text_lengths: Tokens that are read of each prompt with its continuation `[B]`, by which some models embed
            positions (`ftp_core.skipping.rotary`); None for the prompts alone.
    """

    ids: Tensor
    lengths: Tensor
    text_lengths: Tensor | None = None

    def to(self, device: torch.device) -> PromptBatch:
        """The same on a device."""
        # Lengths of texts are read as numbers.
        return PromptBatch(self.ids.to(device), self.lengths.to(device), self.text_lengths)


@dataclass(frozen=True)
class ContinuationBatch:
    """Continuations of the prompts of a batch, padded right.

    Attributes:
        ids: Token ids `[R, C]`; `IGNORED` where padded.
        rows: Index of the prompt of each `[R]`.
    """

    ids: Tensor
    rows: Tensor

    def to(self, device: torch.device) -> ContinuationBatch:
        """The same on a device."""
        return ContinuationBatch(self.ids.to(device), self.rows.to(device))


def encode(
    tokenizer: PreTrainedTokenizerBase, examples: Iterable[Example], context: int, max_continuation: int = 128
) -> list[EncodedExample]:
    """Tokenize examples; a long completion is cut, a choice never is: without its end it would be another choice.

    Args:
        tokenizer: The model's tokenizer.
        examples: Examples to encode.
        context: Tokens that the model can read at once.
        max_continuation: Most tokens of a completion.

    Raises:
        ExampleError: A prompt with its longest continuation does not fit into the context, or one of them has no token.
        DataError: The answer is no choice's index.
        ModelError: The tokenizer cannot be used (see `divide`).
    """
    encoded = []
    for number, example in enumerate(examples, 1):
        divided = divide(tokenizer, example.prompt, example.choices or (example.completion,))
        continuations = divided.continuations
        if not example.choices:
            continuations = tuple(ids[:max_continuation] for ids in continuations)
        _check_tokens(f"Example {number}", divided)
        longest = len(divided.prompt) + max(map(len, continuations))
        if longest > context:
            raise ExampleError(
                LeftOut.TOO_LONG,
                f"Example {number} is {longest} tokens long, but the model reads {context}: shorten its prompt"
                f"{' or its choices, which are never cut' if example.choices else ''}.",
            )
        # The space that separates a choice from its prompt does not count; a space alone is one character.
        lengths = tuple(max(1, len((example.scored or choice).removeprefix(" "))) for choice in example.choices)
        answer: Any = example.answer if example.choices else 0
        try:
            one = EncodedExample(
                divided.prompt,
                continuations,
                answer,
                bool(example.choices),
                lengths,
                example.group,
                divided.n_shared,
                _unscored(tokenizer, example, continuations) if example.scored else (),
            )
        except DataError as error:
            raise DataError(f"Example {number}: {error}") from None
        encoded.append(one)
    return encoded


def _unscored(
    tokenizer: PreTrainedTokenizerBase, example: Example, continuations: Sequence[Sequence[int]]
) -> tuple[int, ...]:
    """Tokens of each choice before the end that all have in common, divided as a prompt and its completion are."""
    unscored = []
    for choice, ids in zip(example.choices, continuations, strict=True):
        before = example.prompt + choice.removesuffix(example.scored)
        scored = divide(tokenizer, before, (example.scored,)).continuations[0]
        unscored.append(max(0, len(ids) - len(scored)))
    return tuple(unscored)


def _check_tokens(name: str, divided: DividedText) -> None:
    if not all(divided.continuations):
        raise ExampleError(
            LeftOut.NO_CONTINUATION,
            f"{name} has a completion or a choice without any token: the tokenizer makes the same tokens of its prompt "
            "with and without it. Give it some text that the tokenizer knows.",
        )
    if not divided.prompt and divided.n_shared:
        raise ExampleError(
            LeftOut.NO_PROMPT,
            f"{name} has no token that is of its prompt alone: the first one reaches into what follows. End the prompt "
            "where a word ends, or lengthen it.",
        )
    if not divided.prompt:
        raise ExampleError(LeftOut.NO_PROMPT, f"{name} has a prompt without any token: give it some text.")


def check_readable(examples: Sequence[EncodedExample], context: int, vocabulary: int) -> None:
    """Raise `DataError` for the first example that a model with this context and vocabulary cannot read."""
    for number, example in enumerate(examples, 1):
        if not isinstance(example, EncodedExample):
            raise DataError(
                f"Example {number} is of type {type(example).__name__}, but must be an EncodedExample: encode examples "
                "first, with ftp_core.encode(tokenizer, examples, context)."
            )
        longest = len(example.prompt) + max(map(len, example.continuations))
        if longest > context:
            raise DataError(
                f"Example {number} is {longest} tokens long, but the model reads {context}: shorten its prompt or what "
                "follows it."
            )
        highest = max(max(example.prompt), *map(max, example.continuations))
        if highest >= vocabulary:
            raise DataError(
                f"Example {number} has the token {highest}, but the model knows {vocabulary} tokens, 0 to "
                f"{vocabulary - 1}: encode it with the model's own tokenizer."
            )


def encoded_fingerprint(examples: Iterable[EncodedExample]) -> str:
    """SHA-256 of encoded examples in their order, in hexadecimal."""
    lines = (f"{example!r}{example.unscored or ''}\n" for example in examples)
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def pad_right(rows: Sequence[Sequence[int]], value: int) -> Tensor:
    """Rows of ids as one tensor `[B, longest]`, filled up with `value`."""
    width = max(map(len, rows))
    return torch.tensor([[*row, *[value] * (width - len(row))] for row in rows], dtype=torch.long)


def read_length(prompt: Sequence[int], continuation: Sequence[int]) -> int:
    """Tokens of a text that are read: all but the last, which predicts nothing."""
    return len(prompt) + len(continuation) - 1


def prompt_batch(examples: Sequence[EncodedExample]) -> PromptBatch:
    """The prompts of some examples, to be followed by their right continuations."""
    lengths_B = torch.tensor([len(example.prompt) for example in examples])
    text_lengths_B = torch.tensor([read_length(one.prompt, one.continuations[one.answer]) for one in examples])
    return PromptBatch(pad_right([example.prompt for example in examples], 0), lengths_B, text_lengths_B)


def answer_batch(examples: Sequence[EncodedExample]) -> ContinuationBatch:
    """The right continuation of each example."""
    return _continuation_batch([(row, one.continuations[one.answer]) for row, one in enumerate(examples)])


def choice_batch(examples: Sequence[EncodedExample]) -> ContinuationBatch | None:
    """Every choice of the multiple-choice items among some examples; None if there are none."""
    pairs = [(row, ids) for row, one in enumerate(examples) if one.has_choices for ids in one.continuations]
    return _continuation_batch(pairs) if pairs else None


def choice_lengths(examples: Sequence[EncodedExample]) -> list[int]:
    """Divisor of each choice's log-likelihood: its characters, or its tokens where these are unknown."""
    return [
        length
        for example in examples
        if example.has_choices
        for length in (example.choice_lengths or map(len, example.continuations))
    ]


def unscored_tokens(examples: Sequence[EncodedExample]) -> list[int]:
    """Tokens at the beginning of each choice that are not scored."""
    return [
        n
        for example in examples
        if example.has_choices
        for n in (example.unscored or (0,) * len(example.continuations))
    ]


def _continuation_batch(pairs: Sequence[tuple[int, tuple[int, ...]]]) -> ContinuationBatch:
    return ContinuationBatch(pad_right([ids for _, ids in pairs], IGNORED), torch.tensor([row for row, _ in pairs]))


def length_order(examples: Sequence[EncodedExample]) -> list[int]:
    """Indices of the examples by the length of their prompts, shortest first."""
    return sorted(range(len(examples)), key=lambda place: len(examples[place].prompt))


def length_sorted_batches(examples: Sequence[EncodedExample], batch_size: int) -> list[list[EncodedExample]]:
    """Batches of examples with similar prompt lengths, so that little padding is computed."""
    ordered = [examples[place] for place in length_order(examples)]
    return [ordered[start : start + batch_size] for start in range(0, len(ordered), batch_size)]
