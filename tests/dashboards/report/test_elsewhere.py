"""Results on other data have rows of their own, and stand in no other table."""

from __future__ import annotations

from dataclasses import replace

from dashboards.report.elsewhere import elsewhere_table
from dashboards.report.html import render_report
from dashboards.report.markdown import render_markdown
from dashboards.report.results import results_table
from tests.dashboards.records import DATA

TESTED = [m for m in DATA.measurements if m.split == "test"]
OTHER = [replace(m, split="test: /srv/other.jsonl", kl=0.5, n_items=7, n_choice_items=0, accuracy=None) for m in TESTED]


def test_other_data_has_a_row_for_each_variant_and_changes_no_other_table() -> None:
    data = replace(DATA, measurements=[*DATA.measurements, *OTHER])
    shown = elsewhere_table(data)
    assert len(shown.rows) == len(TESTED)
    assert [row.cells[0].text for row in shown.rows] == ["other.jsonl"] * len(TESTED)
    assert [row.cells[1].text for row in shown.rows] == [m.variant for m in TESTED]
    assert all(row.cells[6].text == "0.5000" and row.cells[4].text == "7" for row in shown.rows)
    assert sum(row.marked for row in shown.rows) == 1
    assert results_table(data) == results_table(DATA)
    assert "## On other data" in render_markdown(data) and "other.jsonl" in render_markdown(data)
    assert "<h2>On other data</h2>" in render_report(data)


def test_without_other_data_nothing_is_said_of_it() -> None:
    assert not elsewhere_table(DATA).rows
    assert "On other data" not in render_markdown(DATA) + render_report(DATA)
