"""The table of trials: which ones a page of it shows, in which order."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from dashboards.analysis.trials import Found
from dashboards.app.trial_listing import AT_ONCE, Chosen, ConditionError, columns_to_choose, listed_trials
from studies import Trial, TrialState, front
from studies.records.trial_columns import columns_of
from tests.dashboards import records

OBJECTIVES = ("kl", "latency_ms")
TRIALS = [
    replace(t, metrics={"flops": 4e9 * (1 - t.overall_sparsity / 2)} if t.number % 2 == 0 else {})
    for t in records.TRIALS
]


@pytest.fixture(scope="module")
def found() -> Found:
    return Found(columns_of(TRIALS, 2), OBJECTIVES)


def numbers(found: Found, **asked: str) -> list[int]:
    """The numbers of all trials that match, page after page."""
    shown: list[int] = []
    pages = 1
    while len(shown) < pages * AT_ONCE:
        listed = listed_trials(found, Chosen(**asked, page=str(pages)), found.front())
        shown += found.columns.number[listed.places].tolist()
        if listed.pages.is_last:
            break
        pages += 1
    return shown


@pytest.mark.parametrize(
    ("asked", "matches"),
    [
        ({}, lambda t: True),
        ({"shown": "failed"}, lambda t: t.state is TrialState.FAILED),
        ({"shown": "front"}, lambda t: t.number in {one.number for one in front(TRIALS)}),
        ({"proposer": "deap"}, lambda t: t.proposer == "deap"),
        ({"proposer": "nobody"}, lambda t: False),
        ({"conditions": "KL < 0.1"}, lambda t: t.values is not None and t.values[0] < 0.1),
        ({"conditions": "overall sparsity >= 30%,"}, lambda t: t.overall_sparsity >= 0.3),
        ({"conditions": "latency<=30, sparsity > .2"}, lambda t: t.values[1] <= 30 and t.overall_sparsity > 0.2),
        ({"conditions": "prefill arithmetic < 3.5"}, lambda t: t.metrics.get("flops", 4e9) < 3.5e9),
        ({"conditions": "FLOPs saved > 20%"}, lambda t: t.number % 2 == 0 and t.overall_sparsity / 2 > 0.2),
        ({"conditions": "number = 17"}, lambda t: t.number == 17),
    ],
)
def test_what_matches_is_shown_on_one_of_the_pages(found: Found, asked: dict[str, str], matches: object) -> None:
    def is_wanted(trial: Trial) -> bool:
        return trial.number != 7 and bool(matches(trial)) if "latency" in str(asked) else bool(matches(trial))  # type: ignore[operator]

    assert numbers(found, **asked) == [t.number for t in TRIALS if is_wanted(t)]


@pytest.mark.parametrize("order", ["kl", "-kl", "-number", "proposer", "-flops_saved", "nonsense"])
def test_an_order_holds_across_pages_and_ends_with_what_is_not_known(found: Found, order: str) -> None:
    by = columns_to_choose(OBJECTIVES).get(order.removeprefix("-"))
    shown = numbers(found, order=order)
    assert sorted(shown) == [t.number for t in TRIALS]
    values = (by or columns_to_choose(OBJECTIVES)["number"]).values(found)[shown]
    known = values[np.isfinite(values)]
    assert np.isnan(values[len(known) :]).all()
    assert (np.diff(known) * (-1 if order.startswith("-") else 1) >= 0).all()


@pytest.mark.parametrize(
    ("conditions", "expected"),
    [
        ("small", "expected the likes of"),
        ("colour < 3", "names no single column"),
        ("s < 3", "names no single column"),
        ("KL < many", "is no number"),
        ("KL < 3%", "is no share"),
        ("sparsity > 30", "30% or 0.3"),
    ],
)
def test_a_condition_that_cannot_be_read_says_what_is_expected(found: Found, conditions: str, expected: str) -> None:
    with pytest.raises(ConditionError, match=expected):
        listed_trials(found, Chosen(conditions=conditions), found.front())


def test_whatever_page_an_address_says_one_is_shown() -> None:
    nobody = Found(columns_of([], 2), OBJECTIVES)
    for page in ("0", "99", "-1", "x", "²", "9" * 5000):
        assert listed_trials(nobody, Chosen(page=page), nobody.front()).words == "0 trials"
