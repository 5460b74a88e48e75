"""Trials go to those that lately made the front grow, and nobody starves."""

from __future__ import annotations

from collections import Counter

import pytest

from search.engine.portfolio import FLOOR, Portfolio
from search.problem.trial import Proposal
from search.proposers.proposer_stats import ProposerStatistics
from search.proposers.testing import told_of
from studies import Trial


class Named:
    def __init__(self, name: str) -> None:
        self.name = name
        self.leads = False
        self.told: list[Trial] = []

    def ask(self, number: int) -> Proposal:
        return Proposal((number,))

    def tell(self, trial: Trial) -> None:
        self.told.append(trial)


def three(**options: bool) -> Portfolio:
    return Portfolio([Named("a"), Named("b"), Named("c")], 0, **options)


def firsts(portfolio: Portfolio, n: int = 600) -> Counter[str]:
    return Counter(portfolio.in_turn(number)[0].name for number in range(n))


def test_who_leads_is_asked_first_and_others_stand_in() -> None:
    proposers = [Named("a"), Named("b"), Named("c")]
    portfolio = Portfolio(proposers, 0)
    proposers[1].leads = True
    turns = [[one.name for one in portfolio.in_turn(number)] for number in range(20)]
    assert turns == [["b", "a", "c"]] * 20
    proposers[1].leads = False
    assert set(firsts(portfolio)) == {"a", "b", "c"}


def test_everybody_gets_as_much_before_anything_is_known() -> None:
    assert three().shares() == {name: pytest.approx(1 / 3) for name in "abc"}
    assert min(firsts(three()).values()) > 150


def test_who_makes_the_front_grow_faster_gets_most_and_the_others_keep_a_floor() -> None:
    portfolio = three()
    for _ in range(30):
        portfolio.credit("a", 0.01, 1.0)
        portfolio.credit("b", 0.001, 1.0)
        portfolio.credit("c", 0.0, 1.0)
    shares = portfolio.shares()
    assert shares["a"] > 0.7 and shares["c"] == pytest.approx(FLOOR / 3)
    assert sum(shares.values()) == pytest.approx(1.0)
    counts = firsts(portfolio)
    assert counts["a"] > 400 and counts["c"] > 30


def test_seconds_count_unless_the_clock_must_not() -> None:
    for by_trial, low, high in ((False, 0.7, 0.9), (True, 0.4, 0.5)):
        portfolio = three(by_trial=by_trial)
        for _ in range(30):
            portfolio.credit("a", 0.01, 1.0)
            portfolio.credit("b", 0.01, 10.0)
            portfolio.credit("c", 0.0, 1.0)
        assert low < portfolio.shares()["a"] < high


def test_the_floor_is_one_of_time() -> None:
    portfolio = three()
    for _ in range(30):
        portfolio.credit("a", 0.01, 1.0)
        portfolio.credit("b", 0.0, 1.0)
        portfolio.credit("c", 0.0, 9.0)
    shares = portfolio.shares()
    assert shares["b"] == pytest.approx(9 * shares["c"]) == pytest.approx(FLOOR * 9 / 19)


def test_the_time_to_propose_counts_too() -> None:
    portfolio = Portfolio([Named("a"), Named("b")], 0, {"b": ProposerStatistics(asked=10, seconds=100.0)})
    for _ in range(30):
        portfolio.credit("a", 0.01, 1.0)
        portfolio.credit("b", 0.01, 1.0)
    assert portfolio.shares()["a"] > 0.8


def test_old_merits_fade() -> None:
    portfolio = three()
    for name in ("a", "b"):
        for _ in range(100):
            portfolio.credit(name, 0.01, 1.0)
            for other in {"a", "b", "c"} - {name}:
                portfolio.credit(other, 0.0, 1.0)
    assert portfolio.shares()["b"] > portfolio.shares()["a"]


def test_everybody_learns_every_outcome_and_choices_follow_the_seed() -> None:
    proposers = [Named("a"), Named("b")]
    portfolio = Portfolio(proposers, 3)
    portfolio.learn(told_of((1,), (0.0, 0.0)))
    assert all(len(one.told) == 1 for one in proposers)
    turns = [[one.name for one in portfolio.in_turn(number)] for number in range(20)]
    again = Portfolio([Named("a"), Named("b")], 3)
    assert turns == [[one.name for one in again.in_turn(number)] for number in range(20)]
    assert all(sorted(turn) == ["a", "b"] for turn in turns)
