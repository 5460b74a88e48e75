"""Figures as pages show them: dark or light, and with a small legend on a phone."""

from __future__ import annotations

from pathlib import Path

import pytest

from dashboards.analysis.trials import Found
from dashboards.app.parts import in_theme
from dashboards.figures import front_figure
from studies.service.service_store import ServiceStore
from tests.dashboards import records


@pytest.fixture
def found(tmp_path: Path) -> Found:
    with ServiceStore(f"sqlite:///{tmp_path / 'studies.db'}") as store:
        store.studies.create("made up", {}, records.STUDY.objectives)
        for trial in records.TRIALS:
            store.trials.append("made up", trial)
        return Found(store.columns.of("made up"), records.STUDY.objectives)


def test_a_narrow_page_has_a_small_legend_of_the_same_traces(found: Found) -> None:
    figure = front_figure(found, "latency_ms", "kl", measurements=records.measurements())
    before = figure.to_json()
    narrow = in_theme(figure, "light narrow")
    assert figure.to_json() == before
    assert narrow.layout.legend.maxheight < 0.25 * figure.layout.height
    names = {trace.name for trace in narrow.data}
    assert {"front", "deap", "refined"} <= names and len(names) == len({trace.name for trace in figure.data})
    for own, other in zip(narrow.data, figure.data, strict=True):
        assert list(own.x) == list(other.x) and own.marker == other.marker


@pytest.mark.parametrize(("theme", "is_dark"), [(None, False), ("light", False), ("dark", True), ("dark narrow", True)])
def test_a_dark_page_has_dark_figures(found: Found, theme: str | None, is_dark: bool) -> None:
    figure = front_figure(found, "latency_ms", "kl")
    assert (in_theme(figure, theme).layout.template != figure.layout.template) == is_dark


def test_the_front_of_a_page_marks_what_its_verdict_is_about(found: Found) -> None:
    number = records.REFINED.number
    figure = front_figure(found, "latency_ms", "kl", chosen=number)
    marks = {trace.name: trace for trace in figure.data}
    chosen = marks[f"selected: trial {number}"]
    assert list(chosen.x) == [records.TRIALS[number].values[1]] and list(chosen.customdata) == [number]
    assert list(marks["dense schedule"].customdata) == [0] and "dense" in marks["dense schedule"].text
    assert "open" in str(marks["dense schedule"].marker.symbol) and "open" in str(chosen.marker.symbol)
    # A page without it still has the others; a figure that stands alone says what is selected in its own way.
    assert {"dense schedule"} <= {trace.name for trace in front_figure(found, "latency_ms", "kl").data}
    alone = front_figure(found, "latency_ms", "kl", chosen=number, standalone=True)
    assert "dense schedule" not in {trace.name for trace in alone.data}
    # In the dark, what is drawn in ink turns light.
    dark = {trace.name: trace for trace in in_theme(figure, "dark").data}
    assert dark["dense schedule"].marker.color != marks["dense schedule"].marker.color
