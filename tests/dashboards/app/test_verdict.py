"""The page of a study begins with what it came to, and never shows as a success what is none."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest

from dashboards import ReportData
from dashboards.app.verdict import files, judgement, verdict
from dashboards.report.html import render_report
from dashboards.report.results import results_table
from dashboards.report.speeds import speeds_table
from dashboards.report.summary import key_figures
from studies.analysis.predictions import LatencyPredictions, Prediction
from studies.records.study_facts import StudyFacts
from tests.dashboards import records
from tests.dashboards.records import DATA

NONE = LatencyPredictions()


def with_speed(ratio: float, width: float | None = 0.02, of: tuple[str, ...] = ("refined",), **more: Any) -> ReportData:
    """The data where rows of these variants run at another speed."""
    ends = {"speedup_low": None, "speedup_high": None}
    if width is not None:
        ends = {"speedup_low": ratio * (1 - width), "speedup_high": ratio * (1 + width)}
    ms = 40.8 / ratio
    times = {"latency_ms": ms, "latency_low_ms": 0.98 * ms, "latency_high_ms": 1.03 * ms}
    rows = [
        replace(m, speedup=ratio, **ends, **times, **more) if m.split == "test" and m.variant in of else m
        for m in DATA.measurements
    ]
    return replace(DATA, measurements=rows)


def text_of(component: Any) -> str:
    return json.dumps(component, default=lambda one: one.to_plotly_json())


def tones(data: ReportData) -> dict[str, set[str]]:
    """The tones of speed-ups, by the place where they stand."""
    [row] = [row for row in results_table(data).rows if row.marked]
    [tile] = [one for one in key_figures(data) if one.label == "prefill speed-up, measured"]
    return {"row": {cell.tone for cell in row.cells} - {""}, "tile": {tile.tone} - {""}}


@pytest.mark.parametrize(
    ("data", "tone", "words"),
    [
        (DATA, "good", "Faster than the dense model, and better than a shortened prompt"),
        (with_speed(0.43), "bad", "Slower than the dense model"),
        (with_speed(0.43, None), "unclear", "not usable"),
        (with_speed(1.01), "unclear", "No speed-up is shown"),
        (with_speed(1.3, kl=0.5), "bad", "No better than a shortened prompt"),
        (with_speed(1.04, 0.01, ("dense",)), "unclear", "not usable"),
        (with_speed(0.43, schedule=(0.0,) * records.N_BLOCKS), "unclear", "Nothing is skipped"),
    ],
)
def test_the_judgement_is_what_was_measured(data: ReportData, tone: str, words: str) -> None:
    found = judgement(data)
    assert found is not None and found.tone == tone and words in found.words
    shown = text_of(verdict(data, NONE))
    places = [shown.index(json.dumps(part)[1:-1]) for part in (found.words, data.verdict, "Limits", "card")]
    assert places == sorted(places) and f"outcome {tone}" in shown


@pytest.mark.parametrize(
    ("data", "tone"),
    [
        (with_speed(0.43), {"bad"}),
        (with_speed(1.01), {"unclear"}),
        (with_speed(0.99), {"unclear"}),
        (with_speed(1.3), set()),
        # Nothing is told by a clock on which the dense model is not as fast as itself.
        (with_speed(1.04, 0.01, ("dense",)), {"unclear"}),
        (with_speed(0.96, 0.01, ("dense",)), {"unclear"}),
        (with_speed(1.01, 0.01, ("dense",)), set()),
    ],
)
def test_a_speed_up_is_muted_where_it_is_not_shown_and_bad_where_it_is_none(data: ReportData, tone: set[str]) -> None:
    assert tones(data) == {"row": tone, "tile": tone}
    page = render_report(data).split("</style>")[1]
    for one in ("bad", "unclear"):
        assert (f'<div class="card {one}">' in page) == (one in tone)


def test_few_turns_are_judged_by_quartiles() -> None:
    from dashboards.analysis.speed_tones import prefill_tone

    dense = DATA.measured("dense")
    for ratio, tone in ((0.43, "bad"), (1.01, "unclear"), (1.5, "")):
        assert prefill_tone(with_speed(ratio, None).results[4], dense, None) == tone


def test_generated_tokens_that_gain_nothing_are_not_shown_as_a_gain() -> None:
    speeds = [
        replace(one, speedup=0.9, speedup_low=0.88, speedup_high=0.92)
        if one.variant == "refined" and one.new_tokens == 64
        else replace(one, speedup_low=0.95, speedup_high=1.2)
        if one.variant == "refined" and one.new_tokens == 16
        else one
        for one in records.speeds()
    ]
    data = records.with_facts(DATA, generation_speeds=tuple(speeds))
    told = [[cell.tone for cell in row.cells] for row in speeds_table(data).rows if "512" not in row.cells[0].text]
    assert ["bad" in row for row in told] == [False, False, True]
    assert ["unclear" in row for row in told] == [False, True, False]
    assert [one.tone for one in key_figures(data) if "new tokens" in one.label] == ["bad"]


def test_what_predictions_are_worth_comes_first_and_once() -> None:
    doubtful = LatencyPredictions(
        ("predictions at 8 x 256 were off by 23% right afterwards",), (Prediction("dense", 9.0, 40.8),)
    )
    data = records.with_facts(DATA, exported="/models/pruned")
    shown = text_of(verdict(data, doubtful))
    said = json.dumps(doubtful.sentence("made up"))[1:-1]
    assert "off by 23%" in said and shown.count(said) == 1
    assert shown.index(data.verdict[:30]) < shown.index(said) < shown.index("KL interval of the selected point")


def test_before_anything_was_measured_only_the_limits_are_said() -> None:
    data = records.with_facts(replace(DATA, measurements=[], examples=None), selection=None)
    data = replace(data, study=replace(data.study, chosen_trial=None, facts=StudyFacts()))
    assert judgement(data) is None and verdict(data, NONE) == []
    doubtful = LatencyPredictions(("the machine was busy",))
    assert "the machine was busy" in text_of(verdict(data, doubtful)) and "card" not in text_of(verdict(data, doubtful))


def test_files_are_offered_once_they_are_written() -> None:
    stages = records.stages()
    assert files("a b", [one for one in stages if one.name not in ("export", "report")]) == []
    assert [one.href for one in files("a/b", stages)] == [
        "/api/v1/studies/a%2Fb/report/report.html",
        "/api/v1/studies/a%2Fb/model",
    ]
