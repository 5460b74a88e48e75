"""Retention is one figure with one interval, of the literature, and absent where it would say nothing."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from studies import Measurement
from studies.analysis.retention import chance_sentence, no_better_than_chance, paired_ratio_interval, retention_of
from studies.records.records import ReportExamples
from tests.dashboards.records import DATA, EXAMPLES

N = 200


def measured(variant: str) -> Measurement:
    found = DATA.measured(variant)
    assert found is not None
    return found


DENSE, REFINED = measured("dense"), measured("refined")
WITHOUT_CHOICES: dict[str, Any] = {"accuracy": None, "accuracy_low": None, "accuracy_high": None, "n_choice_items": 0}


def with_right(m: Measurement, right: int) -> Measurement:
    """The measurement with so many of its items right, and their Wilson interval by the normal equations."""
    z, share = 1.96, right / N
    # Ends p solve (share - p)^2 = z^2 p (1 - p) / n.
    roots = sorted(np.roots([1 + z * z / N, -(2 * share + z * z / N), share * share]).real)
    return replace(m, accuracy=share, accuracy_low=float(roots[0]), accuracy_high=float(roots[1]))


def test_a_ratio_of_paired_shares_is_as_published() -> None:
    # Bentur et al. (2009) as analysed by Fagerland, Lydersen and Laake (2014), table 8: Bonett-Price hybrid Wilson.
    assert paired_ratio_interval(1, 1, 7) == pytest.approx((0.068, 0.923), abs=5e-4)
    assert paired_ratio_interval(0, 0, 4) is None


def test_a_paired_interval_holds_the_ratio_about_as_often_as_it_says() -> None:
    random = np.random.default_rng(0)
    shares = np.array([0.94, 0.01, 0.03])
    true, held, n = (0.94 + 0.01) / (0.94 + 0.03), 0, 400
    for both, first, second, _ in random.multinomial(200, [*shares, 1 - shares.sum()], size=n):
        low, high = paired_ratio_interval(int(both), int(first), int(second)) or (1.0, 0.0)
        held += low <= true <= high
    assert held / n >= 0.93


def test_retention_needs_both_accuracies_and_its_interval_both_intervals() -> None:
    kept = retention_of(REFINED, DENSE)
    assert kept is not None and kept.interval is not None and kept.method == "as if independent"
    assert kept.share == pytest.approx(193 / 195) and kept.interval[0] < 193 / 195 < kept.interval[1]
    of_itself = retention_of(DENSE, DENSE)
    assert of_itself is not None and of_itself.share == 1 and of_itself.interval is None and of_itself.text == "100.0%"
    assert retention_of(REFINED, None) is None
    assert retention_of(replace(REFINED, accuracy=None), DENSE) is None
    for changed in (replace(REFINED, accuracy_low=None), replace(REFINED, accuracy=0.0, accuracy_low=0.0)):
        kept = retention_of(changed, DENSE)
        assert kept is not None and kept.interval is None and kept.method == "" and kept.interval_text == ""


def test_answers_item_by_item_make_the_interval_narrower() -> None:
    apart, paired = retention_of(REFINED, DENSE), retention_of(REFINED, DENSE, EXAMPLES)
    assert apart is not None and apart.interval is not None and paired is not None and paired.interval is not None
    assert paired.method == "item by item"
    assert apart.interval[0] < paired.interval[0] < 193 / 195 < paired.interval[1] < apart.interval[1]


@pytest.mark.parametrize(
    "seen",
    [None, ReportExamples(), replace(EXAMPLES, n_items=150), replace(EXAMPLES, n_lost=30), replace(EXAMPLES, n_won=9)],
)
def test_counts_of_other_items_give_no_paired_interval(seen: ReportExamples | None) -> None:
    assert retention_of(REFINED, DENSE, seen) == retention_of(REFINED, DENSE)


def test_without_choices_it_is_of_perplexities_and_has_no_interval() -> None:
    pruned, dense = (replace(m, **WITHOUT_CHOICES) for m in (REFINED, DENSE))
    kept = retention_of(pruned, dense, chance=None)
    assert kept is not None and (kept.by, kept.interval, kept.interval_text) == ("perplexity", None, "")
    assert kept.share == dense.perplexity / pruned.perplexity and kept.text == f"{kept.share:.1%}"


@given(right=st.integers(0, N), own=st.integers(0, N), choices=st.integers(2, 6))
def test_nothing_is_retained_of_a_dense_model_that_only_guesses(right: int, own: int, choices: int) -> None:
    dense, pruned, chance = with_right(DENSE, right), with_right(REFINED, own), 1 / choices
    # Guessing lies in the interval, or above it, where it is not rejected in favour of more (Wilson's own test).
    z = (right / N - chance) / (chance * (1 - chance) / N) ** 0.5
    guesses = z <= 1.96
    if abs(z - 1.96) > 1e-9:
        assert no_better_than_chance(dense, chance) == guesses
    if no_better_than_chance(dense, chance):
        assert retention_of(pruned, dense, chance=chance) is None
        said = chance_sentence(dense, chance)
        assert f"({right / N:.1%} of 200 items, chance {chance:.1%})" in said and "judge by KL and perplexity" in said
    else:
        assert chance_sentence(dense, chance) == ""
        kept = retention_of(pruned, dense, chance=chance)
        assert kept is not None and kept.share == pytest.approx(own / right)
        if kept.interval is not None:
            assert 0 <= kept.interval[0] <= kept.share <= kept.interval[1]


def test_where_chance_is_not_known_nothing_is_said_of_it() -> None:
    assert not no_better_than_chance(with_right(DENSE, 20), None)
    assert chance_sentence(with_right(DENSE, 20), None) == "" == chance_sentence(None, 0.25)
    assert chance_sentence(replace(DENSE, **WITHOUT_CHOICES), 0.25) == ""
