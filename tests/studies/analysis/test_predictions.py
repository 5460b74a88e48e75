"""Predicted latency is shown beside what was measured, and said to be worth little where it is."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from studies import StudyRecord
from studies.analysis.predictions import LatencyPredictions, Prediction, latency_predictions
from studies.records.study_facts import ProfileRecord, StudyFacts
from tests.dashboards.records import DATA, REFINED, STUDY, measurement

DENSE_MS = next(m.latency_ms for m in DATA.measurements if m.variant == "dense" and m.split == "test")


def study(doubts: tuple[str, ...] = (), **changes: Any) -> StudyRecord:
    profile = ProfileRecord(batch=8, length=256, dense_ms=2 * DENSE_MS, doubts=doubts)
    return replace(STUDY, facts=STUDY.facts.updated(StudyFacts(latency_profile=profile)), **changes)


def test_dense_and_selected_are_compared_with_what_was_measured() -> None:
    trials = [replace(t, metrics={"latency_ms": 99.0}) if t.number == REFINED.number else t for t in DATA.trials]
    found = latency_predictions(study(), trials, DATA.measurements)
    dense, selected = found.compared
    assert dense == Prediction("dense", 2 * DENSE_MS, DENSE_MS) and dense.ratio == pytest.approx(2.0)
    own = next(m for m in DATA.measurements if (m.trial, m.router, m.split) == (REFINED.number, 0, "test"))
    assert selected == Prediction("selected", 99.0, own.latency_ms)
    assert f"dense {2 * DENSE_MS:.1f} predicted, {DENSE_MS:.1f} ms measured (2.00x)" in found.sentence("one")


@pytest.mark.parametrize("kind", ["dynamic", "hidden"])
def test_a_router_that_was_predicted_as_another_kind_is_named(kind: str) -> None:
    chosen = replace(REFINED, router=0)
    trials = [chosen if t.number == REFINED.number else t for t in DATA.trials]
    routers = [replace(DATA.router_runs[0], number=0, config={"kind": kind})]
    dense, selected = latency_predictions(study(), trials, DATA.measurements, routers).compared
    assert not dense.as_dynamic and selected.as_dynamic == (kind == "hidden")
    said = "predicted (its router reads hidden states, and counts as the dynamic one), "
    assert (said in str(selected)) == (kind == "hidden")


def test_predictions_carry_the_uncertainty_of_the_profile() -> None:
    shapes = ({"uncertainty": 0.1}, {"uncertainty": None})
    profile = ProfileRecord.model_validate({"batch": 8, "length": 256, "dense_ms": 200.0, "shapes": shapes})
    known = replace(STUDY, facts=STUDY.facts.updated(StudyFacts(latency_profile=profile)))
    dense = latency_predictions(known, DATA.trials, DATA.measurements).compared[0]
    assert str(dense).startswith("dense 200.0 ± 20.0 predicted, ")


def test_without_a_profile_that_says_so_it_is_what_the_dense_trial_was_predicted_to_take() -> None:
    dense, selected = latency_predictions(STUDY, DATA.trials, DATA.measurements).compared
    assert DATA.trials[0].values is not None and REFINED.values is not None
    assert (dense.predicted_ms, selected.predicted_ms) == (DATA.trials[0].values[1], REFINED.values[1])


def test_before_anything_is_measured_there_are_doubts_alone() -> None:
    assert latency_predictions(study(), DATA.trials, []) == LatencyPredictions()
    found = latency_predictions(study(("predictions were off by 239%",)), DATA.trials, [])
    assert found.compared == () and found.is_doubtful
    said = found.sentence("one")
    assert said.startswith(
        "Predicted latency, by which schedules were chosen, is not to be relied on: predictions were"
    )
    assert "`ftp-search resume one --remeasure`" in said


@pytest.mark.parametrize(("ratio", "is_off"), [(1.0, False), (1.24, False), (0.81, False), (1.26, True), (0.79, True)])
def test_a_prediction_that_is_off_says_so(ratio: float, is_off: bool) -> None:
    found = LatencyPredictions(compared=(Prediction("dense", 10.0 * ratio, 10.0),))
    assert found.is_doubtful == is_off and bool(found.sentence("one")) == is_off
    assert not is_off or found.sentence("one").startswith("Predicted and measured latency disagree: dense ")


def test_figures_of_validation_items_serve_until_there_are_those_of_test_items() -> None:
    early = measurement("dense", None, 0.0, 195, 77.0, split="validation")
    assert latency_predictions(study(), [], [early]).compared == (Prediction("dense", 2 * DENSE_MS, 77.0),)


def test_a_search_of_other_costs_predicts_nothing() -> None:
    counted = study(("busy",), objectives=("kl", "flops"))
    assert latency_predictions(counted, DATA.trials, DATA.measurements) == LatencyPredictions()
    limited = replace(counted, config={**STUDY.config, "max_latency_ms": 30.0})
    assert latency_predictions(limited, DATA.trials, DATA.measurements).doubts == ("busy",)
