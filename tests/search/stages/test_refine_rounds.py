"""Refinement goes on while the front grows, and remembers how far it is."""

from __future__ import annotations

import json
import math

import pytest

from search.stages.refine_rounds import Round, first_round, rounds_of, with_fresh_rounds, with_round


@pytest.mark.parametrize(
    ("before", "after", "worthwhile"),
    [(1.0, 1.011, True), (1.0, 1.009, False), (1.0, 1.0, False), (0.0, 0.5, True), (0.0, 0.0, False)],
)
def test_another_round_is_worth_it_while_hypervolume_grows_by_more_than_a_hundredth(
    before: float, after: float, worthwhile: bool
) -> None:
    one = Round(1, router_run=0, router=None).begun(10, before)
    assert one.growth is None
    assert one.ended(5, after).was_worthwhile is worthwhile


def test_the_last_round_says_why_it_is_the_last() -> None:
    begun = Round(2, router_run=0, router=0).begun(10, 1.0)
    assert begun.why_last == "" == begun.ended(5, 1.1).why_last
    assert "Rounds ended after round 2" in (flat := begun.ended(5, 1.004).why_last) and "+0.40%" in flat
    assert "at all" in Round(1, router_run=0, router=0).begun(10, 0.0).ended(5, 0.0).why_last
    assert "no trained router beats the static one" in Round(1, router_run=0, router=None).why_last


def test_a_round_that_has_begun_keeps_where_it_began() -> None:
    one = Round(1, router_run=0, router=0).begun(10, 1.0)
    assert one.begun(30, 2.0) == one


def test_rounds_come_back_from_a_study_as_they_were_noted() -> None:
    first = Round(1, router_run=0, router=None).begun(300, 1.5).ended(150, 1.6)
    second = Round(2, router_run=1, router=1)
    facts = with_round({}, first)
    facts = json.loads(json.dumps({**facts, **with_round(facts, second)}))
    assert rounds_of(facts) == {1: first, 2: second}
    assert math.isclose(facts["rounds"][0]["growth"], 1.6 / 1.5 - 1) and facts["rounds"][1]["growth"] is None


def test_rounds_behind_a_longer_first_search_are_numbered_on() -> None:
    facts = with_round({}, Round(2, router_run=0, router=None))
    assert first_round(facts) == 1
    assert first_round({**facts, **with_fresh_rounds(facts)}) == 3
