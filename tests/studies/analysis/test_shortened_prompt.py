"""What no schedule but a shorter prompt would do is said in so many words; what a search gains, with its figures."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from studies import Measurement, Trial, TrialState
from studies.analysis.shortened_prompt import measured_against_shortened_prompt, searched_against_shortened_prompt
from studies.records.records import ReportExamples
from tests.studies.records import trial

KL = st.floats(1e-4, 10.0)
N_BLOCKS = 4


def measured(variant: str, schedule: tuple[float, ...], kl: float, flops: float) -> Measurement:
    return Measurement(
        **{"variant": variant, "trial": None, "schedule": schedule, "kl": kl, "perplexity": 2.0, "accuracy": None},
        **{"accuracy_low": None, "accuracy_high": None, "n_items": 50, "latency_ms": 1.0, "latency_low_ms": 1.0},
        **{"latency_high_ms": 1.0, "repeats": 3, "batch": 8, "length": 64, "flops": flops},
    )


DENSE = measured("dense", (0.0,) * N_BLOCKS, 0.0, 100.0)


def pair(kl: float, uniform_kl: float) -> tuple[Measurement, Measurement]:
    return (
        measured("static", (0.0, 0.2, 0.4, 0.6), kl, 70.5),
        measured("uniform", (0.3,) * N_BLOCKS, uniform_kl, 70.0),
    )


@given(KL, KL, st.floats(0.01, 1.0), st.floats(1.0, 3.0))
def test_a_schedule_is_better_where_the_whole_interval_of_the_ratio_says_so(
    kl: float, uniform_kl: float, below: float, above: float
) -> None:
    selected, uniform = pair(kl, uniform_kl)
    ratio = kl / uniform_kl
    examples = ReportExamples(kl_ratios={"uniform": (below * ratio, above * ratio)})
    found = measured_against_shortened_prompt(selected, uniform, DENSE, examples)
    assert found is not None and found.is_better == (above * ratio < 1)
    verdict = "better" if found.is_better else "no better"
    assert found.sentence.startswith(
        f"The schedule is {verdict} than a prompt shortened by 30 %: its KL is {ratio:.3g} "
    )
    assert f"[{below * ratio:.3g}, {above * ratio:.3g}]" in found.sentence
    assert found.sentence.endswith("50 test items), with 29.5 % and 30.0 % of the FLOPs saved.")
    assert found.to_json()["sentence"] == found.sentence


@given(st.lists(st.tuples(KL, KL), min_size=4, max_size=4))
def test_without_single_items_overlapping_intervals_leave_a_schedule_no_better(ends: list[tuple[float, float]]) -> None:
    own, other = sorted(ends[0]), sorted(ends[1])
    selected, uniform = pair(sum(own) / 2, sum(other) / 2)
    selected = replace(selected, kl_low=own[0], kl_high=own[1])
    uniform = replace(uniform, kl_low=other[0], kl_high=other[1])
    found = measured_against_shortened_prompt(selected, uniform)
    assert found is not None and found.is_better == (own[1] < other[0])
    assert ("the intervals overlap" in found.sentence) == (own[0] <= other[1] and other[0] <= own[1])


def test_without_any_interval_the_lower_kl_is_better() -> None:
    for kl, uniform_kl, verdict in ((0.1, 0.2, "better"), (0.2, 0.2, "no better"), (0.3, 0.2, "no better")):
        found = measured_against_shortened_prompt(*pair(kl, uniform_kl))
        assert found is not None and f"is {verdict} than a prompt shortened by 30 %" in found.sentence


def test_a_ratio_of_two_like_schedules_is_called_no_better_and_of_a_better_one_better() -> None:
    # Items that are hard for one are hard for the other: apart they would not tell.
    rng = np.random.default_rng(0)
    hard = rng.lognormal(0.0, 1.5, 200)
    for factor, verdict in ((1.0, "no better"), (0.8, "better"), (1.3, "no better")):
        other, own = hard * rng.lognormal(0.0, 0.2, 200), factor * hard * rng.lognormal(0.0, 0.2, 200)
        draws = rng.integers(200, size=(2000, 200))
        low, high = np.quantile(own[draws].sum(1) / other[draws].sum(1), [0.025, 0.975]).tolist()
        selected, uniform = pair(float(own.mean()), float(other.mean()))
        examples = ReportExamples(kl_ratios={"uniform": (low, high)})
        found = measured_against_shortened_prompt(selected, uniform, DENSE, examples)
        assert found is not None and f"is {verdict} than" in found.sentence


def test_where_there_is_nothing_to_compare_nothing_is_said() -> None:
    selected, uniform = pair(0.1, 0.2)
    assert measured_against_shortened_prompt(selected, None) is None
    assert measured_against_shortened_prompt(replace(selected, schedule=(0.0,) * N_BLOCKS), uniform) is None


def test_a_schedule_that_is_a_shortened_prompt_is_called_one() -> None:
    selected = replace(pair(0.1, 0.2)[0], schedule=(0.3,) * N_BLOCKS, kl=0.2)
    found = measured_against_shortened_prompt(selected, pair(0.1, 0.2)[1])
    assert found is not None and not found.is_better
    assert found.sentence == (
        "The schedule is no better than a prompt shortened by 30 %: it is one, the same tokens skip every block."
    )
    # With another router it keeps other tokens.
    routed = measured_against_shortened_prompt(replace(selected, router=0, kl=0.1), pair(0.1, 0.2)[1])
    assert routed is not None and routed.is_better


def test_a_model_that_loses_nothing_has_no_ratio() -> None:
    found = measured_against_shortened_prompt(*pair(0.1, 0.0))
    assert found is not None and "no better than a prompt shortened by 30 %: by KL (0.1 and 0 nats" in found.sentence


# Before anything is measured.


def searched(number: int, schedule: tuple[float, ...], kl: float) -> Trial:
    """A trial whose FLOPs are what its schedule keeps."""
    flops = 100.0 * sum(1 - share for share in schedule) / len(schedule)
    return replace(trial(number, (kl, flops), schedule), metrics={"flops": flops})


@given(
    st.lists(st.tuples(st.integers(1, 18), KL), max_size=8),
    st.lists(st.integers(0, 18), min_size=N_BLOCKS, max_size=N_BLOCKS),
    KL,
)
def test_a_search_is_compared_where_a_uniform_schedule_tells(
    uniform: list[tuple[int, float]], levels: list[int], kl: float
) -> None:
    chosen = searched(0, tuple(0.05 * level for level in levels), kl)
    others = [searched(1 + n, (0.05 * level,) * N_BLOCKS, one) for n, (level, one) in enumerate(uniform)]
    found = searched_against_shortened_prompt(chosen, [chosen, *others])
    if not any(levels):
        assert found is None
        return
    if len(set(levels)) == 1:
        assert found is not None and found.is_one and not found.is_better
        return
    own = chosen.metrics["flops"]
    if found is None:
        # Every cheaper one is worse, every dearer one is better, and none costs the same.
        for other in others:
            cheaper, better = other.metrics["flops"] < own, (other.values or (0.0,))[0] <= kl
            assert cheaper != better and abs(other.metrics["flops"] - own) > 0.01 * own
        return
    [beside] = [o for o in others if (o.values or ())[0] == found.shortened_kl][:1]
    assert found.shortened_by == pytest.approx(beside.overall_sparsity) or len(others) > 1
    assert found.is_better == (kl < found.shortened_kl)
    assert "on the search set alone" in found.sentence and "FLOPs saved" not in found.sentence


def test_trials_that_do_not_compare_tell_nothing() -> None:
    chosen = searched(0, (0.1, 0.3, 0.3, 0.5), 0.1)
    uniform = searched(1, (0.3,) * N_BLOCKS, 0.2)
    dense = searched(2, (0.0,) * N_BLOCKS, 0.0)
    found = searched_against_shortened_prompt(chosen, [chosen, uniform, dense])
    assert found is not None and found.is_better
    assert found.sentence.endswith("with 30.0 % and 30.0 % of the FLOPs saved.")
    for changes in ({"router": 0}, {"fidelity": 0.5}, {"state": TrialState.FAILED, "values": None}, {"metrics": {}}):
        assert searched_against_shortened_prompt(chosen, [chosen, replace(uniform, **changes), dense]) is None
    assert searched_against_shortened_prompt(replace(chosen, metrics={}), [uniform]) is None
