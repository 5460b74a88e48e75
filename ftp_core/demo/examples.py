"""The demo's stories as examples for calibration, validation and test."""

from __future__ import annotations

from itertools import islice

from ftp_core.demo.task import MAX_STATEMENTS, Split, stories
from ftp_core.text.data import Example

# Where each group of distances begins; far ones are rare, so they go together.
_FIRST_OF_GROUP = (0, 3, 6, 9, 12, 15, 20)


def demo_examples(split: Split, n: int, seed: int = 0) -> list[Example]:
    """The first `n` items of a split: a story with one question, four choices, one of them right.

    An item's group says how many statements stand after the one with the answer: "distance 0-2", "distance 3-5", ...

    Args:
        split: "calibration", "validation" or "test"; their random streams are disjoint.
        n: How many.
        seed: Seed of the stream.
    """
    examples = []
    for story in islice(stories(split, seed), n):
        question = story.questions[0]
        answer = question.choices.index(question.answer)
        group = _distance_group(question.distance)
        examples.append(Example(story.prompt(question), question.answer, question.choices, answer, group))
    return examples


def _distance_group(distance: int) -> str:
    ends = (*_FIRST_OF_GROUP[1:], MAX_STATEMENTS)
    first, end = next(pair for pair in zip(_FIRST_OF_GROUP, ends, strict=True) if distance < pair[1])
    return f"distance {first}-{end - 1}"
