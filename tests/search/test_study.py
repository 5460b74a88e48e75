"""What a notebook shows of a study."""

from __future__ import annotations

import doctest
import hashlib
import html
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import plotly.graph_objects as go
import pytest

import search
import search.study
from dashboards.report.html import render_report
from studies import StudyNotFoundError
from studies.service.service_store import ServiceStore
from tests.dashboards import records
from tests.search.service.test_dashboard import filled

URL = "sqlite:///ftp-studies.db"


@pytest.fixture(autouse=True)
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ServiceStore]:
    """A study that has been through its pipeline, and one that has just begun, in the working directory."""
    monkeypatch.chdir(tmp_path)
    with ServiceStore(URL) as store:
        filled(store, "demo")
        for run in records.DATA.router_runs:
            store.routers.add("demo", replace(run, sha256=hashlib.sha256(b"0").hexdigest()), b"0")
        store.studies.create("<b>new</b>", dict(records.STUDY.config), records.STUDY.objectives)
        yield store


def test_the_examples_do_what_they_say() -> None:
    failed, tried = doctest.testmod(search.study)
    assert tried >= 8 and not failed
    assert Path("front.html").stat().st_size > 10_000


def test_every_figure_is_drawn() -> None:
    study = search.load("demo")
    drawings = [name for name in dir(study) if name.startswith("plot_")]
    assert len(drawings) == 9
    for name in drawings:
        drawn = getattr(study, name)()
        assert isinstance(drawn, go.Figure) and drawn.data, name
    front = {trace.name: trace for trace in study.plot_front().data}
    assert f"selected: trial {study.best().number}" in front and "refined, measured" in front
    assert study.plot_front(x="overall_sparsity", y="kl").layout.xaxis.title.text == "overall sparsity"
    assert study.plot_growth(by_seconds=True).layout.xaxis.title.text.startswith("seconds")
    with pytest.raises(IndexError):
        study.plot_training(2)


def test_the_summary_says_what_the_report_says() -> None:
    study = search.load("demo")
    page = study._repr_html_()
    assert page.startswith("<h4>Demo model on demo data: study demo") and "finished" in page and "FLOPs saved" in page
    assert study.verdict in page and study.verdict in html.unescape(render_report(records.DATA))


def test_a_study_that_has_just_begun_says_so() -> None:
    study = search.load("<b>new</b>")
    page = study._repr_html_()
    assert study.verdict == "" and "No trial has finished yet" in page and "<b>new" not in page
    assert "No trial has finished" in study.plot_front().layout.annotations[0].text
    assert not study.plot_measurements().data


def test_what_is_not_there_is_not_loaded() -> None:
    with pytest.raises(StudyNotFoundError):
        search.load("other")
