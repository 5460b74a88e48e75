"""From text to tensors: prompts and their continuations as right-padded batches of token ids."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from ftp_core.data import Example
from ftp_core.errors import DataError

IGNORED = -100


@dataclass(frozen=True)
class EncodedExample:
    """Token ids of one example.

    Attributes:
        prompt: What the model reads, with the tokenizer's special tokens.
        continuations: What may follow; for multiple choice one per choice, else only the completion.
        answer: Index of the right continuation.
        has_choices: Whether the item is multiple choice.
    """

    prompt: tuple[int, ...]
    continuations: tuple[tuple[int, ...], ...]
    answer: int
    has_choices: bool


@dataclass(frozen=True)
class PromptBatch:
    """Prompts, padded right.

    Attributes:
        ids: Token ids `[B, L]`; anything where padded.
        lengths: Real tokens of each row `[B]`.
    """

    ids: Tensor
    lengths: Tensor


@dataclass(frozen=True)
class ContinuationBatch:
    """Continuations of the prompts of a batch, padded right.

    Attributes:
        ids: Token ids `[R, C]`; `IGNORED` where padded.
        rows: Which prompt each continues `[R]`.
    """

    ids: Tensor
    rows: Tensor


def encode(
    tokenizer: PreTrainedTokenizerBase,
    examples: Iterable[Example],
    context: int,
    max_continuation: int = 128,
) -> list[EncodedExample]:
    """Tokenize examples; long continuations are cut at `max_continuation` tokens.

    Args:
        tokenizer: The model's own.
        examples: What to encode.
        context: Tokens that the model can read at once.
        max_continuation: Longest continuation kept.

    Raises:
        DataError: A prompt with its continuation does not fit into the context, or encodes to nothing.
    """
    encoded = []
    for number, example in enumerate(examples, 1):
        texts = example.choices or (example.completion,)
        prompt = tuple(tokenizer(example.prompt)["input_ids"])
        raw = tokenizer(list(texts), add_special_tokens=False)["input_ids"]
        continuations = tuple(tuple(ids[:max_continuation]) for ids in raw)
        if not prompt or not all(continuations):
            raise DataError(f"Example {number} has a prompt or a continuation without any token: give it some text.")
        longest = len(prompt) + max(map(len, continuations))
        if longest > context:
            raise DataError(
                f"Example {number} is {longest} tokens long, but the model reads {context}: shorten its prompt."
            )
        encoded.append(EncodedExample(prompt, continuations, example.answer or 0, bool(example.choices)))
    return encoded


def pad_right(rows: Sequence[Sequence[int]], value: int) -> Tensor:
    """Rows of ids as one tensor `[B, longest]`, filled up with `value`."""
    width = max(map(len, rows))
    return torch.tensor([[*row, *[value] * (width - len(row))] for row in rows], dtype=torch.long)


def prompt_batch(examples: Sequence[EncodedExample]) -> PromptBatch:
    """The prompts of some examples as one batch."""
    lengths = torch.tensor([len(example.prompt) for example in examples])
    return PromptBatch(pad_right([example.prompt for example in examples], 0), lengths)


def continuation_batch(examples: Sequence[EncodedExample], only_answers: bool) -> ContinuationBatch:
    """The continuations of some examples as one batch: the right ones, or every choice."""
    pairs = [
        (row, continuation)
        for row, example in enumerate(examples)
        for index, continuation in enumerate(example.continuations)
        if index == example.answer or not only_answers
    ]
    return ContinuationBatch(pad_right([ids for _, ids in pairs], IGNORED), torch.tensor([row for row, _ in pairs]))


def length_sorted_batches(examples: Sequence[EncodedExample], batch_size: int) -> list[list[EncodedExample]]:
    """Cut examples into batches of similar prompt lengths, so that little padding is computed."""
    ordered = sorted(examples, key=lambda example: len(example.prompt))
    return [ordered[start : start + batch_size] for start in range(0, len(ordered), batch_size)]
