"""Sources and their weights survive being written down."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ftp_core.errors import DataError
from ftp_core.sources.source import Source, joined, parse_sources

NAMES = ["demo", "self", "a.jsonl", "/srv/year=2024", "hf:allenai/ai2_arc:ARC-Easy:train[:5]", "task:arc_easy,piqa"]
WEIGHTS = st.sampled_from([0.25, 1.0, 2.0, 100.0])


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("demo", [Source("demo", "demo")]),
        ("a.jsonl", [Source("path", "a.jsonl")]),
        ("/srv/a+b.csv", [Source("path", "/srv/a+b.csv")]),
        ("2:a.jsonl + self", [Source("path", "a.jsonl", 2.0), Source("self", "self")]),
        ("0.5: hf:org/set:all:train", [Source("hf", "org/set:all:train", 0.5)]),
        ("task: a, b", [Source("task", "a,b")]),
    ],
)
def test_sources_are_read(text: str, expected: list[Source]) -> None:
    assert list(parse_sources(text)) == expected


@given(parts=st.lists(st.tuples(WEIGHTS, st.sampled_from(NAMES)), min_size=1, max_size=4))
def test_what_is_written_is_read_again(parts: list[tuple[float, str]]) -> None:
    read = parse_sources(" + ".join(f"{weight}:{name}" for weight, name in parts))
    assert [(source.weight, source.label) for source in read] == parts
    assert parse_sources(joined(read)) == read


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "empty source"),
        ("a.jsonl + ", "empty source"),
        ("0:a.jsonl", "expected a number above 0"),
        ("hf:", "no data set of the Hugging Face Hub"),
        ("hf:../secrets", "no data set of the Hugging Face Hub"),
        ("hf:/etc/passwd", "no data set of the Hugging Face Hub"),
        ("hf:a/b/c", "no data set of the Hugging Face Hub"),
        ("task:", "names no task"),
        ("task:a,,b", "names no task"),
    ],
)
def test_a_wrong_source_is_an_error(text: str, reason: str) -> None:
    with pytest.raises(DataError, match=reason):
        parse_sources(text)


def test_a_path_that_would_be_read_as_two_is_refused() -> None:
    with pytest.raises(DataError, match="rename it"):
        Source("path", "a").moved(lambda _: Path("/srv/a + b/c.jsonl"))
    with pytest.raises(DataError, match="rename it"):
        Source("task", "a.yaml").moved(lambda _: Path("/srv/a,b.yaml"))
