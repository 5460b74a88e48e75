"""Tables of a study fit a terminal and say what was selected, and why."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any

from rich.console import Console

from search.cli.show import describe_study
from search.cli.tables import (
    print_front,
    print_measurements,
    print_predictions,
    print_results,
    print_rounds,
    print_selection,
    print_speeds,
    print_verdict,
)
from search.config.run_config import RunConfig
from studies import Measurement, StudyStore
from studies.records.study_facts import ProfileRecord, StudyFacts
from tests.dashboards.records import DATA, REFINED, SELECTION, STATIC, STUDY


def described(measurements: Sequence[Measurement] = DATA.measurements, **facts: Any) -> dict[str, Any]:
    with StudyStore("sqlite://") as store:
        store.studies.create("one", RunConfig(workers=1).model_dump(), STUDY.objectives)
        for trial in DATA.trials:
            store.trials.append("one", trial)
        store.studies.update_facts("one", STUDY.facts.updated(StudyFacts(**facts)))
        store.studies.choose_trial("one", REFINED.number)
        store.results.replace_measurements("one", measurements)
        return describe_study(store, "one")


def printed(show: Callable[[Console, Mapping[str, Any]], None], description: Mapping[str, Any]) -> str:
    console = Console(width=80, markup=False, highlight=False)
    with console.capture() as captured:
        show(console, description)
    return captured.get()


def test_five_rows_are_printed_with_n_and_intervals() -> None:
    lines = printed(print_measurements, described()).splitlines()
    names = [line.split()[0] for line in lines if line.rstrip().endswith("x")]
    assert names == ["dense", "uniform", "static", "dynamic", "*refined"]
    text = "\n".join(lines)
    assert "n = 200 test items" in text and "[93, 98]" in text and "[.018, .031]" in text and "99.0%" in text
    # Nothing is folded, and nothing of the validation items or of candidates stands there.
    assert "1.28x" in text and "[1.26, \n" in text
    assert len(lines) <= 5 + 3 * 5 + 4 and "candidate" not in text and "98.0" not in text


def test_data_without_choices_shows_perplexity() -> None:
    bare = [replace(m, accuracy=None, accuracy_low=None, accuracy_high=None) for m in DATA.measurements]
    text = printed(print_measurements, described(bare))
    assert "perplexity" in text and "[1.17, 1.29]" in text and "accuracy" not in text


def test_what_an_earlier_version_measured_is_shown_with_its_chosen_trial() -> None:
    old = [replace(m, kl_low=None, kl_high=None) for m in DATA.measurements if m.variant in ("dense", "static")]
    old = [replace(m, trial=m.trial and REFINED.number) for m in old if m.split == "test"]
    text = printed(print_measurements, described(old, selection=None))
    assert "*static" in text and "dense" in text


def test_no_speedup_is_printed_without_its_interval() -> None:
    few = [replace(m, speedup_low=None, speedup_high=None, repeats=5) for m in DATA.measurements]
    description = described(few)
    text = printed(print_measurements, description)
    assert text.count("interval") == text.count("unknown") == 5 and text.count("1.28x") == 1
    assert {row["speedup_interval_unknown"] for row in description["measurements"]} == {"5 turns are too few for one"}


def test_what_times_are_worth_is_said_with_them() -> None:
    assert "Times" not in printed(print_measurements, described())
    assert described()["clock"]["test"]["is_usable"] and described()["clock"]["validation"]["doubts"] == []
    off = {"speedup": 1.51, "speedup_low": 1.31, "speedup_high": 1.9}
    busy = [replace(m, **off) if m.variant == "dense" and m.split == "test" else m for m in DATA.measurements]
    said = " ".join(printed(print_measurements, described(busy)).split())
    assert "Times were not usable, the machine was busy: the dense model, timed twice in every turn, was 1.51" in said
    assert described([])["clock"] == {"validation": None, "test": None}


def test_a_selected_candidate_is_a_row_too() -> None:
    other = next(m for m in DATA.results if m.variant == "candidate")
    selection = replace(SELECTION, trial=other.trial, router=other.router)
    text = printed(print_measurements, described(selection=selection))
    assert "*candidate" in text and "*refined" not in text


def test_rounds_and_the_reason_are_printed() -> None:
    description = described()
    words = " ".join(printed(print_rounds, description).split())
    assert "1 router 0 40 61.2 66.9 +9.3%" in words and "2 router 1 40 66.9 67.2 +0.4%" in words
    assert SELECTION.reason in " ".join(printed(print_selection, description).split())
    empty = described(selection=None, rounds=[])
    assert printed(print_rounds, empty) == printed(print_selection, empty) == ""


def test_the_verdict_is_printed_by_what_was_measured_or_else_searched() -> None:
    description = described()
    against = description["against_shortened_prompt"]
    assert against["is_better"] and (against["kl"], against["shortened_kl"]) == (0.024, 0.21)
    text = " ".join(printed(print_verdict, description).split())
    assert text == f"{description['verdict']} Go on: ftp-search resume one"
    assert "better than a prompt shortened by 30%" in text and "keeps 99.0% [95.1%, 102.8%] of the dense" in text
    worse = [replace(m, kl=0.3) if m.variant == "refined" else m for m in DATA.measurements]
    assert "no better than a prompt shortened by 30%" in printed(print_verdict, described(worse))
    # The made-up search counted no FLOPs.
    assert described([])["against_shortened_prompt"] is None and described([])["verdict"] == ""


def test_the_front_says_how_uncertain_predicted_latency_is() -> None:
    shapes = [{"uncertainty": 0.0414}, {"uncertainty": None}, {}]
    description = described(latency_profile={"batch": 8, "length": 256, "shapes": shapes})
    assert description["predicted_for"] == {"batch": 8, "length": 256, "latency_uncertainty": 0.0414}
    assert "predicted to within 4%" in " ".join(printed(print_front, description).split())
    assert "predicted to within" not in printed(print_front, described())


def test_doubtful_predictions_are_shown_beside_what_was_measured() -> None:
    description = described()
    assert [one["what"] for one in description["predictions"]["compared"]] == ["dense", "selected"]
    assert description["predictions"]["sentence"] == "" and description["predictions"]["doubts"] == []
    quiet = printed(print_predictions, description)
    assert quiet.startswith("Latency: dense ") and "; selected " in quiet
    profile = ProfileRecord(batch=8, length=256, dense_ms=651.9, doubts=("the machine was busy",))
    text = printed(print_predictions, described(latency_profile=profile))
    assert "not to be relied on: the machine was busy; dense 651.9 predicted, " in text
    assert text.count("\n") == 1 and "`ftp-search resume one --remeasure`" in text


def test_peak_memory_is_printed_as_far_as_it_was_measured() -> None:
    known = described() | {"peak_process_bytes": 2**30, "peak_worker_bytes": 2**29}
    text = "peak memory: 1.00 GiB of the process, 0.50 GiB of a worker, beside the weights"
    assert text in " ".join(printed(print_results, known).split())
    unknown = known | {"peak_process_bytes": None, "peak_worker_bytes": None}
    assert "peak memory" not in printed(print_results, unknown)


def test_plain_values_carry_selection_rounds_tuning_and_retention() -> None:
    description = described()
    assert description["selection"] == asdict(SELECTION) and len(description["rounds"]) == 2
    assert len(description["tuning"]["trials"]) == 3 and sum(description["left_out"].values()) == 9
    [refined] = [row for row in description["measurements"] if row["variant"] == "refined"]
    assert refined["selected"] and refined["retention"] == 193 / 200 / (195 / 200)
    static = next(point for point in description["front"] if point["measured_latency_ms"] is not None)
    assert static["number"] != STATIC.number or static["measured_latency_ms"] == 31.2


def test_speeds_are_printed_by_length_and_new_tokens_with_their_intervals() -> None:
    lines = printed(print_speeds, described()).splitlines()
    rows = [line.split() for line in lines if line.split()[:1] in (["256"], ["512"])]
    assert [row[:2] for row in rows] == [
        *(["256", count] for count in ("prefill", "16", "64")),
        *(["512", count] for count in ("prefill", "64")),
    ]
    assert rows[1][2:] == ["78.5", "69.5", "1.13x", "68.2", "1.15x"]
    text = "\n".join(lines)
    assert "[1.10, 1.17]" in text and max(map(len, lines)) <= 80
    assert printed(print_speeds, described(generation_speeds=[])) == ""
