"""Refinement goes on while the front grows, and remembers how far it is."""

from __future__ import annotations

import json
import math

import pytest

from search.stages.refine_rounds import begun, ended, fresh_rounds, was_worthwhile, why_last
from studies.records.study_facts import Round, StudyFacts


@pytest.mark.parametrize(
    ("before", "after", "worthwhile"),
    [(1.0, 1.011, True), (1.0, 1.009, False), (1.0, 1.0, False), (0.0, 0.5, True), (0.0, 0.0, False)],
)
def test_another_round_is_worth_it_while_hypervolume_grows_by_more_than_a_hundredth(
    before: float, after: float, worthwhile: bool
) -> None:
    one = begun(Round(1, router_run=0, router=None), 10, before)
    assert one.growth is None
    assert was_worthwhile(ended(one, 5, after)) is worthwhile


def test_the_last_round_says_why_it_is_the_last() -> None:
    one = begun(Round(2, router_run=0, router=0), 10, 1.0)
    assert why_last(one) == "" == why_last(ended(one, 5, 1.1))
    assert "Rounds ended after round 2" in (flat := why_last(ended(one, 5, 1.004))) and "+0.40%" in flat
    assert "at all" in why_last(ended(begun(Round(1, router_run=0, router=0), 10, 0.0), 5, 0.0))
    assert "no trained router beats the static one" in why_last(Round(1, router_run=0, router=None))


def test_a_round_that_has_begun_keeps_where_it_began() -> None:
    one = begun(Round(1, router_run=0, router=0), 10, 1.0)
    assert begun(one, 30, 2.0) == one


def test_rounds_come_back_from_a_study_as_they_were_noted() -> None:
    first = ended(begun(Round(1, router_run=0, router=None), 300, 1.5), 150, 1.6)
    second = Round(2, router_run=1, router=1)
    facts = StudyFacts(rounds=StudyFacts().with_round(second))
    facts = StudyFacts(rounds=facts.with_round(first))
    facts = StudyFacts.from_stored(json.loads(json.dumps(facts.stored())))
    assert facts.rounds == (first, second) and facts.round_of(2) == second and facts.round_of(3) is None
    assert first.growth is not None and math.isclose(first.growth, 1.6 / 1.5 - 1) and second.growth is None


def test_rounds_behind_a_longer_first_search_are_numbered_on() -> None:
    facts = StudyFacts(rounds=(Round(2, router_run=0, router=None),))
    assert facts.first_round == 1
    assert facts.updated(fresh_rounds(facts)).first_round == 3
