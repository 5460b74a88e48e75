"""The demo's stories as examples for calibration, validation and test."""

from __future__ import annotations

from itertools import islice

from ftp_core.demo.task import MAX_STATEMENTS, Split, Story, stories
from ftp_core.text.data import Example

# First distance of each group; far ones are rare, so they go together.
_FIRST_OF_GROUP = (0, 3, 6, 9, 12, 15, 20)


def demo_examples(split: Split, n: int, seed: int = 0) -> list[Example]:
    """The first `n` items of a split: a story with one question, four choices, one of them right.

    Random streams of the splits are disjoint. The group of an item is the number of statements after the one with the
    answer: "distance 0-2", "distance 3-5", ...
    """
    return [example_of(story) for story in islice(stories(split, seed), n)]


def example_of(story: Story) -> Example:
    """The first question of a story as an example."""
    question = story.questions[0]
    ends = (*_FIRST_OF_GROUP[1:], MAX_STATEMENTS)
    first, end = next(pair for pair in zip(_FIRST_OF_GROUP, ends, strict=True) if question.distance < pair[1])
    answer = question.choices.index(question.answer)
    return Example(story.prompt(question), question.answer, question.choices, answer, f"distance {first}-{end - 1}")
