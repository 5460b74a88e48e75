"""Selection takes what was asked for, by validation figures alone, and says why; slow definitions are the reference."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from search.errors import SearchError
from search.stages.select import select
from studies import Measurement, front, knee
from studies.pareto import closest_to_sparsity
from studies.records.objectives import CostName
from studies.records.target import Target
from tests.studies.records import trial


def at(sparsity: float | None) -> Target | None:
    return None if sparsity is None else Target("target_sparsity", sparsity)


def measured(number: int | None, kl: float = 0.1, sparsity: float = 0.5, **changes: Any) -> Measurement:
    made = Measurement(
        variant="candidate",
        trial=number,
        schedule=(sparsity, sparsity),
        kl=kl,
        perplexity=2.0,
        accuracy=0.9,
        accuracy_low=0.85,
        accuracy_high=0.94,
        n_items=128,
        n_choice_items=128,
        latency_ms=50.0,
        latency_low_ms=49.0,
        latency_high_ms=51.0,
        repeats=9,
        batch=8,
        length=256,
        flops=2e9,
        kv_bytes=3 * 2**20,
        split="validation",
    )
    return replace(made, **changes)


DENSE = measured(None, 0.0, 0.0, variant="dense", accuracy=0.95, perplexity=1.9, latency_ms=100.0, flops=4e9)
WITHOUT_CHOICES: dict[str, Any] = {
    "accuracy": None,
    "accuracy_low": None,
    "accuracy_high": None,
    "n_choice_items": 0,
}


@st.composite
def candidates(draw: st.DrawFn) -> list[Measurement]:
    """Some on coarse grids, so that ties occur, in any order; a trial may be there with several routers."""
    found = {}
    for _ in range(draw(st.integers(1, 9))):
        number, router = draw(st.integers(0, 9)), draw(st.none() | st.integers(0, 2))
        found[number, router] = measured(
            number,
            draw(st.integers(0, 15)) / 10,
            draw(st.integers(0, 9)) / 10,
            router=router,
            accuracy=draw(st.integers(90, 97)) / 100,
            perplexity=draw(st.integers(19, 25)) / 10,
            latency_ms=float(draw(st.integers(1, 9))),
            flops=float(draw(st.integers(1, 9))),
            kv_bytes=draw(st.integers(1, 9)),
        )
    return list(found.values())


costs = st.sampled_from(["latency_ms", "flops", "kv_bytes"])
limits = st.none() | st.integers(1, 9).map(float)
targets = st.integers(0, 9).map(lambda tenths: tenths / 10)
retentions = st.integers(90, 100).map(lambda hundredths: hundredths / 100)


def keeps(m: Measurement, share: float) -> bool:
    """Whether accuracy is that share of the dense model's; hundredths in whole numbers, so that nothing is rounded."""
    assert m.accuracy is not None
    return 100 * round(100 * m.accuracy) >= round(100 * share) * 95


def lowest(points: Sequence[Measurement], *figures: str) -> Measurement:
    """The one with the lowest figures, the first of which counts most; then KL, trial and router decide."""

    def figures_of(m: Measurement) -> tuple[float, ...]:
        named = [getattr(m, name) for name in (*figures, "kl", "trial")]
        return (*named, -1 if m.router is None else m.router)

    return sorted(points, key=figures_of)[0]


@given(points=candidates(), cost=costs, limit=limits, share=retentions)
def test_the_cheapest_that_keeps_the_retention_within_the_latency_is_taken(
    points: list[Measurement], cost: CostName, limit: float | None, share: float
) -> None:
    found = select(points, DENSE, cost=cost, max_latency_ms=limit, min_retention=share)
    within = [m for m in points if limit is None or m.latency_ms <= limit]
    keeping = [m for m in within if keeps(m, share)]
    if not within:
        expected, rule = lowest(points, "latency_ms"), "max_latency_ms"
    elif keeping:
        expected, rule = lowest(keeping, cost), "min_retention"
    else:
        most = max(m.accuracy for m in within if m.accuracy)
        expected, rule = lowest([m for m in within if m.accuracy == most]), "min_retention"
    assert (found.measurement, found.rule) == (expected, rule)
    assert ("No candidate" in found.reason) == (not keeping)
    assert expected.accuracy is not None and found.retention == expected.accuracy / 0.95


@given(points=candidates(), limit=limits, target=targets, share=st.none() | retentions)
def test_the_lowest_kl_at_the_target_is_taken_of_those_that_keep_what_is_demanded(
    points: list[Measurement], limit: float | None, target: float, share: float | None
) -> None:
    within = [m for m in points if limit is None or m.latency_ms <= limit]
    assume(within)
    found = select(points, DENSE, cost="latency_ms", max_latency_ms=limit, target=at(target), min_retention=share)
    distances = [abs(round(10 * m.schedule[0]) - round(10 * target)) for m in within]
    near = [m for m, distance in zip(within, distances, strict=True) if distance == min(distances)]
    keeping = [m for m in near if share is None or keeps(m, share)]
    if keeping:
        expected, rule = lowest(keeping), "target_sparsity"
    else:
        most = max(m.accuracy for m in near if m.accuracy)
        expected, rule = lowest([m for m in near if m.accuracy == most]), "min_retention"
    assert (found.measurement, found.rule) == (expected, rule)
    assert ("No candidate" in found.reason) == (not keeping or min(distances) > 0)


@given(points=candidates(), target=targets)
def test_a_target_means_the_same_as_for_the_trials_of_a_front(points: list[Measurement], target: float) -> None:
    moved = [replace(m, schedule=(m.schedule[0], m.schedule[1] + 0.05)) for m in points]
    trials = [trial(n, (m.kl, n), m.schedule) for n, m in enumerate(sorted(moved, key=lambda m: m.trial or 0))]
    found = select(moved, DENSE, cost="latency_ms", target=at(target)).measurement
    of_trials = closest_to_sparsity(trials, target)
    assert of_trials.values is not None and found.kl == of_trials.values[0]


@given(points=candidates(), cost=costs, limit=limits)
def test_without_a_demand_the_knee_of_what_is_left_is_taken(
    points: list[Measurement], cost: CostName, limit: float | None
) -> None:
    within = [m for m in points if limit is None or m.latency_ms <= limit]
    assume(within)
    ordered = sorted(within, key=lambda m: (m.trial, -1 if m.router is None else m.router))
    trials = [trial(n, (m.kl, float(getattr(m, cost))), m.schedule) for n, m in enumerate(ordered)]
    expected = knee(front(trials))
    sparse = [one for one in trials if any(one.schedule)]
    if sparse and not any(expected.schedule):
        expected = knee(front(sparse))
    found = select(points, DENSE, cost=cost, max_latency_ms=limit)
    assert (found.measurement, found.rule) == (ordered[expected.number], "knee")


@given(points=candidates(), cost=costs, limit=limits, target=st.none() | targets, share=st.none() | retentions)
def test_the_order_of_candidates_changes_nothing_and_the_reason_is_a_sentence_or_two(
    points: list[Measurement], cost: CostName, limit: float | None, target: float | None, share: float | None
) -> None:
    asked: dict[str, Any] = {"max_latency_ms": limit, "target": at(target), "min_retention": share}
    found = select(points, DENSE, cost=cost, **asked)
    assert select(points[::-1], DENSE, cost=cost, **asked) == found
    assert found.reason.count(". ") == 1 and found.reason.endswith(".")
    assert f"trial {found.measurement.trial}" in found.reason.lower()
    assert "128 validation items" in found.reason and "(95 % interval 85.0 to 94.0 %)" in found.reason


def test_a_share_that_float32_rounds_down_is_kept() -> None:
    rounded = measured(1, accuracy=0.949999988079071)
    assert select([rounded], replace(DENSE, accuracy=1.0), cost="flops", min_retention=0.95).reason.startswith(
        "Trial 1"
    )


def test_without_choices_the_ratio_of_perplexities_is_kept_and_the_reason_says_so() -> None:
    dense = replace(DENSE, **WITHOUT_CHOICES)
    points = [
        measured(1, latency_ms=10.0, perplexity=2.5, **WITHOUT_CHOICES),
        measured(2, latency_ms=20.0, perplexity=1.95, **WITHOUT_CHOICES),
        measured(3, latency_ms=30.0, perplexity=1.9, **WITHOUT_CHOICES),
    ]
    found = select(points, dense, cost="latency_ms", min_retention=0.97)
    assert (found.measurement.trial, found.retention) == (2, 1.9 / 1.95)
    assert found.reason == (
        "Trial 2 has the lowest measured latency of 2 candidates that keep 97 % by the ratio of perplexities, dense to "
        "pruned, as the data has no choices. On 128 validation items its perplexity is 1.95, the dense model's 1.9; "
        "its KL is 0.1 nats per token, and a prefill of 8 × 256 tokens takes 20.0 ms instead of 100.0 ms."
    )


def test_a_demand_that_nobody_meets_is_said_with_what_the_nearest_does() -> None:
    points = [measured(4, accuracy=0.92, accuracy_low=0.87, accuracy_high=0.96), measured(5, accuracy=0.8)]
    found = select(points, DENSE, cost="flops", min_retention=0.99, max_latency_ms=60.0)
    assert found.reason == (
        "No candidate within 60 ms keeps 99 % of the dense model's accuracy; the best of 2, trial 4, keeps 96.84 %. On "
        "128 validation items it has 92.0 % right (95 % interval 87.0 to 96.0 %), the dense model 95.0 %; its KL is "
        "0.1 nats per token, and a prefill of 8 × 256 tokens takes 50.0 ms instead of 100.0 ms, with 2 GFLOPs "
        "instead of 4 GFLOPs."
    )
    found = select(points, DENSE, cost="flops", target=at(0.3), min_retention=0.99)
    assert found.reason.startswith(
        "No candidate has 30 % overall sparsity, and none nearest to it keeps 99 % of the dense model's accuracy; the "
        "best, trial 4, keeps 96.84 %."
    )
    found = select(points, DENSE, cost="flops", max_latency_ms=20.0, target=at(0.3))
    assert found.reason.startswith("No candidate runs within 20 ms; the fastest of 2, trial 4, takes 50.0 ms.")


def test_the_reason_says_if_latency_is_predicted() -> None:
    found = select([measured(1), measured(2, latency_ms=40.0)], DENSE, cost="latency_ms", latency="predicted")
    assert "KL against predicted latency bends most" in found.reason
    assert "a prefill of 8 × 256 tokens is predicted to take" in found.reason


def test_the_knee_is_not_the_dense_model_where_something_else_is_left() -> None:
    dense, other = measured(0, 0.0, 0.0, latency_ms=10.0), measured(1, 0.6, latency_ms=9.0)
    assert select([dense, other], DENSE, cost="latency_ms").measurement is other
    assert select([dense], DENSE, cost="latency_ms").measurement is dense


def test_the_test_set_stays_unseen() -> None:
    seen = replace(measured(3), split="test")
    with pytest.raises(SearchError, match="Trial 3 was measured on test examples, but selection may see validation"):
        select([measured(1), seen], DENSE, cost="latency_ms")
    with pytest.raises(SearchError, match="The dense model was measured on test examples"):
        select([measured(1)], replace(DENSE, split="test"), cost="latency_ms")


@pytest.mark.parametrize(
    ("target", "words"),
    [
        (Target("target_flops_saved", 0.25), "at 25 % of FLOPs saved"),
        (Target("target_speedup", 1.3), "at a predicted speed-up of 1.3"),
    ],
)
def test_where_a_cost_is_the_target_every_candidate_counts_however_sparse(target: Target, words: str) -> None:
    points = [measured(1, 0.3, 0.1), measured(2, 0.1, 0.6), measured(3, 0.2, 0.25)]
    found = select(points, DENSE, cost="flops", target=target)
    assert (found.measurement.trial, found.rule) == (2, target.kind)
    assert found.reason.startswith(f"Trial 2 has the lowest KL of 3 candidates {words}.")


def test_a_trial_that_was_asked_for_is_selected_whatever_the_others_are() -> None:
    points = [measured(1, 0.3, latency_ms=99.0), measured(2, 0.1), measured(3, math.nan)]
    found = select(points, DENSE, cost="latency_ms", target=at(0.5), max_latency_ms=9.0, min_retention=0.9, trial=1)
    assert (found.measurement.trial, found.rule) == (1, "asked") and found.reason.startswith("Trial 1 was asked for.")
    for missing in (3, 4):
        with pytest.raises(SearchError, match=f"Trial {missing} is to be selected, but has no finite figures"):
            select(points, DENSE, cost="latency_ms", trial=missing)


def test_what_the_model_cannot_compute_is_no_candidate_and_none_at_all_is_an_error() -> None:
    broken = measured(1, math.nan)
    assert select([broken, measured(2, 0.5)], DENSE, cost="flops", target=at(0.5)).measurement.trial == 2
    for nothing in ([], [broken]):
        with pytest.raises(SearchError, match="no candidate with a finite KL"):
            select(nothing, DENSE, cost="flops")


def test_a_retention_of_a_dense_model_that_guesses_is_read_by_perplexities_and_the_reason_says_so() -> None:
    guesses: dict[str, Any] = {"accuracy": 0.27, "accuracy_low": 0.2, "accuracy_high": 0.35}
    dense = replace(DENSE, **guesses)
    # By accuracy the first one would keep more than all, and be the cheapest.
    points = [
        measured(1, latency_ms=10.0, perplexity=9.0, **{**guesses, "accuracy": 0.3}),
        measured(2, latency_ms=20.0, perplexity=1.95, **{**guesses, "accuracy": 0.22}),
        measured(3, latency_ms=30.0, perplexity=1.9, **guesses),
    ]
    found = select(points, dense, cost="latency_ms", min_retention=0.97, chance=0.25)
    assert (found.measurement.trial, found.retention) == (2, 1.9 / 1.95)
    assert "by the ratio of perplexities, dense to pruned, as the dense model only guesses." in found.reason
    assert "answers no better than chance (27.0% of 128 items, chance 25.0%)" in found.reason
    for chance in (None, 0.1):
        found = select(points, dense, cost="latency_ms", min_retention=0.97, chance=chance)
        assert found.measurement.trial == 1 and found.retention == 0.3 / 0.27
        assert "of the dense model's accuracy" in found.reason and "chance" not in found.reason
    knee = select(points, dense, cost="latency_ms", chance=0.25)
    assert knee.rule == "knee" and "answers no better than chance" in knee.reason


def test_what_is_slower_than_the_dense_model_is_taken_only_if_all_at_the_target_are() -> None:
    slower, faster = (
        {"speedup": ratio, "speedup_low": ratio - 0.1, "speedup_high": ratio + 0.1} for ratio in (0.8, 1.2)
    )
    unclear = {"speedup": 0.95, "speedup_low": 0.85, "speedup_high": 1.05}
    best, other = measured(1, 0.1, router=0, **slower), measured(2, 0.2, **unclear)
    elsewhere = measured(3, 0.05, 0.2, **faster)
    for points, expected in [([best, other, elsewhere], other), ([best, elsewhere], best)]:
        found = select(points, DENSE, cost="latency_ms", target=at(0.5))
        assert found.measurement == expected
        assert ("not slower than the dense model" in found.reason) == (expected == other)
    dense = measured(4, 0.0, 0.0, **unclear)
    for points, taken in [([best, other, dense], other), ([best, dense], best)]:
        assert select(points, DENSE, cost="latency_ms").measurement == taken
    keeping = [replace(one, accuracy=0.95) for one in (best, other)]
    assert select(keeping, DENSE, cost="flops", min_retention=0.9).measurement == keeping[1]
