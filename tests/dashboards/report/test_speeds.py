"""What generation takes is shown beside the prefill, everywhere with what is known of the interval."""

from __future__ import annotations

import csv
import json
import re
from dataclasses import replace
from pathlib import Path

import pytest

from dashboards import ReportData, write_report
from dashboards.report.html import render_report
from dashboards.report.plain_values import report_json
from dashboards.report.speeds import speeds_table
from dashboards.report.summary import key_figures, summary_sentences
from studies.records.generation_speed import GenerationSpeed, end_to_end, in_words
from studies.records.study_facts import StudyFacts
from tests.dashboards.records import DATA, REFINED, SELECTION, speeds, with_facts

TITLE = "Speed by prompt length and new tokens"


def with_speeds(shown: list[GenerationSpeed]) -> ReportData:
    return with_facts(DATA, generation_speeds=tuple(shown))


def test_speeds_are_facts_and_come_back_from_their_json() -> None:
    stored = json.loads(json.dumps(StudyFacts(generation_speeds=tuple(speeds())).stored()))
    assert list(StudyFacts.from_stored(stored).generation_speeds) == speeds()


def test_a_row_for_each_length_and_number_of_new_tokens_with_every_interval() -> None:
    table = speeds_table(DATA)
    assert [tuple(cell.text for cell in row.cells[:2]) for row in table.rows] == [
        *(("8 × 256", count) for count in ("1", "16", "64")),
        *(("8 × 512", count) for count in ("1", "64")),
    ]
    for row in table.rows:
        _, _, dense, selected, gained, shortened, its = row.cells
        for ratio, ms in ((gained, selected), (its, shortened)):
            assert float(ratio.text[:-1]) == pytest.approx(float(dense.text) / float(ms.text), abs=0.01)
            assert ratio.text.endswith("×")
        assert all(re.fullmatch(r"\[\d+\.\d+, \d+\.\d+\]", cell.detail) for cell in row.cells[2:])
    assert "6 times" in table.reading and f"trial {REFINED.number} with router 0" in table.reading


def test_the_summary_says_how_much_of_the_prefill_is_left_end_to_end() -> None:
    own = end_to_end(DATA.speeds, REFINED.number, 0)
    assert [(one.length, one.new_tokens) for one in own] == [(256, 16), (256, 64)]
    assert in_words(own) == "1.13 times [1.10, 1.17] with 16 new tokens, 1.05 times [1.02, 1.09] with 64"
    first = summary_sentences(DATA)[0]
    assert "the prefill of" in first and in_words(own) in first
    [card] = [one for one in key_figures(DATA) if "new tokens" in one.label]
    assert (card.value, card.label) == ("1.05×", "speed-up with 64 new tokens")
    assert card.detail.startswith("[1.02, 1.09], batch 8 × 256 tokens")


def test_the_verdict_names_the_prefill_and_the_most_new_tokens_beside_it() -> None:
    assert DATA.verdict.endswith(", end to end 1.05 times [1.02, 1.09] with 64 new tokens.")
    assert "runs a prefill of 8 × 256 tokens" in DATA.verdict
    assert with_speeds([]).verdict == DATA.verdict.replace(
        ", end to end 1.05 times [1.02, 1.09] with 64 new tokens", ""
    )


def test_a_speed_up_whose_interval_holds_one_is_none_that_is_shown() -> None:
    own = end_to_end(DATA.speeds, REFINED.number, 0)
    unclear = [replace(one, speedup_low=0.98) for one in own[:1]] + own[1:]
    assert in_words(unclear) == (
        "1.13 times [0.98, 1.17] with 16 new tokens (no difference is shown), 1.05 times [1.02, 1.09] with 64"
    )
    assert [one.differs for one in (*unclear, replace(own[0], speedup_low=None))] == [False, True, None]


def test_too_few_turns_for_an_interval_are_said_where_the_speed_up_is() -> None:
    few = [replace(one, speedup_low=None, speedup_high=None, repeats=2) for one in speeds()]
    data = with_speeds(few)
    words = "(interval unknown: 2 turns are too few for one)"
    assert all(row.cells[4].detail == words for row in speeds_table(data).rows)
    assert summary_sentences(data)[0].count(words) == 2


def test_where_nothing_was_timed_nothing_is_said_of_it(tmp_path: Path) -> None:
    data = with_speeds([])
    written = write_report(data, tmp_path)
    assert TITLE not in written.html.read_text() and TITLE not in written.markdown.read_text()
    assert written.speeds_csv.read_text().strip() == ""
    assert "End to end" not in " ".join(summary_sentences(data))
    assert not any("new tokens" in one.label for one in key_figures(data))


def test_what_was_timed_of_another_point_is_not_said_of_the_selected_one() -> None:
    data = with_facts(DATA, selection=replace(SELECTION, router=1))
    assert "End to end" not in " ".join(summary_sentences(data))


def test_page_csv_and_json_have_them_too(tmp_path: Path) -> None:
    page = render_report(DATA)
    assert f"<h2>{TITLE}</h2>" in page and "prefill alone" in page
    written = write_report(DATA, tmp_path)
    rows = list(csv.DictReader(written.speeds_csv.open()))
    assert len(rows) == len(speeds()) == len(report_json(DATA)["generation_speeds"])
    assert rows[1]["variant"] == "uniform" and float(rows[1]["speedup"]) == speeds()[1].speedup
    assert rows[0]["speedup"] == "" and rows[5]["trial"] == str(REFINED.number)
    assert report_json(DATA)["generation_speeds"][1] == {**speeds()[1].__dict__}
