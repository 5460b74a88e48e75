"""A method is asked to save operations until its prefill takes as long as wanted."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ftp_core.errors import ModelError
from search.comparison.matching import matched_in_time
from search.errors import SearchError

WANTED = st.floats(0.05, 0.6)


@given(WANTED, st.floats(0.3, 1.0), st.floats(0.7, 1.6))
def test_smooth_methods_are_matched(wanted: float, most: float, power: float) -> None:
    def saved(share: float) -> float:
        return most * share**power

    found = matched_in_time(lambda share: share, saved, wanted)
    assert found.share == found.model
    if saved(0.95) >= wanted + 0.02:
        assert abs(saved(found.model) - wanted) <= 0.06
    elif saved(0.95) < wanted - 0.02:
        # What cannot save as much saves nearly what it can.
        assert saved(found.model) >= 0.85 * saved(0.95)


@given(WANTED, st.integers(4, 30))
def test_methods_that_do_steps_save_enough_and_little_more(wanted: float, n_steps: int) -> None:
    made: list[int] = []

    def make(share: float) -> int:
        made.append(round(share * n_steps))
        return made[-1]

    found = matched_in_time(make, lambda steps: steps / n_steps, wanted)
    assert len(made) <= 6
    enough = [steps for steps in made if steps / n_steps >= wanted - 0.015]
    assert found.model == (min(enough) if enough else max(made))
    assert found.model <= math.ceil(wanted * n_steps) + max(1, n_steps // 12)


def test_shares_that_a_method_refuses_are_beyond_it() -> None:
    def make(share: float) -> float:
        if share > 0.3:
            raise SearchError("no schedule saves as much")
        return share

    assert 0.2 <= matched_in_time(make, lambda share: share, 0.5).model <= 0.3


def test_a_method_that_cannot_be_applied_says_so() -> None:
    def make(share: float) -> float:
        raise ModelError("this family has no heads to prune")

    with pytest.raises(ModelError, match="no heads"):
        matched_in_time(make, lambda share: share, 0.3)
