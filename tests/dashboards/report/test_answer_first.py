"""A report begins with what it is of and what came of it, and says the same figures in every place."""

from __future__ import annotations

import csv
import json
import math
import re
from collections.abc import Iterator
from dataclasses import replace
from html import unescape
from pathlib import Path
from typing import Any

import plotly.graph_objects as go
from hypothesis import given, settings
from hypothesis import strategies as st

from dashboards import ReportData, write_report
from dashboards.figures import comparison_figure, measurements_figure
from dashboards.report.comparison import grouped, seeds_table, write_comparison
from dashboards.report.html import render_report
from dashboards.report.limits import limits
from dashboards.report.markdown import render_markdown
from dashboards.report.results import results_table
from dashboards.report.sections import measured_sections
from dashboards.report.summary import key_figures, summary_sentences
from studies import Measurement
from studies.analysis.verdict import verdict_of
from studies.records.study_facts import StudyFacts
from studies.records.target import Target
from tests.dashboards.records import DATA, REFINED, STUDY, with_facts

TARGET = Target("target_sparsity", 0.3)
WITHOUT_CHOICES: dict[str, Any] = {"accuracy": None, "accuracy_low": None, "accuracy_high": None, "n_choice_items": 0}


def at_chance() -> ReportData:
    """The data with a dense model that has 51 of 200 right where guessing has a quarter."""
    guessed = {"accuracy": 0.255, "accuracy_low": 0.1996, "accuracy_high": 0.3198}
    rows = [replace(m, **guessed) for m in DATA.measurements]
    config = {**STUDY.config, "min_retention": 0.9}
    data = replace(DATA, study=replace(STUDY, config=config), measurements=rows, examples=None)
    return with_facts(data, chance={"validation": 0.25, "test": 0.25})


def texts(data: ReportData) -> Iterator[str]:
    body = re.sub(r"(?s)<script.*?</script>", "", render_report(data).split("</head>")[1])
    yield unescape(re.sub(r"<[^>]+>", " ", body))
    yield render_markdown(data).replace("\\", "")


def test_a_report_says_what_it_is_of() -> None:
    config = {**STUDY.config, "model": "org/Llama-1B", "data": "/some/where/questions.jsonl"}
    data = replace(DATA, study=replace(STUDY, config=config))
    title = "Llama-1B on questions.jsonl: study made up, 2026-01-01"
    assert data.title == title
    page = render_report(data)
    assert f"<title>{title}</title>" in page and f"<h1>{title}</h1>" in page
    assert render_markdown(data).startswith(f"# {title}\n")
    assert DATA.title == "Demo model on demo data: study made up, 2026-01-01"


def test_the_answer_and_what_to_do_come_before_every_number() -> None:
    data = with_facts(DATA, exported="/models/pruned `x`")
    said = data.verdict
    assert said.startswith("The selected schedule is better than a prompt shortened by 30% at about the same FLOPs")
    assert "keeps 99.0% [" in said and "runs a prefill of 8 × 256 tokens at 1.28 times [" in said
    command = "ftp_core.FTPForCausalLM.from_pretrained('/models/pruned `x`')"
    for text in texts(data):
        places = [text.index(words) for words in (data.title, said, command, "overall sparsity", "Results")]
        assert places == sorted(places)


def test_the_verdict_is_the_same_on_every_place_that_has_one(tmp_path: Path) -> None:
    written = write_report(DATA, tmp_path)
    assert json.loads(written.json.read_text())["verdict"] == DATA.verdict
    row = {
        **{
            "study": "one",
            "model": "demo",
            "target": TARGET,
            "seed": 0,
            "measurements": DATA.measurements,
        },
        **{"facts": STUDY.facts, "examples": DATA.examples, "created_at": STUDY.created_at.isoformat()},
    }
    compared = write_comparison([row], tmp_path / "compared")
    assert DATA.verdict in unescape(compared.html.read_text())
    assert DATA.verdict in compared.markdown.read_text().replace("\\", "")
    assert json.loads(compared.json.read_text())["verdicts"] == {"one": DATA.verdict}


def test_retention_has_one_interval_wherever_it_stands(tmp_path: Path) -> None:
    selected = DATA.selected
    assert selected is not None
    kept = DATA.retention(selected)
    assert kept is not None and kept.interval is not None and kept.method == "item by item"
    [tile] = [one for one in key_figures(DATA) if one.label == "accuracy retained"]
    assert tile.detail == f"{kept.interval_text} item by item"
    [row] = [row for row in results_table(DATA).rows if row.marked]
    assert kept.interval_text in [cell.detail for cell in row.cells]
    assert kept.text in " ".join(summary_sentences(DATA)) and kept.text in DATA.verdict
    written = write_report(DATA, tmp_path)
    [plain] = [one for one in json.loads(written.json.read_text())["rows"] if one["selected"]]
    [line] = [one for one in csv.DictReader(written.rows_csv.open()) if one["selected"] == "1"]
    for one in (plain, line):
        assert (float(one["retention_low"]), float(one["retention_high"])) == kept.interval
    record = {
        **{
            "study": "one",
            "model": "demo",
            "target": TARGET,
            "seed": 0,
            "measurements": DATA.measurements,
        }
    }
    record |= {"facts": STUDY.facts, "examples": DATA.examples, "created_at": STUDY.created_at.isoformat()}
    [group] = grouped([record])
    assert kept.interval_text in [cell.detail for cell in seeds_table(group).rows[-1].cells]


def test_a_dense_model_at_chance_retains_nothing_that_says_something() -> None:
    data = at_chance()
    guessed = "The dense model answers no better than chance (25.5% of 200 items, chance 25.0%)"
    assert guessed in data.verdict and "of the dense model's accuracy" not in data.verdict
    assert "has a perplexity of 1.234 against 1.21" in data.verdict
    [tile] = [one for one in key_figures(data) if one.label == "accuracy retained"]
    assert tile.value == "–" and "chance" in tile.detail
    titles = [column.title for column in results_table(data).columns]
    assert {row.cells[titles.index("retention")].text for row in results_table(data).rows} == {"–"}
    assert any(guessed in sentence for sentence in limits(data))
    assert any("that was read as the ratio of perplexities" in sentence for sentence in limits(data))
    for text in texts(data):
        assert guessed in text and "100.0% of it" not in text and "retention of" not in text


def test_chance_is_named_where_accuracy_is() -> None:
    data = with_facts(DATA, chance={"validation": 0.5, "test": 0.5})
    assert data.verdict == DATA.verdict and data.only_guesses == ""
    assert all("chance 50.0%" in one.detail for one in key_figures(data) if one.label.startswith("accuracy, "))
    assert "guessing would have 50.0% right" in results_table(data).reading
    assert "chance 50.0%" in " ".join(summary_sentences(data))
    lines = [one for one in measured_sections(data)[1].figure.layout.shapes if one.y0 == 0.5]
    assert len(lines) == 1
    # Points far above would be pressed together by such a line.
    assert not measurements_figure(DATA.results, None, chance=0.1).layout.shapes
    assert [one.y0 for one in measurements_figure(at_chance().results, None, chance=0.25).layout.shapes] == [0.25]


def test_a_row_is_called_what_it_is() -> None:
    initial = next(t for t in DATA.trials if t.proposer == "initial design" and t.number > 0)
    uniform = replace(initial, schedule=(0.3,) * len(initial.schedule))
    rows = [
        replace(m, trial=uniform.number, schedule=uniform.schedule) if m.variant == "static" else m
        for m in DATA.measurements
    ]
    trials = [uniform if t.number == uniform.number else t for t in DATA.trials]
    data = replace(DATA, trials=trials, measurements=rows)
    title = "static: uniform schedule of the initial design, static router"
    assert data.titles["static"] == title and "searched schedule" in DATA.titles["static"]
    assert data.titles["refined"] == DATA.titles["refined"]
    pareto, bars = (section.figure for section in measured_sections(data))
    assert title in {trace.name for trace in pareto.data}
    assert any(title in text for trace in bars.data for text in trace.hovertext or ())
    assert "static<br>uniform" in bars.layout.xaxis.ticktext
    assert "searched schedule" not in str(pareto.to_dict()) + str(bars.to_dict())
    for text in texts(data):
        assert f"trial {uniform.number}: uniform schedule of the initial design" in text
    assert f"no search has found what is shown as {title}" in measured_sections(data)[1].reading


def drawn_range(figure: go.Figure, axis: str) -> tuple[float, float]:
    one = figure.layout[axis]
    low, high = one.range
    return (10.0**low, 10.0**high) if one.type == "log" else (low, high)


kls = st.one_of(st.just(0.0), st.floats(1e-6, 12.0))


@st.composite
def some_measured(draw: st.DrawFn) -> list[Measurement]:
    """The rows of a report with any KL, and whiskers as wide as they come."""
    made = []
    for m in DATA.results[:5]:
        kl = 0.0 if m.variant == "dense" else draw(kls)
        low, high = kl * draw(st.floats(0, 1)), kl * draw(st.floats(1, 50))
        made.append(replace(m, kl=kl, kl_low=low, kl_high=high))
    return made


@settings(max_examples=20)
@given(rows=some_measured())
def test_axes_of_kl_show_every_whisker_and_leave_room_for_numbers(rows: list[Measurement]) -> None:
    figure = comparison_figure(rows)
    bottom, top = drawn_range(figure, "yaxis")
    most = max(m.kl for m in rows)
    assert all(m.kl_high is not None and m.kl_high < top for m in rows)
    # What is four decades below the highest is drawn at the bottom.
    assert all(bottom < end for m in rows for end in (m.kl, m.kl_low) if end is not None and end > 1e-4 * most)
    bare = [replace(m, **WITHOUT_CHOICES) for m in rows]
    low, high = drawn_range(measurements_figure(bare, None), "yaxis")
    assert all(m.kl_high is not None and m.kl_high < high for m in rows)
    assert all(low < end for m in rows for end in (m.kl, m.kl_low) if end is not None and end > 1e-4 * most)
    highest = max(m.kl_high or 0.0 for m in rows)
    if figure.layout.yaxis.type == "log":
        assert math.log10(top / highest) >= 0.13 * math.log10(top / bottom) - 1e-9
    else:
        assert highest <= 0.8701 * top


def test_shares_stay_within_0_and_1_in_every_interval() -> None:
    for m in DATA.results:
        kept = DATA.retention(m)
        assert kept is not None and (kept.interval is None or kept.interval[0] >= 0)
    row = {"study": "a", "model": "demo", "target": TARGET, "facts": STUDY.facts}
    rows = []
    for seed, share in enumerate((0.99, 1.0, 0.7)):
        ends = {"accuracy_low": max(0.0, share - 0.05), "accuracy_high": min(1.0, share + 0.05)}
        changed = [replace(m, accuracy=share, **ends) for m in DATA.measurements]
        rows.append({**row, "study": f"a{seed}", "seed": seed, "measurements": changed})
    [group] = grouped(rows)
    for mean in group.means:
        for name in ("accuracy", "overall_sparsity"):
            ends = mean.figures[name][1]
            assert ends is not None and 0 <= ends[0] <= ends[1] <= 1


def test_without_figures_there_is_no_verdict_and_no_empty_bracket() -> None:
    assert verdict_of(StudyFacts(), None, None, None, None) == ""
    bare = [replace(m, **WITHOUT_CHOICES) for m in DATA.measurements]
    for data in (replace(DATA, measurements=bare, examples=None), replace(DATA, measurements=[]), at_chance()):
        for text in texts(data):
            assert not re.search(r"\(\s*\)|\[\s*\]|, \)", text.split("Configuration")[0])
    assert "has a perplexity of" in replace(DATA, measurements=bare).verdict


def test_a_study_that_is_not_over_is_to_be_gone_on_with_and_one_without_a_find_to_be_searched_on() -> None:
    running = replace(DATA, study=replace(STUDY, state=type(STUDY.state).STOPPED), stages=())
    assert [one.command for one in running.next_steps] == ["ftp-search resume 'made up'"]
    assert [one.command for one in DATA.next_steps] == ["ftp-search export 'made up' DIRECTORY"]
    worse = [replace(m, kl=0.5) if m.trial == REFINED.number else m for m in DATA.measurements]
    steps = [one.command for one in replace(DATA, measurements=worse).next_steps]
    assert steps == ["ftp-search resume 'made up' --trials 400", "ftp-search export 'made up' DIRECTORY"]
    nothing = (0.0,) * len(REFINED.schedule)
    dense = [replace(m, schedule=nothing) if m.trial == REFINED.number else m for m in DATA.measurements]
    data = replace(DATA, measurements=dense)
    assert data.verdict.startswith("The selected schedule skips nothing") and data.next_steps[0].words == "Search on"
