"""A report shows other methods beside the study's own schedules, the last row that each has at a target."""

from __future__ import annotations

from dataclasses import replace

from dashboards.report.html import render_report
from dashboards.report.markdown import render_markdown
from dashboards.report.methods import methods_tables
from studies.records.compared import Compared, ComparedModel
from tests.dashboards.records import DATA

MODEL = ComparedModel(
    **{"asked": 0.25, "flops_saved": 0.26, "flops": 1e9, "kv_bytes": 2**20, "n_parameters": 2_400_000},
    **{"sparsity": "0.3 of the blocks removed", "kl": 0.1, "kl_low": 0.08, "kl_high": 0.12, "perplexity": 2.0},
    **{"accuracy": 0.9, "accuracy_low": 0.8, "accuracy_high": 0.95, "latency_ms": 9.0, "speedup": 1.2},
    **{"speedup_low": 1.1, "speedup_high": 1.3, "tokens_per_second": 40.0, "repeats": 9, "batch": 4, "length": 256},
    **{"seconds": 6.0, "tokens": 1000, "trained_parameters": 64, "preparation_bytes": None},
    **{"item_kl": (0.1, 0.1), "item_tokens": (1, 1), "item_right": (1, 0)},
)  # type: ignore[arg-type]
ROWS = (
    Compared("ours", "", "latency", 0.25, 0, "c", replace(MODEL, kl=0.05, item_kl=(0.05, 0.05))),
    Compared("laco", "LaCo (arXiv 2402.11187)", "latency", 0.25, 0, "old", replace(MODEL, kl=0.7654)),
    Compared("laco", "LaCo (arXiv 2402.11187)", "latency", 0.25, 0, "c", MODEL),
    Compared("pruner", "", "latency", 0.25, 0, "c", None, "This <family> has no heads to prune."),
)


def test_reports_show_other_methods_beside_ours() -> None:
    data = replace(DATA, compared=ROWS)
    page, text = render_report(data), render_markdown(data)
    for shown in (page, text):
        assert "Beside other methods: 25% less time for a prefill" in shown
        assert "+0.0500" in shown and "64 parameters trained" in shown and "0.7654" not in shown
    assert "This &lt;family&gt; has no heads to prune." in page and "This <family>" not in page
    assert "Beside other methods" not in render_report(DATA) + render_markdown(DATA)


def test_the_last_row_of_a_method_counts() -> None:
    [(_, table)] = methods_tables(ROWS)
    assert [row.cells[0].text for row in table.rows] == ["ours", "laco", "pruner"]
    assert table.rows[1].cells[3].text == "0.1000" and table.rows[1].cells[4].text == "worse"


def test_seeds_of_a_method_are_one_row_whose_intervals_reach_over_all() -> None:
    other = replace(MODEL, kl=0.2, kl_low=0.15, kl_high=0.3, accuracy=0.8, accuracy_low=0.7, accuracy_high=0.85)
    seeds = [replace(ROWS[2], seed=seed, model=model) for seed, model in enumerate((MODEL, other))]
    [(_, table)] = methods_tables([ROWS[0], *seeds])
    row = table.rows[1].cells
    assert (row[0].text, row[0].detail) == ("laco", "2 seeds")
    assert (row[3].text, row[3].detail) == ("0.1500", "[0.0800, 0.3000]")
    assert (row[5].text, row[5].detail) == ("85.0%", "[70.0%, 95.0%]")
