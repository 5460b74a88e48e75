"""Examples come from files as they should, are cut into sets that share nothing, and are named by content."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ftp_core.errors import DataError
from ftp_core.text.data import Example, fingerprint, split_examples

TEXTS = st.text(st.characters(codec="utf-8"), min_size=1).filter(str.strip)


@st.composite
def examples(draw: st.DrawFn) -> Example:
    if draw(st.booleans()):
        return Example(draw(TEXTS), draw(TEXTS))
    choices = draw(st.lists(TEXTS, min_size=2, max_size=5))
    answer = draw(st.integers(0, len(choices) - 1))
    return Example(draw(TEXTS), choices[answer], tuple(choices), answer)


def numbered(n: int) -> list[Example]:
    return [Example(f"prompt {i}", f" completion {i}") for i in range(n)]


# Cutting into sets


@given(
    pool=st.lists(examples(), min_size=3, max_size=40),
    seed=st.integers(),
    sizes=st.lists(st.integers(1, 30), min_size=1, max_size=4),
)
def test_sets_are_disjoint_of_the_right_sizes_and_from_the_pool(
    pool: list[Example], seed: int, sizes: list[int]
) -> None:
    distinct, wanted = set(pool), {f"set {i}": size for i, size in enumerate(sizes)}
    if len(distinct) < len(sizes):
        with pytest.raises(DataError):
            split_examples(pool, seed, wanted)
        return
    sets = split_examples(pool, seed, wanted)
    taken = [example for part in sets.values() for example in part]
    assert list(sets) == list(wanted)
    assert len(taken) == len(set(taken)) == min(sum(sizes), len(distinct))
    assert set(taken) <= distinct
    for name, size in wanted.items():
        assert 1 <= len(sets[name]) <= size


@given(pool=st.lists(examples(), min_size=3, max_size=20, unique=True), data=st.data())
def test_the_order_of_the_file_and_duplicates_change_nothing(pool: list[Example], data: st.DataObject) -> None:
    sizes = {"calibration": 4, "validation": 2, "test": 2}
    shuffled = data.draw(st.permutations(pool + pool[:3]))
    assert split_examples(shuffled, 1, sizes) == split_examples(pool, 1, sizes)


def test_the_group_of_duplicates_does_not_hang_on_their_order() -> None:
    named = [Example("a", " b", group=group) for group in (None, "x", "y", None)]
    for pool in (named, named[::-1], [named[2], named[1]]):
        assert [example.group for example in split_examples(pool, 0, {"test": 1})["test"]] == ["y"]


def test_another_seed_cuts_otherwise() -> None:
    sizes = {"calibration": 60, "validation": 20, "test": 20}
    first, second = (split_examples(numbered(100), seed, sizes) for seed in (0, 1))
    assert set(first["test"]) != set(second["test"])


def test_a_larger_last_set_leaves_the_others_as_they_were() -> None:
    small, large = (split_examples(numbered(100), 0, {"calibration": 20, "test": size}) for size in (10, 50))
    assert small["calibration"] == large["calibration"]
    assert small["test"] == large["test"][:10]


@pytest.mark.parametrize(
    ("available", "expected"),
    [(10, [6, 2, 2]), (20, [12, 4, 4]), (999, [600, 200, 199]), (7, [5, 1, 1]), (4, [2, 1, 1])],
)
def test_too_few_examples_shrink_all_sets_in_proportion(available: int, expected: list[int]) -> None:
    sets = split_examples(numbered(available), 0, {"calibration": 600, "validation": 200, "test": 200})
    assert [len(part) for part in sets.values()] == expected


def test_three_examples_are_enough_for_three_sets_and_two_are_not() -> None:
    sizes = {"calibration": 100, "validation": 1, "test": 50}
    assert [len(part) for part in split_examples(numbered(3), 0, sizes).values()] == [1, 1, 1]
    with pytest.raises(DataError, match="2 distinct examples cannot be cut into 3 sets"):
        split_examples(numbered(2) * 5, 0, sizes)


def test_an_empty_set_cannot_be_asked_for() -> None:
    with pytest.raises(DataError, match="The test set is to have 0 examples"):
        split_examples(numbered(5), 0, {"calibration": 2, "test": 0})


# Naming by content


@given(first=st.lists(examples(), max_size=4), second=st.lists(examples(), max_size=4))
def test_fingerprints_are_equal_just_for_equal_examples(first: list[Example], second: list[Example]) -> None:
    assert fingerprint(list(first)) == fingerprint(iter(first))
    assert (fingerprint(first) == fingerprint(second)) == (first == second)


def test_a_fingerprint_tells_what_a_join_would_not() -> None:
    variants = [
        [Example("ab", "c")],
        [Example("a", "bc")],
        [Example("a", "bc", ("b", "bc"), 1)],
        [Example("a", "bc", ("bc", "b"), 0)],
        [Example("ab", "c"), Example("a", "bc")],
        [Example("a", "bc"), Example("ab", "c")],
        [],
    ]
    assert len({fingerprint(variant) for variant in variants}) == len(variants)


def test_a_fingerprint_stays_the_same_between_releases() -> None:
    content = [Example("é\n", " b"), Example("q", " y", (" x", " y"), 1)]
    assert fingerprint(content) == "bf007aa0b7c6ab127d20abbc12f870eba2f1c2d356605ecc1a4c3bf658e0060c"
