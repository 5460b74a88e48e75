"""The demo's stories as examples for calibration, validation and test."""

from __future__ import annotations

from itertools import islice

from ftp_core.data import Example
from ftp_core.demo.task import Split, stories


def demo_examples(split: Split, n: int, seed: int = 0) -> list[Example]:
    """The first `n` items of a split: a story with one question, four choices, one of them right.

    Args:
        split: "calibration", "validation" or "test"; their random streams are disjoint.
        n: How many.
        seed: Seed of the stream.
    """
    examples = []
    for story in islice(stories(split, seed), n):
        question = story.questions[0]
        answer = question.choices.index(question.answer)
        examples.append(Example(story.prompt(question), question.answer, question.choices, answer))
    return examples
