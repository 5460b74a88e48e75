"""Times are believed only where what is known of them beforehand comes out, and speed-ups with intervals."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from studies import Measurement
from studies.analysis.clock import check_clock
from studies.analysis.prefill_speed import prefill_speedup
from studies.analysis.verdict import verdict_of
from studies.records.study_facts import StudyFacts

N_BLOCKS = 4


def timed(variant: str, sparsity: float, ratio: float, width: float = 0.02, **changes: Any) -> Measurement:
    """A measurement whose speed-up has an interval of so much to either side."""
    made = Measurement(
        **{"variant": variant, "trial": None, "schedule": (sparsity,) * N_BLOCKS, "kl": 0.1, "perplexity": 2.0},
        **{"accuracy": None, "accuracy_low": None, "accuracy_high": None, "n_items": 50},
        **{"latency_ms": 240.0 / ratio, "latency_low_ms": 1.0, "latency_high_ms": 1e3, "repeats": 36},
        **{"batch": 8, "length": 64, "flops": 1e9 * (1 - sparsity)},
        **{"speedup": ratio, "speedup_low": ratio * (1 - width), "speedup_high": ratio * (1 + width)},
    )
    return replace(made, **changes)


QUIET = [timed("dense", 0.0, 1.0), timed("static", 0.3, 1.4), timed("candidate", 0.5, 1.9, trial=7)]


def test_a_quiet_machine_raises_no_doubt() -> None:
    check = check_clock(QUIET, "test")
    assert check is not None and check.is_usable and check.sentence == ""
    assert (check.turns, check.of_itself, check.half_width) == (36, 1.0, pytest.approx(0.02))


@pytest.mark.parametrize(
    ("row", "words"),
    [
        (
            timed("dense", 0.0, 238 / 158),
            "the dense model, timed twice in every turn, was 1.51 times [1.48, 1.54] as fast as itself",
        ),
        (timed("dense", 0.0, 0.8), "was 0.80 times [0.78, 0.82] as fast as itself"),
        (
            timed("candidate", 0.0, 1.5, trial=0),
            "the dense model, as trial 0, was 1.50 times [1.47, 1.53] as fast as itself",
        ),
        (
            timed("candidate", 0.36, 7.41, trial=5),
            "trial 5 was 7.41 times [7.26, 7.56] as fast as dense, with 1.56 times fewer",
        ),
        (timed("candidate", 0.5, 1.9, 0.35, trial=6), "known to within 35% only (trial 6: 1.90 times [1.23, 2.56])"),
        (timed("uniform", 0.5, 1.9, speedup_low=None, speedup_high=None), "36 turns are too few to tell"),
    ],
)
def test_what_cannot_be_is_a_doubt(row: Measurement, words: str) -> None:
    others = [m for m in QUIET if m.variant != row.variant]
    check = check_clock([*others, row], "test")
    assert check is not None and not check.is_usable and len(check.doubts) == 1
    assert check.sentence.startswith("Times were not usable, the machine was busy: ") and words in check.sentence
    assert check.to_json()["sentence"] == check.sentence


@given(st.floats(0.3, 3.0), st.floats(0.001, 0.5))
def test_the_dense_model_is_believed_where_it_is_as_fast_as_itself_within_a_narrow_interval(
    ratio: float, width: float
) -> None:
    check = check_clock([timed("dense", 0.0, ratio, width)], "test")
    assert check is not None
    assert check.is_usable == (ratio * (1 - width) <= 1.01 and ratio * (1 + width) >= 0.99 and width <= 0.15)


def test_times_that_are_usable_but_not_precise_say_so() -> None:
    check = check_clock([QUIET[0], timed("static", 0.3, 1.4, 0.06)], "test")
    assert check is not None and check.is_usable
    assert check.sentence == "Times are not precise: after 36 turns, speed-ups are known to within 6% at worst."


def test_each_sitting_is_checked_by_itself() -> None:
    off = [timed("dense", 0.0, 1.5, split="validation"), *QUIET]
    seen, tested = check_clock(off, "validation"), check_clock(off, "test")
    assert seen is not None and tested is not None and (seen.is_usable, tested.is_usable) == (False, True)
    assert check_clock([], "test") is check_clock(QUIET[1:], "test") is None


def test_a_speedup_says_its_interval_or_why_that_is_not_known() -> None:
    static = QUIET[1]
    assert str(prefill_speedup(static)) == "1.40 times [1.37, 1.43] the dense model's prefill speed"
    few = prefill_speedup(replace(static, speedup_low=None, speedup_high=None, repeats=5))
    assert str(few).startswith("1.40 times (interval unknown: 5 turns are too few for one)")


@given(st.floats(0.2, 5), st.floats(0, 0.5))
def test_faster_and_slower_are_what_the_whole_interval_is(ratio: float, width: float) -> None:
    found = prefill_speedup(timed("static", 0.3, ratio, width))
    assert found.is_faster == (ratio * (1 - width) > 1) and found.is_slower == (ratio * (1 + width) < 1)


def test_the_verdict_says_where_its_speed_tells_little() -> None:
    dense, static, _ = QUIET
    assert verdict_of(StudyFacts(), static, dense, None, None).endswith(
        "at 1.40 times [1.37, 1.43] the dense model's speed."
    )
    busy = verdict_of(StudyFacts(), static, timed("dense", 0.0, 1.5), None, None)
    assert busy.endswith("the dense model's speed, which tells little, as the machine was too busy to be timed.")
