"""Stories are functions of their seed, splits do not share any, and answers follow from the story."""

from __future__ import annotations

import re
from collections import Counter
from itertools import islice

from hypothesis import given
from hypothesis import strategies as st

from ftp_core.demo.examples import demo_examples
from ftp_core.demo.task import MAX_STATEMENTS, MIN_STATEMENTS, make_story, stories
from ftp_core.demo.train import CONTEXT, batch, build_tokenizer, curriculum, encode_story

TOKENIZER = build_tokenizer(CONTEXT)
indices = st.integers(0, 100_000)
splits = st.sampled_from(["train", "calibration", "validation", "test"])
# What a reader looks for after each question: the last statement that matches holds the answer.
PATTERNS = {
    r"Where is (\w+)\?": r"^{key} (?:left and )?(?:went to|is in|walked to|moved to|is now in) the (\w+)",
    r"Who has the (\w+)\?": r"(?:The|the) {key} (?:belongs to|was found by|is with|was bought by|was given to) (\w+)",
    r"How much does the (\w+) cost\?": r"(?:the|The) {key} (?:costs|is|for|went to) (\d+) coins",
}


def read_answer(statements: tuple[str, ...], question: str) -> tuple[str, int]:
    """The answer a careful reader gives, and how many statements follow the one that holds it."""
    for asked, told in PATTERNS.items():
        match = re.search(asked, question)
        if match:
            found = [
                (hit.group(1), len(statements) - 1 - position)
                for position, statement in enumerate(statements)
                if (hit := re.search(told.format(key=match.group(1)), statement))
            ]
            return found[-1]
    raise AssertionError(question)


@given(split=splits, index=indices)
def test_the_answer_is_what_the_last_matching_statement_says(split: str, index: int) -> None:
    story = make_story(split, 0, index, n_questions=4)
    for question in story.questions:
        answer, distance = read_answer(story.statements, question.text)
        assert answer in question.answer.split(" ")[1].rstrip(".")
        assert question.distance == distance


@given(split=splits, index=indices)
def test_a_story_is_within_its_limits(split: str, index: int) -> None:
    story = make_story(split, 0, index)
    [question] = story.questions
    assert MIN_STATEMENTS <= len(story.statements) <= MAX_STATEMENTS
    assert 64 <= len(TOKENIZER(story.prompt(question))["input_ids"]) <= 384
    assert len(set(question.choices)) == 4
    assert question.answer in question.choices


@given(split=splits, seed=st.integers(0, 9), index=indices)
def test_the_same_arguments_give_the_same_story(split: str, seed: int, index: int) -> None:
    assert make_story(split, seed, index) == make_story(split, seed, index)


def test_splits_share_no_prompt() -> None:
    prompts = {
        split: {example.prompt for example in demo_examples(split, 500)}
        for split in ("calibration", "validation", "test")
    }
    assert all(len(own) == 500 for own in prompts.values())
    assert not prompts["calibration"] & prompts["validation"]
    assert not (prompts["calibration"] | prompts["validation"]) & prompts["test"]


def test_facts_are_overridden_and_answers_lie_anywhere() -> None:
    drawn = list(islice(stories("test"), 2000))
    distances = [story.questions[0].distance for story in drawn]
    assert set(range(25)) <= set(distances)
    overridden = sum(
        bool(re.search(r"is now in|left and|was given|Now the|coins.*went to", " ".join(s.statements))) for s in drawn
    )
    assert overridden > 1500


def test_items_are_grouped_by_the_distance_of_their_answer() -> None:
    groups = Counter()
    for example, story in zip(demo_examples("test", 200), stories("test"), strict=False):
        assert example.group is not None
        first, last = map(int, example.group.removeprefix("distance ").split("-"))
        assert first <= story.questions[0].distance <= last
        groups[example.group] += 1
    assert len(groups) == 7 and min(groups.values()) >= 10


def test_every_word_of_the_lexicon_is_one_token() -> None:
    for story in islice(stories("test"), 50):
        text = story.prompt(story.questions[0])
        words = re.findall(r"\w+|[^\w\s]", text)
        assert len(TOKENIZER(text)["input_ids"]) == len(words) + 1


def test_text_outside_the_lexicon_survives_the_tokenizer() -> None:
    text = "Zürich costs 3.50 € — naïve?"
    assert TOKENIZER.decode(TOKENIZER(text)["input_ids"], skip_special_tokens=True) == text


def test_training_marks_exactly_the_answers() -> None:
    story = make_story("train", 0, 1, n_questions=3)
    ids, marks = encode_story(TOKENIZER, story)
    marked = TOKENIZER.decode([token for token, mark in zip(ids, marks, strict=True) if mark])
    assert marked == "".join(question.answer for question in story.questions)


def test_a_training_batch_is_a_function_of_seed_and_step() -> None:
    level = curriculum()[-1]
    one, two = (batch(TOKENIZER, 0, 7, 4, level) for _ in range(2))
    assert one[0].equal(two[0])
    assert one[1].equal(two[1])
    assert not one[0].equal(batch(TOKENIZER, 0, 8, 4, level)[0])
