"""Names of studies: what can be one, and which are the same."""

from __future__ import annotations

import pytest

from search.config.study_name import checked_study_name
from search.errors import ConfigError


@pytest.mark.parametrize("name", ["mine", "a b", "日本", "100 %", "x" * 200, "a.b", "'"])
def test_names_stay_as_they_are(name: str) -> None:
    assert checked_study_name(name) == name


def test_names_that_look_the_same_are_the_same() -> None:
    assert checked_study_name("mu\u0308ller") == checked_study_name("m\u00fcller") == "m\u00fcller"


@pytest.mark.parametrize(
    "name",
    [
        "",
        " ",
        ".",
        "..",
        " a",
        "a ",
        "a\u00a0",
        "\u3000a",
        "a/b",
        "a\\b",
        "-a",
        "a\nb",
        "a\0",
        "\ud800",
        "x" * 201,
        "ü" * 101,
    ],
)
def test_what_cannot_be_a_name_is_refused(name: str) -> None:
    with pytest.raises(ConfigError, match="--name is .*: expected "):
        checked_study_name(name, "--name")
