"""Several studies side by side: every seed is shown, and means have intervals over seeds."""

from __future__ import annotations

import csv
import json
from dataclasses import replace
from pathlib import Path
from statistics import fmean
from typing import Any

import pytest

from dashboards.report.comparison import comparison_table, grouped, seeds_table, write_comparison
from studies.records.study_facts import StudyFacts
from studies.records.target import Target
from tests.dashboards.records import DATA, SELECTION

KLS = (0.02, 0.03, 0.025)


SPARSITY = Target("target_sparsity", 0.3)


def row(seed: int, target: Target | None = SPARSITY, model: str = "demo", **changes: Any) -> dict[str, Any]:
    """A study whose refined row has a KL of its own."""
    kl = KLS[seed % len(KLS)]
    measured = [replace(m, kl=kl) if m.variant == "refined" else m for m in DATA.measurements]
    name = f"{model}-{None if target is None else target.value}-{seed}"
    plain = {"study": name, "model": model, "target": target, "seed": seed, "measurements": measured}
    return {**plain, "created_at": "2026-01-01T00:00:00+00:00", "facts": StudyFacts(selection=SELECTION), **changes}


ROWS = [row(0), row(1), row(0, target=None), row(2), row(0, model="<b>other</b> | x")]


def test_studies_are_grouped_by_model_and_target() -> None:
    groups = grouped(ROWS)
    assert [(group.model, group.target) for group in groups] == [
        *(("demo", SPARSITY), ("demo", None)),
        ("<b>other</b> | x", SPARSITY),
    ]
    assert [mean.variant for mean in groups[0].means] == [
        *("dense", "uniform", "static", "dynamic", "refined", "selected")
    ]
    assert [len(mean.seeds) for mean in groups[0].means] == [3] * 6


def test_targets_of_different_kinds_are_apart_and_say_which_they_are(tmp_path: Path) -> None:
    saved, faster = Target("target_flops_saved", 0.3), Target("target_speedup", 1.5)
    rows = [row(0), row(1, target=saved), row(2, target=faster)]
    assert [group.title for group in grouped(rows)] == [
        "demo, target 30 % overall sparsity",
        "demo, target 30 % of FLOPs saved",
        "demo, target a predicted speed-up of 1.5",
    ]
    records = json.loads(write_comparison(rows, tmp_path).json.read_text())["rows"]
    assert {(one["target_kind"], one["target"], one["seeds"]) for one in records} == {
        ("target_sparsity", 0.3, "0"),
        ("target_flops_saved", 0.3, "1"),
        ("target_speedup", 1.5, "2"),
    }


def test_a_mean_is_over_seeds_with_students_interval() -> None:
    refined = grouped(ROWS)[0].means[4]
    mean, ends = refined.figures["kl"]
    assert mean == pytest.approx(fmean(KLS))
    # 4.303 x 0.005 / sqrt(3)
    assert ends == pytest.approx((mean - 0.012422, mean + 0.012422), abs=1e-5)
    assert refined.figures["retention"][0] == pytest.approx(193 / 195)
    assert grouped(ROWS)[1].means[4].figures["kl"] == (0.02, None)


def test_too_few_seeds_have_their_values_in_place_of_an_interval() -> None:
    def timed_row(seed: int, ms: float) -> dict[str, Any]:
        rows = [replace(m, latency_ms=ms) if m.variant == "refined" else m for m in DATA.measurements]
        return row(seed, measurements=rows)

    two = comparison_table(grouped([timed_row(0, 22.0), timed_row(1, 556.0)])[0])
    details = [cell.detail for cell in two.rows[4].cells]
    assert "22.0 to 556.0" in details and "the same" in details
    assert two.reading.startswith("2 seeds are too few for an interval: below their mean, without brackets, stand ")
    assert not any("[" in detail for detail in details)
    # By Student's t it would be from -566 to 967 ms.
    wild = comparison_table(grouped([timed_row(seed, ms) for seed, ms in enumerate((22.0, 24.0, 556.0))])[0])
    assert "22.0 to 556.0" in [cell.detail for cell in wild.rows[4].cells]
    assert wild.reading.startswith("Some values vary too much between seeds for an interval: ")
    one = comparison_table(grouped(ROWS)[1])
    assert one.reading == "1 seed is too few for an interval."
    assert not any("[" in cell.detail for line in one.rows for cell in line.cells)


def test_no_speedup_of_a_seed_is_shown_without_its_interval() -> None:
    few = [replace(m, speedup_low=None, speedup_high=None, repeats=5) for m in DATA.measurements]
    [group] = grouped([row(0), row(1, measurements=few)])
    details = [line.cells[-1].detail for line in seeds_table(group).rows]
    assert len(details) == 12 and all(details)
    assert details.count("interval unknown: 5 turns are too few for one") == 6


def test_what_one_seed_does_not_know_has_no_mean() -> None:
    bare = [replace(m, accuracy=None) for m in DATA.measurements]
    [group] = grouped([row(0), row(1, measurements=bare)])
    assert "accuracy" not in group.means[4].figures and "kl" in group.means[4].figures
    assert "–" in {cell.text for line in comparison_table(group).rows for cell in line.cells}


def test_every_file_has_every_seed_and_the_means(tmp_path: Path) -> None:
    rows, left_out = (
        [*ROWS, row(7, target=Target("target_sparsity", 0.9), measurements=[], selection=None)],
        {"demo-0.3-9": "failed: a <b>disk."},
    )
    written = write_comparison(rows, tmp_path / "out", left_out)
    records = list(csv.DictReader(written.csv.open()))
    assert records == [
        {key: "" if value is None else str(value) for key, value in one.items()}
        for one in json.loads(written.json.read_text())["rows"]
    ]
    kinds = [
        one["kind"] for one in records if (one["target"], one["variant"], one["model"]) == ("0.3", "refined", "demo")
    ]
    assert kinds == ["seed", "seed", "seed", "mean"]
    mean = next(one for one in records if one["kind"] == "mean" and one["variant"] == "refined")
    assert (mean["seeds"], mean["n"]) == ("0 1 2", "600")
    page, words = written.html.read_text(), written.markdown.read_text()
    assert "&lt;b&gt;other" in page and "<b>other" not in page and "<script" not in page
    assert r"\<b\>other\</b\> \| x" in words
    for shown in (page, words):
        assert "Student&#39;s t" in shown or "Student's t" in shown
        assert "in no mean: demo-0.9-7" in shown and "demo-0.3-1" in shown
        assert "In no mean: demo-0.3-9, which failed: a" in shown and "<b>disk" not in shown.replace(r"\<b\>", "")
    assert json.loads(written.json.read_text())["left_out"] == left_out


def test_nothing_to_compare_is_no_failure(tmp_path: Path) -> None:
    written = write_comparison([], tmp_path)
    assert "Comparison of 0 studies" in written.html.read_text() and written.csv.read_text().strip() == ""
