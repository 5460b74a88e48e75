"""Two models are judged on the same items: better and worse are said where chance alone would hardly show as much."""

from __future__ import annotations

from itertools import product
from math import comb

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from studies.analysis.paired import paired_accuracy, paired_kl

ANSWERS = st.lists(st.tuples(*[st.sampled_from([0, 1, None])] * 2), max_size=12)


@given(ANSWERS)
def test_accuracy_is_judged_by_items_that_one_of_both_has_right(pairs: list[tuple[int | None, int | None]]) -> None:
    first, second = [one for one, _ in pairs], [other for _, other in pairs]
    found, counted = paired_accuracy(first, second), [pair for pair in pairs if None not in pair]
    if not counted:
        assert found is None
        return
    assert found is not None
    won, lost = counted.count((1, 0)), counted.count((0, 1))
    assert (found.first_only, found.second_only) == (won, lost)
    # Every split of the discordant items is as likely as its mirror image: count those at least as uneven.
    n = won + lost
    uneven = sum(comb(n, k) for k in range(n + 1) if abs(2 * k - n) >= abs(won - lost))
    assert found.p_value == pytest.approx(uneven / 2**n)
    other = paired_accuracy(second, first)
    assert other is not None
    opposite = {"better": "worse", "worse": "better", "not told apart": "not told apart"}
    assert other.judgement == opposite[found.judgement]


def test_accuracy_is_told_apart_from_six_items_on() -> None:
    for n, judgement in ((5, "not told apart"), (6, "better")):
        found = paired_accuracy([1] * n + [0, 1], [0] * n + [0, 1])
        assert found is not None and found.judgement == judgement


def test_kl_is_weighted_by_tokens_and_its_interval_is_of_items_drawn_together() -> None:
    first, second, n_tokens = (0.1, 0.4, 0.2), (0.2, 0.6, 0.1), (1, 2, 4)
    found = paired_kl(first, second, n_tokens)
    assert found.difference == pytest.approx((-0.1 - 2 * 0.2 + 4 * 0.1) / 7)
    # All draws of three items, one by one.
    means = [
        sum(n_tokens[i] * (first[i] - second[i]) for i in drawn) / sum(n_tokens[i] for i in drawn)
        for drawn in product(range(3), repeat=3)
    ]
    assert min(means) <= found.low <= np.quantile(means, 0.05) and np.quantile(means, 0.95) <= found.high <= max(means)
    assert found.judgement == "not told apart"


@pytest.mark.parametrize(("shift", "judgement"), [(-0.05, "better"), (0.05, "worse"), (0.0, "not told apart")])
def test_what_differs_by_more_than_items_do_is_told_apart(shift: float, judgement: str) -> None:
    draws = np.random.default_rng(0)
    kl = draws.exponential(0.3, 80)
    noisy = kl + shift + draws.normal(0, 0.03, 80)
    assert paired_kl(noisy.tolist(), kl.tolist(), [3] * 80).judgement == judgement


def test_figures_of_other_items_are_refused() -> None:
    with pytest.raises(ValueError, match="shorter|longer|argument"):
        paired_accuracy([1], [1, 0])
    with pytest.raises(ValueError, match="not of the same items"):
        paired_kl([0.1, 0.2], [0.1], [1, 1])
