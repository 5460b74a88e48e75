"""The report shows what was remembered, opens offline, and is honest about what is missing or bad."""

from __future__ import annotations

import csv
import json
import re
import subprocess
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest

from dashboards import ReportData, write_report
from dashboards.analysis.records import VARIANT_TITLES
from dashboards.figures import (
    VARIANT_COLOURS,
    comparison_figure,
    front_figure,
    growth_figure,
    measurements_figure,
    proposers_figure,
    schedules_figure,
    training_figure,
)
from dashboards.figures.measurements import measured_front
from dashboards.report.html import render_report
from dashboards.report.markdown import render_markdown
from dashboards.report.plain_values import report_json
from dashboards.report.summary import key_figures, summary_sentences
from studies import Measurement, RouterRun, StudyRecord, StudyState, Trial, TrialState
from studies.records.labels import Labels
from studies.records.study_facts import ProfileRecord, SelectionRecord, StudyFacts, TimedInput
from tests.studies.records import trial

STUDY = StudyRecord(
    name="fake",
    state=StudyState.FINISHED,
    created_at=datetime(2026, 1, 1, tzinfo=UTC),
    config={"model": "demo", "data": "demo"},
    objectives=("kl", "latency_ms"),
    facts=StudyFacts(n_blocks=2, selection=SelectionRecord(1, 0, "knee", "Trial 1 is the knee.")),
    chosen_trial=1,
)
TRIALS = [
    trial(0, (0.0, 10.0), (0.0, 0.0)),
    trial(1, (0.1, 6.0), (0.2, 0.6)),
    trial(2, (0.9, 5.5), (0.7, 0.7)),
    trial(3, (0.5, 9.0), (0.6, 0.0)),
    trial(4, None),
]
ROUTER = RouterRun(
    trial=1,
    schedule=(0.2, 0.6),
    config={"lr": 0.01},
    curves={
        "step": [0, 1, 2],
        "loss": [1.0, 0.7, 0.6],
        "guide": [0.5, 0.4, 0.4],
        "sparsity": [0.0, 0.0, 0.0],
        "distill": [0.5, 0.3, 0.2],
        "held_out_step": [2],
        "held_out_kl": [0.05],
    },
    sha256="0" * 64,
    seconds=3.0,
    created_at=datetime(2026, 1, 1, tzinfo=UTC),
)


def measured(variant: str, number: int | None, schedule: tuple[float, ...], kl: float, ms: float) -> Measurement:
    return Measurement(
        variant=variant,
        trial=number,
        schedule=schedule,
        kl=kl,
        perplexity=1.2,
        accuracy=0.98 - kl,
        accuracy_low=0.9 - kl,
        accuracy_high=0.99 - kl,
        n_items=200,
        latency_ms=ms,
        latency_low_ms=ms - 0.5,
        latency_high_ms=ms + 1,
        repeats=9,
        batch=8,
        length=256,
        flops=1e9 * ms,
        speedup=10 / ms,
        speedup_low=9.8 / ms,
        speedup_high=10.3 / ms,
    )


MEASURED = [
    measured("dense", None, (0.0, 0.0), 0.0, 10.0),
    measured("uniform", None, (0.4, 0.4), 0.4, 6.3),
    measured("candidate", 0, (0.0, 0.0), 0.0, 10.1),
    measured("static", 1, (0.2, 0.6), 0.1, 6.1),
    replace(measured("dynamic", 1, (0.2, 0.6), 0.05, 6.2), router=0),
]
DATA = ReportData(STUDY, TRIALS, MEASURED, [ROUTER])


def test_pareto_shows_every_measurement_in_its_variants_colour_and_rings_the_chosen_one() -> None:
    figure = measurements_figure(DATA.results, DATA.selected)
    traces = {trace.name: trace for trace in figure.data}
    static = traces[VARIANT_TITLES["static"]]
    assert list(static.x) == [6.1] and list(static.y) == pytest.approx([0.88])
    assert static.marker.color == VARIANT_COLOURS["static"]
    assert list(static.error_y.array) == pytest.approx([0.01])
    assert "% skipped by block:<br>20 60" in static.hovertext[0]
    assert "8 × 256 tokens" in static.hovertext[0]
    ring = traces["selected"]
    assert (list(ring.x), list(ring.y)) == ([6.2], pytest.approx([0.93]))
    assert "8 × 256 tokens" in figure.layout.title.subtitle.text
    assert "200 test items" in figure.layout.title.subtitle.text


def test_a_line_joins_non_dominated_points_and_dominated_ones_are_hollow() -> None:
    figure = measurements_figure(DATA.results, DATA.selected)
    line = next(trace for trace in figure.data if trace.mode == "lines")
    assert list(line.x) == [6.1, 6.2, 10.0]
    hollow = {trace.name for trace in figure.data if (trace.marker.symbol or "").endswith("-open")}
    assert hollow - {"selected"} == {VARIANT_TITLES["uniform"], VARIANT_TITLES["candidate"]}
    assert {m.variant for m in measured_front(DATA.results)} == {"dense", "static", "dynamic"}


def test_pareto_falls_back_to_kl_where_data_has_no_choices() -> None:
    figure = measurements_figure(
        [replace(m, accuracy=None, accuracy_low=None, accuracy_high=None) for m in MEASURED], None
    )
    assert "KL" in figure.layout.yaxis.title.text
    dynamic = next(trace for trace in figure.data if trace.name == VARIANT_TITLES["dynamic"])
    assert list(dynamic.y) == [0.05]


def test_the_front_figure_of_a_report_shows_finished_trials_and_the_front() -> None:
    figure = front_figure(DATA.found, standalone=True)
    traces = {trace.name: trace for trace in figure.data}
    assert list(traces["by deap"].x) == [9.0] and list(traces["front"].x) == [5.5, 6.0, 10.0]
    assert "4 comparable trials, 3 on the front, 1 failed" in figure.layout.title.subtitle.text


def test_the_front_figure_of_a_report_leaves_nothing_to_a_page_around_it() -> None:
    partial = replace(trial(5, (0.2, 3.0), (0.9, 0.9), fidelity=0.25), round=1, parents=(1,))
    found = replace(DATA, trials=[*TRIALS, partial]).found
    figure = front_figure(found, selected=1, standalone=True)
    [points] = [trace for trace in figure.data if trace.name == "by deap"]
    assert dict(zip(points.customdata, points.marker.symbol, strict=True)) == {3: "circle", 5: "circle-open"}
    [of_partial] = [text for number, text in zip(points.customdata, points.text, strict=True) if number == 5]
    assert of_partial == (
        "<br>made from trial 1<br>round 1, on 25% of the search set<br>"
        "overall sparsity 90.0%; % skipped by block:<br>90 90"
    )
    assert "hollow: 1 on a part" in figure.layout.title.subtitle.text
    assert figure.data[0].name == "selected: trial 1" and figure.data[0].showlegend and list(figure.data[0].x) == [6.0]
    # A page that shows the trial beside its figure does without.
    [points] = [trace for trace in front_figure(found).data if trace.name == "by deap"]
    assert list(points.customdata) == [3] and points.text is None


def test_heatmap_has_a_row_per_schedule_and_marks_the_chosen_one() -> None:
    figure = schedules_figure(DATA.found, 1)
    [heatmap] = figure.data
    assert [list(row) for row in heatmap.z] == [[0.0, 0.0], [0.2, 0.6], [0.7, 0.7]]
    assert ["▶" in label for label in figure.layout.yaxis.ticktext] == [False, True, False]
    [heatmap] = schedules_figure(DATA.found, 3).data
    assert [list(row) for row in heatmap.z] == [[0.0, 0.0], [0.6, 0.0], [0.2, 0.6], [0.7, 0.7]]


def test_hypervolume_never_falls() -> None:
    [line] = growth_figure(DATA.found).data
    assert list(line.x)[-1] == 4 and list(line.y) == sorted(line.y)


def test_rounds_are_marked_where_they_begin() -> None:
    found = replace(DATA, trials=[replace(one, round=int(one.number > 1)) for one in TRIALS]).found
    for by_seconds, at in ((False, 2.5), (True, 0.25)):
        figure = growth_figure(found, by_seconds)
        assert [one.text for one in figure.layout.annotations] == ["round 1"]
        assert [one.x0 for one in figure.layout.shapes] == [pytest.approx(at)]
    assert not growth_figure(DATA.found).layout.shapes


def test_training_figure_shows_the_curves() -> None:
    traces = {trace.name: list(trace.y) for trace in training_figure(ROUTER).data}
    assert traces["total"] == [1.0, 0.7, 0.6]
    assert traces["held-out KL"] == [0.05]


def test_comparison_has_a_bar_for_each_named_row_in_each_panel() -> None:
    bars = [trace for trace in comparison_figure(DATA.results, DATA.selected).data if trace.type == "bar"]
    kl, accuracy, latency = bars[0::3], bars[1::3], bars[2::3]
    assert [bar.x[0] for bar in kl] == ["dense", "uniform", "static", "dynamic"]
    assert [bar.y[0] for bar in kl] == [0.0, 0.4, 0.1, 0.05]
    assert [bar.y[0] for bar in accuracy] == pytest.approx([0.98, 0.58, 0.88, 0.93])
    assert [bar.y[0] for bar in latency] == [10.0, 6.3, 6.1, 6.2]


def test_the_summary_says_what_was_gained_and_by_whom() -> None:
    text = " ".join(summary_sentences(DATA))
    assert "40.0% of tokens skip" in text
    assert "1.61 times [1.58, 1.66] as fast as the dense model's" in text
    assert "better than the static one" in text


def test_the_summary_does_not_hide_bad_news() -> None:
    slower = replace(measured("dynamic", 1, (0.2, 0.6), 0.2, 12.0), router=0)
    slow = [*MEASURED[:4], slower]
    text = " ".join(summary_sentences(replace(DATA, measurements=slow)))
    assert "slower than the dense model's, there is no speed-up (0.83 times [0.82, 0.86] as fast" in text
    assert "worse than the static one" in text


def test_the_page_loads_nothing_from_the_network_and_holds_plotly_once(tmp_path: Path) -> None:
    written = write_report(DATA, tmp_path / "out")
    page = written[0].read_text()
    head, body = page.split("</head>")
    assert not re.search(r"<(script|link|img)[^>]+(src|href)=", head + body)
    assert "@import" not in head.split("<script>")[0]
    assert page.count("plotly.js v") == 1
    names = ["front.csv", "report.html", "report.json", "report.md", "rows.csv", "speeds.csv", "study.json"]
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == names


def test_no_button_of_the_page_sends_data_away() -> None:
    page = render_report(DATA)
    assert page.count('"showSendToCloud": false') == 7
    assert "default-src 'none'" in page


def test_the_data_beside_the_page_is_the_front(tmp_path: Path) -> None:
    written = write_report(DATA, tmp_path)
    rows = list(csv.DictReader(written.front_csv.open()))
    assert [row["trial"] for row in rows] == ["0", "1", "2"]
    assert rows[1]["measured_latency_ms"] == "6.1"
    assert rows[1]["schedule"] == "0.2 0.6"
    assert rows[2]["measured_latency_ms"] == ""
    assert json.loads(written.json.read_text())["front"][1]["values"] == [0.1, 6.0]


def test_a_name_is_text_and_not_markup() -> None:
    page = render_report(replace(DATA, study=replace(STUDY, name="<script>alert(1)</script>")))
    assert "<script>alert(1)" not in page
    assert "&lt;script&gt;alert(1)" in page


def test_labels_stand_below_the_heading_as_text() -> None:
    labels = Labels(("paper", "<b>"), "see *this*\n| row", "grid")
    data = replace(DATA, study=replace(STUDY, labels=labels))
    page, markdown = render_report(data), render_markdown(data)
    assert "Of sweep grid<" in page and "Tags: paper, &lt;b&gt;<" in page and "see *this*\n| row<" in page
    assert "\n\nTags: paper, \\<b\\>\n\nsee \\*this\\* \\| row\n\n" in markdown
    found = report_json(data)
    assert (found["tags"], found["note"], found["sweep"]) == (["paper", "<b>"], labels.note, "grid")
    assert "Tags: " not in render_report(DATA) + render_markdown(DATA)


@pytest.mark.parametrize(
    ("trials", "measurements", "routers", "words"),
    [
        ([], [], [], "No trial has finished yet"),
        ([TRIALS[4]], [], [], "1 failed"),
        (TRIALS, [], [], "predictions only"),
        (TRIALS[:1], [], [], "predictions only"),
        (TRIALS, [*MEASURED[:3], MEASURED[4]], [], "1.61 times [1.58, 1.66] as fast"),
    ],
)
def test_missing_parts_are_said_and_not_fatal(
    trials: list[Trial], measurements: list[Measurement], routers: list[RouterRun], words: str
) -> None:
    assert words in render_report(ReportData(STUDY, trials, measurements, routers))


def test_a_browser_draws_every_figure(tmp_path: Path, require_system_dep: Callable[[str], Path]) -> None:
    chromium = require_system_dep("chromium")
    page = write_report(DATA, tmp_path / "out")[0]
    switches = "--headless --no-sandbox --disable-gpu --no-first-run --disable-background-networking --disable-sync"
    done = subprocess.run(
        [
            str(chromium),
            *switches.split(),
            "--disable-component-update",
            f"--user-data-dir={tmp_path / 'profile'}",
            "--virtual-time-budget=20000",
            "--dump-dom",
            page.as_uri(),
        ],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    drawn = re.findall(r'id="figure-(\d)"[^>]*class="plotly-graph-div js-plotly-plot"', done.stdout)
    assert drawn == [str(number) for number in range(7)]


def test_the_figure_of_proposers_shows_who_got_trials_and_what_these_added() -> None:
    trials = [
        replace(trial(0, (4.0, 10.0)), proposer="initial design"),
        replace(trial(1, (1.0, 8.0)), proposer="deap"),
        replace(trial(2, (2.0, 9.0)), proposer="<b>tpe</b>"),
        replace(trial(3, (0.5, 8.0)), proposer="deap"),
        replace(trial(4, None), proposer="deap"),
        replace(trial(5, (0.1, 1.0), fidelity=0.25), proposer="deap", state=TrialState.PRUNED),
        replace(trial(6, (0.1, 1.0)), proposer="deap", constraint_violation=0.1),
    ]
    figure = proposers_figure(replace(DATA, trials=trials).found)
    shares = {bar.name: list(bar.y) for bar in figure.data if bar.name}
    assert shares["deap"] == pytest.approx([100 / 3, 100.0])
    assert shares["initial design"] == pytest.approx([100 / 3, 0.0])
    assert "&lt;b&gt;tpe&lt;/b&gt;" in shares
    gains = {bar.y[0]: bar.x[0] for bar in figure.data if bar.orientation == "h"}
    assert gains["&lt;b&gt;tpe&lt;/b&gt;"] == 0.0 and gains["deap"] > 0.0 and "initial design" not in gains
    assert "No trial has ended" in proposers_figure(replace(DATA, trials=[]).found).layout.annotations[0].text


COUNTED = replace(STUDY, objectives=("kl", "flops"))
COUNTED_TRIALS = [
    replace(t, values=t.values and (t.values[0], 1e9 * t.values[1]), metrics={"kv_bytes": 2.0**21, "latency_ms": 3.5})
    for t in TRIALS
]


def test_figures_of_a_search_are_in_the_unit_of_its_cost() -> None:
    found, in_flops = DATA.found, replace(DATA, study=COUNTED, trials=COUNTED_TRIALS).found
    timed, counted = front_figure(found), front_figure(in_flops, selected=1)
    assert timed.layout.xaxis.title.text == "predicted latency, ms"
    assert counted.layout.xaxis.title.text == "prefill arithmetic, GFLOPs"
    # The same numbers, in another unit.
    assert [list(trace.x) for trace in counted.data[1:]] == [list(trace.x) for trace in timed.data[1:]]
    assert list(counted.data[0].x) == [6.0]
    for draw in (growth_figure, proposers_figure):
        for mine, yours in zip(draw(in_flops).data, draw(found).data, strict=True):
            assert list(mine.x) + list(mine.y) == pytest.approx(list(yours.x) + list(yours.y))
    assert growth_figure(in_flops).layout.yaxis.title.text == "hypervolume, log nats × GFLOPs"
    assert proposers_figure(in_flops).layout.xaxis2.title.text == "hypervolume, log nats × GFLOPs"
    assert "KL 1, 10.0 GFLOPs" in growth_figure(in_flops).layout.title.subtitle.text


def test_a_trial_shows_every_cost_that_it_remembers() -> None:
    found = replace(DATA, study=COUNTED, trials=COUNTED_TRIALS).found
    [points] = [trace for trace in front_figure(found, standalone=True).data if trace.name == "by deap"]
    assert "prefill arithmetic %{x:.4g} GFLOPs" in points.hovertemplate
    assert "predicted latency 3.5 ms, KV cache 2 MiB<br>overall" in points.text[0]
    [points] = [trace for trace in front_figure(DATA.found, standalone=True).data if trace.name == "by deap"]
    assert "predicted latency %{x:.4g} ms" in points.hovertemplate and points.text[0].startswith("<br>overall")


def test_a_label_says_how_uncertain_a_predicted_latency_is() -> None:
    profile = ProfileRecord.model_validate({"batch": 8, "length": 256, "shapes": [{"uncertainty": 0.07}]})
    for data, where in ((DATA, "hovertemplate"), (replace(DATA, study=COUNTED, trials=COUNTED_TRIALS), "text")):
        facts = data.study.facts.updated(StudyFacts(latency_profile=profile))
        figure = front_figure(replace(data, study=replace(data.study, facts=facts)).found, standalone=True)
        [points] = [trace for trace in figure.data if trace.name == "by deap"]
        said = points.hovertemplate if where == "hovertemplate" else points.text[0]
        assert " ms ± 7%" in said and said.count("±") == 1


def test_pareto_shows_the_cost_that_was_searched() -> None:
    figure = measurements_figure(DATA.results, DATA.selected, "flops")
    static = next(trace for trace in figure.data if trace.name == VARIANT_TITLES["static"])
    assert list(static.x) == [6.1] and static.error_x.array is None and static.error_y.array is not None
    assert figure.layout.title.text == "Accuracy against prefill arithmetic"
    assert figure.layout.xaxis.title.text == "prefill arithmetic, GFLOPs (lower is better)"
    said = figure.layout.title.subtitle.text
    assert (
        "Prefill of batch 8 × 256 tokens<br>" in said and "whiskers: 95% interval" in said and "quartiles" not in said
    )
    assert next(trace for trace in figure.data if trace.name == "selected").x == (6.2,)


def test_what_was_measured_without_a_cost_is_shown_by_its_latency() -> None:
    assert (
        measurements_figure(MEASURED, None, "kv_bytes").layout.xaxis.title.text
        == "measured latency, ms (lower is better)"
    )
    held = [replace(m, kv_bytes=round(2**20 * m.latency_ms)) for m in MEASURED]
    figure = measurements_figure(held, None, "kv_bytes")
    assert figure.layout.xaxis.title.text == "KV cache, MiB (lower is better)"
    assert any("KV cache 6.1 MiB" in text for trace in figure.data for text in trace.hovertext or ())
    study = replace(STUDY, objectives=("kl", "kv_bytes"))
    shown = {figure.label: figure.value for figure in key_figures(replace(DATA, study=study, measurements=held))}
    assert shown["KV cache saved"] == "38.0%" and shown["prefill speed-up, measured"] == "1.61×"
    assert "KV cache saved" not in {figure.label for figure in key_figures(replace(DATA, study=study))}


def test_the_report_of_a_study_of_flops_speaks_of_flops(tmp_path: Path) -> None:
    data = ReportData(COUNTED, COUNTED_TRIALS, [], [])
    text = " ".join(summary_sentences(data))
    assert "from KL 0 at 10.0 GFLOPs to 0.9 at 5.5 GFLOPs (prefill arithmetic)" in text
    assert "(KL to dense 0.1 nats per token, prefill arithmetic 6 GFLOPs)" in text
    page = render_report(data)
    assert "its KL on calibration data and its prefill arithmetic; lower" in page
    timed = replace(COUNTED, objectives=("kl", "kv_bytes"), facts=StudyFacts(timed_input=TimedInput(8, 96)))
    assert "its KV cache of a prefill of 8 × 96 tokens; lower" in render_report(replace(data, study=timed))
    written = write_report(data, tmp_path)
    row = next(csv.DictReader(written.front_csv.open()))
    assert (row["flops"], row["latency_ms"], row["kv_bytes"]) == ("10000000000.0", "3.5", "2097152.0")
    assert json.loads(written.json.read_text())["front"][0]["costs"] == {"latency_ms": 3.5, "kv_bytes": 2097152.0}


def test_the_report_says_what_skips_where_it_is_no_whole_block() -> None:
    settings = {"granularity": "half", "kv": "keep", "substitute": 32}
    page = render_report(replace(DATA, study=replace(STUDY, config={**STUDY.config, **settings})))
    expected = "attention and MLP of a block skip apart; skipped tokens leave keys and values; low-rank maps (rank 32)"
    assert f"Here {expected} stand in for what they skip." in page
    fitted = {"granularity": "block", "kv": "keep", "substitute": 0, "keys": "fitted"}
    page = render_report(replace(DATA, study=replace(STUDY, config={**STUDY.config, **fitted})))
    assert "Here skipped tokens leave keys and values, fitted to what the dense model has there." in page
    whole = {"granularity": "block", "kv": "keep", "substitute": 0}
    page = render_report(replace(DATA, study=replace(STUDY, config={**STUDY.config, **whole})))
    assert "Here skipped tokens leave keys and values." in page
    assert "Here" not in render_report(DATA).partition("Which blocks can do without")[2].partition("What was tried")[0]
