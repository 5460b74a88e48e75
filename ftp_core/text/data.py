"""Examples to measure and to train on: split into disjoint sets, named by content."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from itertools import accumulate, pairwise

from ftp_core.errors import DataError


@dataclass(frozen=True)
class Example:
    """A prompt and what should follow it.

    Attributes:
        prompt: Text that the model reads.
        completion: The right continuation, with the white space that separates it from the prompt.
        choices: Continuations to choose from, each with its leading space; empty if there is no choice.
        answer: Index of the right choice: `choices[answer] == completion`; None if there is no choice.
        group: Kind of the item, by which figures are told apart; None if unknown. It is no part of the content.
        scored: End that all choices have in common and that alone is scored, as of sentences with a gap; the choices as
            they are if empty.
        turns: Role and content of each message before the completion, which a chat template writes in place of the
            prompt; none if the prompt is one message. They are no part of the content.
    """

    prompt: str
    completion: str
    choices: tuple[str, ...] = ()
    answer: int | None = None
    group: str | None = field(default=None, compare=False)
    scored: str = ""
    turns: tuple[tuple[str, str], ...] = field(default=(), compare=False)


def split_examples(examples: Iterable[Example], seed: int, sizes: Mapping[str, int]) -> dict[str, list[Example]]:
    """Split examples into disjoint sets of distinct ones.

    The split depends on the content, the seed and the sizes alone, not on the order of the examples, which are shuffled
    by a seeded hash of their content. Of duplicates one stays, with the last of their groups in the alphabet.

    Args:
        examples: Examples to split.
        seed: Seed of the shuffling.
        sizes: Number of examples wanted in each set, at least 1. With too few examples all sets shrink in proportion,
            but keep at least 1.

    Returns:
        The sets, in the order of `sizes`.

    Raises:
        DataError: A size is below 1, or there are fewer distinct examples than sets.
    """
    for name, size in sizes.items():
        if size < 1:
            raise DataError(f"The {name} set is to have {size} examples: ask for at least 1.")
    by_group = sorted(examples, key=lambda example: example.group or "")
    distinct = {hashlib.sha256(f"{seed} ".encode() + _canonical(example)).digest(): example for example in by_group}
    shuffled = [distinct[key] for key in sorted(distinct)]
    if len(shuffled) < len(sizes):
        raise DataError(
            f"{len(shuffled)} distinct examples cannot be cut into {len(sizes)} sets ({', '.join(sizes)}): "
            f"give at least {len(sizes)}."
        )
    bounds = [0, *accumulate(_shrink(list(sizes.values()), len(shuffled)))]
    return {name: shuffled[start:end] for name, (start, end) in zip(sizes, pairwise(bounds), strict=True)}


def _shrink(sizes: list[int], available: int) -> list[int]:
    """Sizes as wanted, or shrunk in proportion to all that is available, at least 1 each."""
    if sum(sizes) <= available:
        return sizes
    given = [1] * len(sizes)
    for _ in range(available - len(sizes)):
        # The next one goes to the set that is furthest from its size.
        neediest = min(range(len(sizes)), key=lambda i: (given[i] + 1) / sizes[i])
        given[neediest] += 1
    return given


def fingerprint(examples: Iterable[Example]) -> str:
    """SHA-256 of the examples' content in their order, in hexadecimal."""
    return hashlib.sha256(b"".join(_canonical(example) + b"\n" for example in examples)).hexdigest()


def _canonical(example: Example) -> bytes:
    """One line of ASCII that no other content has."""
    content: list[object] = [example.prompt, example.completion, example.choices, example.answer]
    if example.scored:
        content.append(example.scored)
    return json.dumps(content).encode("ascii")
