"""Rows of public data sets are recognised by their columns, and read as lm-evaluation-harness reads them."""

from __future__ import annotations

import re
from typing import Any

import datasets
import pytest
from lm_eval.tasks.hellaswag.utils import process_docs
from lm_eval.tasks.winogrande import preprocess_winogrande

from ftp_core.errors import DataError
from ftp_core.sources.columns import Columns
from ftp_core.sources.rows import example_of, examples_of
from ftp_core.text.data import Example

ARC = {"id": "1", "question": "Why?", "choices": {"text": ["Sun", "Sea"], "label": ["A", "B"]}, "answerKey": "B"}
HELLASWAG = {
    "ctx_a": "[header] How to cook [title] Get a pan.",
    "ctx_b": "then  you",
    "activity_label": "Cooking",
    "endings": ["burn [substeps] it.", "eat it.", "run.", "sleep."],
    "label": "1",
}
WINOGRANDE = {"sentence": "Sarah beat Maria so _ was glad.", "option1": "Sarah", "option2": "Maria", "answer": "1"}


def test_arc_of_the_hub_and_of_its_authors_are_the_same_items() -> None:
    expected = Example("Question: Why?\nAnswer:", " Sea", (" Sun", " Sea"), 1)
    assert example_of(ARC) == expected
    choices = [{"text": "Sun", "label": "1"}, {"text": "Sea", "label": "2"}]
    assert example_of({"question": {"stem": "Why?", "choices": choices}, "answerKey": "2"}) == expected


def test_hellaswag_reads_as_in_lm_eval() -> None:
    [known] = process_docs(datasets.Dataset.from_list([HELLASWAG]))
    found = example_of(HELLASWAG)
    assert found.prompt == known["query"]
    assert found.choices == tuple(f" {choice}" for choice in known["choices"])
    assert found.answer == known["gold"] == 1


def test_winogrande_scores_what_follows_each_option_as_in_lm_eval() -> None:
    found = example_of(WINOGRANDE)
    contexts, target = preprocess_winogrande.doc_to_choice(WINOGRANDE), preprocess_winogrande.doc_to_target(WINOGRANDE)
    assert [found.prompt + choice for choice in found.choices] == [f"{context} {target}" for context in contexts]
    assert found.scored == f" {target}" and found.answer == preprocess_winogrande.doc_to_text(WINOGRANDE)


def test_piqa_and_chats_are_recognised() -> None:
    assert example_of({"goal": "Boil", "sol1": "a", "sol2": "b", "label": 1}).choices == (" a", " b")
    chat = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]
    assert example_of({"messages": chat}).turns == (("user", "Hi"),)


def test_rows_of_text_are_joined_and_cut_into_windows() -> None:
    texts = ["", "A line of words that goes on. " * 3, "Another."] * 60
    found = list(examples_of(("row", {"text": text}) for text in texts))
    assert len(found) > 3
    whole = "".join(text + "\n" for text in texts if text)
    assert whole.startswith("".join(one.prompt + one.completion for one in found))
    assert all(one.completion[0].isspace() and not one.prompt[-1].isspace() for one in found)


@pytest.mark.parametrize(
    ("columns", "row", "expected"),
    [
        ("prompt=q,completion=a", {"q": "Why?", "a": "So."}, Example("Why?", " So.")),
        ("prompt=q,completion=a", {"q": "Why?\n", "a": "So."}, Example("Why?\n", "So.")),
        ("prompt=q,choices=o,label=l", {"q": "Why?", "o": ["a", "b"], "l": 1}, Example("Why?", " b", (" a", " b"), 1)),
        (
            "prompt=q,choices=o,label=l",
            {"q": "Why?", "o": ["a", "b"], "l": "b"},
            Example("Why?", " b", (" a", " b"), 1),
        ),
        ("prompt=q,choices=o,label=l", {"q": "Y", "o": ["x", "y"], "l": "B"}, Example("Y", " y", (" x", " y"), 1)),
        ("prompt=q,choices=o+p,label=l", {"q": "Y", "o": "a", "p": "b", "l": "0"}, Example("Y", " a", (" a", " b"), 0)),
        (
            "prompt=q,choices=o,label=l",
            {"q": "It is _ now.", "o": ["a", "b"], "l": 0},
            Example("It is ", "a now.", ("a now.", "b now."), 0, scored=" now."),
        ),
    ],
)
def test_named_columns_make_examples(columns: str, row: dict[str, Any], expected: Example) -> None:
    found = example_of(row, Columns.parsed(columns))
    if expected.scored:
        assert found.choices == ("a now.", "b now.") and found.scored == " now."
    else:
        assert found == expected


@pytest.mark.parametrize(
    ("columns", "row", "reason"),
    [
        ("prompt=q,completion=a", {"q": "x", "b": "y"}, "no column 'a', which --columns names; it has 'q', 'b'"),
        ("prompt=q,completion=a", {"q": "x", "a": 1}, '"a" must be a text, but is a JSON number'),
        ("prompt=q,choices=c,label=l", {"q": "x", "c": ["a", "b"], "l": 2}, "number 2 from 0, but there are 2"),
        ("prompt=q,choices=c,label=l", {"q": "x", "c": ["a", "b"], "l": None}, '"l" must be the index'),
        ("prompt=q,choices=c,label=l", {"q": "x", "c": "ab", "l": 0}, '"c" must be a list of at least 2 texts'),
        ("", {**HELLASWAG, "label": ""}, "take a split whose answers are public"),
        ("", {**ARC, "answerKey": "C"}, '"answerKey" must be one of A, B, but is "C"'),
        ("", {**ARC, "choices": ["a", "b"]}, '"choices" must have "text" and "label"'),
        ("", {**WINOGRANDE, "sentence": "None."}, "has no gap"),
        ("", {"messages": [{"role": "user", "content": "Hi"}]}, "must end with a message of the assistant"),
        ("", {"messages": "Hi"}, '"messages" must be a list'),
        ("", {"headline": "x"}, "or name columns with --columns"),
    ],
)
def test_a_row_that_makes_no_example_is_named_with_the_reason(columns: str, row: dict[str, Any], reason: str) -> None:
    with pytest.raises(DataError, match=re.escape(reason)) as error:
        list(examples_of([("table, row 7", row)], Columns.parsed(columns)))
    assert str(error.value).startswith("table, row 7: ")


@pytest.mark.parametrize(
    "columns",
    ["question", "prompt=", "prompt=a,prompt=b", "text=a", "completion=a", "prompt=a,choices=b", "prompt=a,"],
)
def test_wrong_columns_are_an_error_that_says_what_is_expected(columns: str) -> None:
    with pytest.raises(DataError, match="--columns .*expected prompt=COLUMN"):
        Columns.parsed(columns)
