"""The report of a whole pipeline: its rows, why one was selected, what it cost, and what is wrong with it."""

from __future__ import annotations

import csv
import json
import math
import re
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from dashboards import ReportData, write_report
from dashboards.analysis.records import VARIANT_TITLES
from dashboards.analysis.selection import held_out, why_selected
from dashboards.analysis.tables import duration
from dashboards.figures import groups_figure
from dashboards.report.effort import effort_sentences, effort_table, rounds_table, routers_table, tuning_table
from dashboards.report.html import render_report
from dashboards.report.limits import disagreements, limits
from dashboards.report.markdown import fenced, render_markdown, text
from dashboards.report.prompts import as_text, legend, shaded_prompts
from dashboards.report.results import results, results_table
from dashboards.report.sections import training_sections
from dashboards.report.speeds import speeds_table
from dashboards.report.summary import key_figures, summary_sentences
from studies import Measurement, StudyState, front
from studies.records.records import Disagreement, GroupAccuracy, ReportExamples, RoutedPrompt
from studies.records.study_facts import Estimate, Memory, ProfileRecord, Round, StudyFacts, TunedTrial, Tuning
from tests.dashboards.records import (
    DATA,
    EXAMPLES,
    N_BLOCKS,
    REFINED,
    ROUNDS,
    SELECTION,
    STATIC,
    STUDY,
    TUNING,
    measurement,
    router_run,
    with_facts,
)

EVIL = "</pre><script>alert(1)</script> | `x`"


def with_row(variant: str, **changes: object) -> ReportData:
    """The data with another measurement of a row."""
    rows = [replace(m, **changes) if m.variant == variant and m.split == "test" else m for m in DATA.measurements]
    return replace(DATA, measurements=rows)


def timed(ms: float) -> dict[str, float]:
    """What a row's prefill takes, and what that is beside the dense model's 40.8 ms."""
    ratio = 40.8 / ms
    latencies = {"latency_ms": ms, "latency_low_ms": ms - 0.4, "latency_high_ms": ms + 0.4}
    return {**latencies, "speedup": ratio, "speedup_low": 0.985 * ratio, "speedup_high": 1.02 * ratio}


def said(data: ReportData) -> str:
    return " ".join(limits(data))


def test_the_table_has_a_row_each_and_then_the_candidates_by_kl() -> None:
    found = results(DATA)
    variants = [one.measurement.variant for one in found]
    assert variants[:5] == ["dense", "uniform", "static", "dynamic", "refined"]
    assert set(variants[5:]) == {"candidate"}
    kls = [one.measurement.kl for one in found[5:]]
    assert kls == sorted(kls)
    # It is in the table already, as refined.
    assert [one.selected for one in found] == [variant == "refined" for variant in variants]
    assert sum(one.measurement.trial == REFINED.number for one in found) == 1


def test_figures_of_validation_items_stand_in_the_reason_alone() -> None:
    assert all(m.split == "test" for m in DATA.results)
    for shown in (render_report(DATA), render_markdown(DATA)):
        assert shown.count("0.0173") == 1 and "There it had KL 0.0173" in shown


def test_rows_say_what_they_save_and_retain() -> None:
    refined = results(DATA)[4]
    assert refined.router == "distill-1" and refined.retention is not None
    assert refined.retention.share == pytest.approx(193 / 195)
    assert refined.speed_up.ratio == pytest.approx(40.8 / 31.9)
    assert refined.retention.interval is not None and refined.retention.method == "item by item"
    low, high = refined.retention.interval
    assert low < 193 / 195 < high
    cells = [cell.text for cell in results_table(DATA).rows[4].cells]
    assert cells[0] == "refined (selected)" and "99.0%" in cells and "1.28×" in cells and "200" in cells
    assert "[1.26, 1.30]" in [cell.detail for cell in results_table(DATA).rows[4].cells]


def test_the_reason_is_given_with_what_validation_said_beside_what_the_test_says() -> None:
    words = " ".join(why_selected(DATA))
    assert SELECTION.reason in words and "the target of overall sparsity" in words
    assert "There it had KL 0.0173 and a retention of 99.5%" in words
    assert "on the test items, which nothing was chosen on, it has KL 0.0240 and a retention of 99.0%" in words


def test_a_selection_that_was_too_optimistic_is_called_that() -> None:
    assert "too optimistic" not in " ".join(why_selected(DATA))
    assert "too optimistic" in " ".join(why_selected(with_row("refined", kl=0.09, kl_low=0.07, kl_high=0.12)))


def test_honesty_is_told_in_numbers() -> None:
    words = " ".join(held_out(DATA))
    assert "calibration 256, validation 128, test 200" in words and "disjoint by the content" in words
    assert "under seed 0" in words
    assert "Left out: 7 whose prompt is in another split, too; 2 longer than the model's context." in words
    assert "In 3 items one token spans the end of the prompt" in words


def test_a_study_that_left_out_no_example_says_so() -> None:
    def words(**facts: object) -> str:
        return " ".join(held_out(with_facts(DATA, **facts)))

    assert "No example of the data was left out." in words(left_out={}, shared_boundaries=0)
    assert "token spans" not in words(left_out={}, shared_boundaries=0)
    unknown = words(left_out=None, shared_boundaries=None)
    assert "Left out" not in unknown and "left out" not in unknown


def test_the_cost_counts_stages_evaluations_training_tuning_and_memory() -> None:
    words = " ".join(effort_sentences(DATA))
    assert "4 min 52 s by the clock" in words and "200 trials; their evaluations took 1 min 20 s" in words
    assert "Training 2 routers took 24 s" in words and "3 sets of hyperparameters were tried, in 42 s" in words
    assert "1.30 GiB" in words
    # What the tuning has trained is counted with it.
    of_tuning = replace(DATA.router_runs[0], config={**DATA.router_runs[0].config, "tuned": True})
    words = " ".join(effort_sentences(replace(DATA, router_runs=[of_tuning, DATA.router_runs[1]])))
    assert "Training 1 router took 12 s" in words
    words = " ".join(effort_sentences(replace(DATA, router_runs=[of_tuning])))
    assert "Training" not in words and "hyperparameters were tried, in 42 s" in words
    table = effort_table(DATA)
    assert [row.cells[0].text for row in table.rows][:4] == ["search", "tune", "distill-1", "refine-1"]
    assert [column.title for column in table.columns] == ["stage", "state", "time"]
    memory = Memory(worker_bytes=1, process_bytes=1)
    estimate = Estimate(seconds={"search": 75.0}, evaluation_s=0.1, workers=1, memory=memory)
    table = effort_table(with_facts(DATA, estimate=estimate))
    assert [row.cells[3].text for row in table.rows][:2] == [duration(75.0), "–"] and len(table.columns) == 4


def test_rounds_say_what_they_added_and_whether_their_router_was_better() -> None:
    rows = [[cell.text for cell in row.cells] for row in rounds_table(DATA).rows]
    assert rows == [
        ["1", "better", "distilled", "40", "61.2", "66.9", "+9.3%"],
        ["2", "better", "distilled", "40", "66.9", "67.2", "+0.4%"],
    ]
    unfinished = with_facts(DATA, rounds=(Round(3, 2, None),), rounds_ended="Rounds ended in round 3.")
    assert rounds_table(unfinished).reading.endswith("Rounds ended in round 3.")
    assert [cell.text for cell in rounds_table(unfinished).rows[0].cells] == [
        *("3", "–", "not searched", "0", "0", "–", "–")
    ]


def test_hyperparameters_are_sorted_by_held_out_kl_and_the_best_are_marked() -> None:
    shown = tuning_table(DATA)
    assert [row.cells[1].text for row in shown.rows] == ["0.0380", "0.0440", "0.0910"]
    assert [row.marked for row in shown.rows] == [True, False, False]
    # Where nothing was better, the stored configuration stays, which is tried first.
    kept = with_facts(DATA, tuning=replace(TUNING, best={}))
    marked = [row.cells[1].text for row in tuning_table(kept).rows if row.marked]
    assert marked == [f"{TUNING.trials[0].held_out_kl:.4f}"]


def test_whether_a_shorter_prompt_would_do_stands_second_in_the_summary_everywhere() -> None:
    for kl, ends, verdict in ((0.024, (0.08, 0.16), "better"), (0.2, (0.9, 1.02), "no better")):
        data = with_row("refined", kl=kl)
        data = replace(data, examples=replace(EXAMPLES, kl_ratios={"uniform": ends}))
        sentence = summary_sentences(data)[1]
        assert sentence.startswith(f"The schedule is {verdict} than a prompt shortened by 30 %: its KL is ")
        assert f"[{ends[0]:.3g}, {ends[1]:.3g}]" in sentence
        assert sentence in render_report(data) and sentence in re.sub(r"\\(.)", r"\1", render_markdown(data))
    # Without a uniform row, nothing is said.
    without = replace(DATA, measurements=[m for m in DATA.measurements if m.variant != "uniform"])
    assert not any("shortened" in sentence for sentence in summary_sentences(without))


def test_a_report_says_how_uncertain_predicted_latency_is() -> None:
    profile = {"batch": 8, "length": 256, "shapes": [{"batch": 8, "length": 256, "uncertainty": 0.0414}]}
    known = with_facts(DATA, latency_profile=ProfileRecord.model_validate(profile))
    assert known.prefill == " of a prefill of 8 × 256 tokens, predicted to within 4.1%"
    assert known.prefill in render_report(known)
    # Operations are counted.
    counted = replace(known, study=replace(known.study, objectives=("kl", "flops")))
    assert counted.prefill == DATA.prefill == " of a prefill of 8 × 256 tokens"


def test_a_report_says_what_predicted_latency_was_worth() -> None:
    assert "Latency was predicted while searching: selected " in said(DATA)
    profile = ProfileRecord(batch=8, length=256, dense_ms=651.9, doubts=("the machine was busy",))
    data = with_facts(DATA, latency_profile=profile)
    assert "is not to be relied on: the machine was busy; dense 651.9 predicted, " in said(data)
    assert "dense 651.9 predicted" in render_report(data)
    assert "predicted" not in said(replace(data, study=replace(data.study, objectives=("kl", "flops"))))


def test_rows_that_beat_the_selected_point_are_named() -> None:
    assert "no slower than the selected point" not in said(DATA)
    assert "Static (trial" in said(with_row("static", kl=0.002, kl_low=0.001, kl_high=0.003))
    beaten = said(with_row("static", kl=0.02, kl_low=0.015, kl_high=0.03))
    assert "is no slower than the selected point and has a lower KL; its interval overlaps" in beaten
    assert "a higher accuracy" in said(with_row("uniform", accuracy=0.99))
    # Slower by less than its timings vary is no slower.
    for late_ms, is_named in ((0.05, True), (3.0, False)):
        late = timed(31.9 + late_ms)
        words = said(with_row("static", kl=0.002, kl_low=0.001, kl_high=0.003, **late))
        assert ("no slower than the selected point and has a lower KL" in words) == is_named


def test_a_report_that_is_written_as_the_last_stage_is_of_a_finished_study() -> None:
    running = replace(DATA.stages[-1], state=StudyState.RUNNING, ended_at=None)
    data = replace(DATA, stages=[*DATA.stages[:-1], running], study=replace(STUDY, state=StudyState.RUNNING))
    assert data.state == "finished" and "report" not in {row.cells[0].text for row in effort_table(data).rows}
    assert replace(data, stages=DATA.stages).state == "running"


def test_doubts_and_missed_wishes_are_said() -> None:
    assert "accuracy intervals of the selected point and the dense model overlap" in said(DATA)
    assert "The KL interval of the selected point overlaps with that of dynamic" in said(DATA)
    assert "1 of 200 trials failed. The last one says: A worker ran out of memory" in said(DATA)
    assert "no speed-up is shown" in said(with_row("refined", **timed(40.7)))
    unknown = {"speedup_low": None, "speedup_high": None}
    assert "no speed-up is shown" in said(with_row("refined", **{**timed(40.7), **unknown}))
    assert "slower than the dense model" in said(with_row("refined", **timed(50.0)))
    off = {"speedup": 1.2, "speedup_low": 1.1, "speedup_high": 1.3}
    assert limits(with_row("dense", **off))[0].startswith(
        "Times were not usable, the machine was busy: the dense model"
    )
    assert "brought nothing" in said(with_row("refined", kl=0.08))
    lost = said(with_row("refined", accuracy=0.7, accuracy_low=0.63, accuracy_high=0.76))
    assert "Accuracy is lost beyond what chance explains" in lost
    asked = {**STUDY.config, "target_sparsity": 0.5, "max_latency_ms": 30.0, "min_retention": 0.995}
    missed = said(replace(DATA, study=replace(STUDY, config=asked)))
    assert "The target was an overall sparsity of 50.0%" in missed
    assert "The limit was 30 ms; measured are 31.9 ms" in missed
    assert "The demand was to retain 99.5%" in missed


def test_a_router_that_did_not_beat_the_static_one_is_said() -> None:
    runs = [*DATA.router_runs[:1], router_run(1, "distill-2", [0.03, 0.04, 0.05])]
    shrunk = with_facts(DATA, rounds=(replace(ROUNDS[1], growth=-0.01),))
    words = said(replace(shrunk, router_runs=runs))
    assert "no router that beats the static one's decisions by KL on validation items: distill-2." in words
    assert "The front did not grow in round 2" in words
    assert "has no lower KL than the static one at the same schedule" in said(with_row("dynamic", kl=0.07))
    assert "worse than the static one" in " ".join(summary_sentences(with_row("dynamic", kl=0.07)))


def test_items_answered_differently_are_counted() -> None:
    words = disagreements(DATA)
    assert "differ on 5 of 200 test items (2.5%)" in words and "right before and wrong now: 3" in words
    assert "wrong both times, in different ways: 1" in words
    assert "the same answer to all 9 test items" in disagreements(replace(DATA, examples=ReportExamples(n_items=9)))
    assert disagreements(replace(DATA, examples=None)) == ""


def test_tokens_are_shaded_from_the_fewest_blocks_to_all() -> None:
    one = RoutedPrompt(("a", " b", "\nc"), (12, 4, 8), 12, "x", "x", "y")
    [shown] = shaded_prompts(ReportExamples(prompts=(one,)))
    assert [token.shade for token in shown.tokens] == [1.0, 0.0, 0.5]
    assert "1 of 3 tokens run all 12 blocks; the median is 8, the fewest are 4" in shown.said
    assert [step.blocks_run for step in legend(ReportExamples(prompts=(one,)))] == [4, 6, 8, 10, 12]
    assert as_text(one) == "[12]a[4] b[8]\nc"
    page = render_report(replace(DATA, examples=ReportExamples(prompts=(one,))))
    spans = re.findall(r'<span style="--ran: ([\d.]+)" title="(.*?)">(.*?)</span>', page, re.DOTALL)
    assert spans == [
        ("1.0", "runs 12 of 12 blocks", "a"),
        ("0.0", "runs 4 of 12 blocks", " b"),
        ("0.5", "runs 8 of 12 blocks", "\nc"),
    ]
    unpruned = ReportExamples(prompts=(replace(one, blocks_run=(12, 12, 12)),))
    assert [step.shade for step in legend(unpruned)] == [1.0]


@pytest.mark.parametrize(
    ("right", "marked"),
    [((True, False), [False, True]), ((False, True), [True, False]), ((None, None), [False, False])],
)
def test_only_wrong_choices_are_marked_of_the_dense_model_too(
    right: tuple[bool | None, bool | None], marked: list[bool]
) -> None:
    """Free text is not judged, however it differs, nor a choice by its text: two choices may read alike."""
    one = RoutedPrompt(("a",), (12,), 12, "expected", "of dense", "of pruned", *right)
    data = replace(DATA, examples=ReportExamples(prompts=(one,)))
    page, markdown = render_report(data), render_markdown(data)
    answers = ("of dense", "of pruned")
    assert [f'<span class="wrong">{text}</span> <small>(wrong)</small>' in page for text in answers] == marked
    assert [f"{text} (wrong)" in markdown for text in answers] == marked
    assert ("nobody judged them" in page) == ("nobody judged them" in markdown) == (right == (None, None))


@pytest.mark.parametrize(
    ("low", "high", "tone"), [(1.2, 1.4, ""), (0.9, 1.1, "unclear"), (1.0, 1.2, "unclear"), (0.4, 0.5, "bad")]
)
def test_only_a_speed_up_beyond_the_noise_is_shown_as_one(low: float, high: float, tone: str) -> None:
    timed = [m if m.variant == "dense" else replace(m, speedup_low=low, speedup_high=high) for m in DATA.measurements]
    data = replace(DATA, measurements=timed)
    place = [column.title for column in results_table(data).columns].index("prefill speed-up")
    dense, *others = (row.cells[place] for row in results_table(data).rows)
    assert dense.tone == "" and all(cell.tone == tone for cell in others)
    [figure] = [one for one in key_figures(data) if one.label == "prefill speed-up, measured"]
    assert figure.tone == tone
    page = render_report(data)
    assert (f'<div class="card {tone}">' in page, f'<td class="{tone}">' in page) == (bool(tone), bool(tone))
    spent = [replace(one, speedup_low=low, speedup_high=high) for one in STUDY.facts.generation_speeds]
    generated = [row.cells[4] for row in speeds_table(with_facts(data, generation_speeds=tuple(spent))).rows]
    assert all(cell.tone == tone for cell in generated)


def test_titles_of_routers_say_which_one_the_selected_point_keeps() -> None:
    sections = training_sections(DATA)
    assert [one.figure.layout.title.text for one in sections] == [
        "Training of router 0, distill-1: kept",
        "Training of router 1, distill-2: not kept",
    ]
    assert "The selected point keeps router 0." in sections[0].reading
    kept = {row.cells[0].text: (row.cells[1].text, row.marked) for row in routers_table(DATA).rows}
    assert kept == {"0: distill-1": ("yes", True), "1: distill-2": ("no", False)}
    static = with_facts(DATA, selection=replace(SELECTION, router=None))
    assert all(one.figure.layout.title.text.endswith(": not kept") for one in training_sections(static))
    assert "the static router decides there" in training_sections(static)[0].reading
    before = replace(DATA, study=replace(STUDY, facts=StudyFacts(n_blocks=N_BLOCKS)))
    assert not any("kept" in one.figure.layout.title.text for one in training_sections(before))


def test_groups_are_drawn_with_intervals_and_the_selected_one_stands_out() -> None:
    figure = groups_figure(EXAMPLES.groups, "refined")
    hollow = {trace.name: trace.marker.symbol.endswith("-open") for trace in figure.data}
    assert not hollow[VARIANT_TITLES["dense"]] and not hollow[f"{VARIANT_TITLES['refined']} (selected)"]
    assert hollow[VARIANT_TITLES["uniform"]]
    dense = figure.data[0]
    assert list(dense.y) == [0.98] * 5 and dense.error_y.arrayminus[0] == pytest.approx(0.11)
    assert "no groups" in groups_figure((), None).layout.annotations[0].text


def evil_data() -> ReportData:
    config = {**STUDY.config, "model": EVIL, "data": EVIL}
    tuning = Tuning((TunedTrial({EVIL: EVIL}, math.inf, 1, 1.0),), {}, 1.0)
    facts = STUDY.facts.updated(StudyFacts(selection=replace(SELECTION, reason=EVIL), tuning=tuning))
    examples = ReportExamples(
        prompts=(RoutedPrompt((EVIL, "b"), (1, 2), 12, EVIL, EVIL, EVIL),),
        groups=(GroupAccuracy(EVIL, 3, {"dense": 1.0}, {"dense": (0.4, 1.0)}),),
        disagreements=(Disagreement(EVIL, EVIL, EVIL, EVIL, 1.0, EVIL),),
        n_disagreements=1,
        n_lost=1,
        n_items=200,
    )
    trials = [*DATA.trials[:-1], replace(DATA.trials[-1], proposer=EVIL)]
    runs = [replace(DATA.router_runs[0], config={"stage": EVIL, "static_kl": 0.5}), *DATA.router_runs[1:]]
    study = replace(STUDY, name=EVIL, config=config, facts=facts)
    return replace(DATA, study=study, trials=trials, examples=examples, router_runs=runs)


def test_text_of_prompts_groups_and_names_is_never_markup() -> None:
    page = render_report(evil_data())
    assert "<script>alert(1)" not in page and "</pre><script>" not in page
    assert page.count("&lt;/pre&gt;&lt;script&gt;alert(1)") > 8


def test_text_is_never_markup_in_markdown_either() -> None:
    lines = render_markdown(evil_data()).splitlines()
    fences = [place for place, line in enumerate(lines) if line.startswith("```")]
    inside = {place for first, last in zip(fences[::2], fences[1::2], strict=True) for place in range(first, last)}
    outside = [line for place, line in enumerate(lines) if place not in inside]
    assert not any(re.search(r"(?<!\\)<(?!/?(details|summary)>)", line) for line in outside)
    tables = [line for line in outside if line.startswith("|")]
    widths = {len(re.findall(r"(?<!\\)\|", line)) for line in tables}
    assert min(widths) >= 4
    assert fenced("```") == "````text\n```\n````"
    assert text("1. a\n# b") == r"1\. a # b" and text("# b") == r"\# b" and text("1.5 c") == "1.5 c"


def test_markdown_has_every_section_and_the_same_rows() -> None:
    words = render_markdown(DATA)
    titles = re.findall(r"^## (.+)$", words, re.MULTILINE)
    assert titles[:7] == [
        *("Results", "Speed by prompt length and new tokens", "Why this point", "How the figures were kept honest"),
        *("Which tokens are skipped", "Where accuracy is lost", "Limits and failures"),
    ]
    assert {"Rounds", "Tuning of the router's training", "What it cost to get there"} < set(titles)
    assert "| **refined (selected)** (trial" in words and "[12]Tom" in words
    assert words.count("<details>") == words.count("</details>") == 4


def test_the_data_beside_the_page_holds_it_all(tmp_path: Path) -> None:
    written = write_report(DATA, tmp_path)
    rows = list(csv.DictReader(written.rows_csv.open()))
    assert [row["variant"] for row in rows[:5]] == ["dense", "uniform", "static", "dynamic", "refined"]
    assert [row["selected"] for row in rows[:5]] == ["0", "0", "0", "0", "1"]
    assert float(rows[4]["retention_low"]) < float(rows[4]["retention"]) < float(rows[4]["retention_high"])
    assert len(rows[4]["schedule"].split()) == 12 and rows[0]["retention_low"] == ""
    plain = json.loads(written.json.read_text())
    assert plain["selection"] == asdict(SELECTION) and len(plain["rows"]) == len(rows) and len(plain["rounds"]) == 2
    assert plain["routers"][1]["curves"]["held_out_kl"][0] == 0.031
    assert plain["examples"]["n_lost"] == 3 and plain["stages"][0] == {
        **{"name": "search", "state": "finished", "seconds": 63.0}
    }
    assert rows[4]["retention_method"] == "item by item" and rows[3]["retention_method"] == "as if independent"
    points = {row["trial"]: row for row in csv.DictReader(written.front_csv.open())}
    assert len(points) == len(front(DATA.trials))
    candidate = next(m for m in DATA.results if m.variant == "candidate" and str(m.trial) in points)
    assert float(points[str(candidate.trial)]["measured_kl"]) == candidate.kl


def test_a_point_of_the_front_is_measured_with_its_own_router_only() -> None:
    trial = next(t for t in DATA.trials if t.number == STATIC.number)
    found = DATA.measured_point(trial)
    assert found is not None and found.variant == "static"
    assert DATA.measured_point(replace(trial, router=3)) is None


def test_data_without_choices_has_perplexity_in_place_of_accuracy() -> None:
    bare: list[Measurement] = [
        replace(m, accuracy=None, accuracy_low=None, accuracy_high=None, n_choice_items=0) for m in DATA.measurements
    ]
    data = replace(DATA, measurements=bare, examples=None)
    assert "no choices" in said(data) and "no accuracy" in " ".join(summary_sentences(data))
    assert {"perplexity, selected", "retained, by perplexity"} <= {figure.label for figure in key_figures(data)}
    refined, dense = next(m for m in bare if m.variant == "refined"), next(m for m in bare if m.variant == "dense")
    kept = results(data)[4].retention
    assert kept is not None and kept.share == pytest.approx(dense.perplexity / refined.perplexity)
    assert "()" not in render_markdown(data) and "<small></small>" not in render_report(data)
    asked = replace(data, study=replace(STUDY, config={**STUDY.config, "min_retention": 0.999}))
    assert "The demand was to retain 99.9% by the ratio of perplexities; on the test items" in said(asked)
    page = render_report(data)
    assert "Wilson interval. Retention" not in page and "KL against measured latency" in page


def test_a_selected_point_that_is_not_tested_yet_is_not_made_up() -> None:
    data = replace(DATA, measurements=[m for m in DATA.measurements if m.split == "validation"])
    assert DATA.selected is not None and data.selected is None
    assert "not been measured on test items" in " ".join(summary_sentences(data))
    assert "not been measured on the test items yet" in " ".join(why_selected(data))
    assert "<h2>Results</h2>" not in render_report(data)


def test_a_selected_candidate_is_ringed_and_marked() -> None:
    other = next(t for t in DATA.trials if t.round == 2 and t.number % 6 == 0)
    data = with_facts(DATA, selection=replace(SELECTION, trial=other.number, router=1))
    assert data.selected is not None and data.selected.variant == "candidate"
    assert "candidate (selected)" in {row.cells[0].text for row in results_table(data).rows}
    assert "selected: candidate" in render_report(data)
    assert measurement("candidate", other, 0.1, 150, 30.0).trial == other.number
