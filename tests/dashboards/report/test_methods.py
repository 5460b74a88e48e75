"""A report shows other methods beside the study's own schedules, the last row that each has at a target."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import plotly.graph_objects as go
import pytest

from dashboards.figures import front_figure, measurements_figure
from dashboards.report.html import render_report
from dashboards.report.markdown import render_markdown
from dashboards.report.methods import methods_tables
from studies.records.compared import Compared, ComparedModel, ShapeSpeed
from tests.dashboards.records import DATA

DENSE = next(m for m in DATA.results if m.variant == "dense")

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


def test_tokens_of_our_own_preparation_are_not_counted_and_none_are_told() -> None:
    [(_, table)] = methods_tables(ROWS)
    told = [row.cells[-1].detail for row in table.rows[:2]]
    assert told == ["tokens not counted", "64 parameters trained, 1,000 tokens"]


def test_seeds_of_a_method_are_one_row_whose_intervals_reach_over_all() -> None:
    other = replace(MODEL, kl=0.2, kl_low=0.15, kl_high=0.3, accuracy=0.8, accuracy_low=0.7, accuracy_high=0.85)
    seeds = [replace(ROWS[2], seed=seed, model=model) for seed, model in enumerate((MODEL, other))]
    [(_, table)] = methods_tables([ROWS[0], *seeds])
    row = table.rows[1].cells
    assert (row[0].text, row[0].detail) == ("laco", "2 seeds")
    assert (row[3].text, row[3].detail) == ("0.1500", "[0.0800, 0.3000]")
    assert (row[5].text, row[5].detail) == ("85.0%", "[70.0%, 95.0%]")


def test_speed_at_other_prefills_is_a_table_of_its_own() -> None:
    fast, unclear = ShapeSpeed(1, 256, 4.0, 1.5, 1.4, 1.6, 9), ShapeSpeed(8, 2048, 90.0, 1.1, None, None, 3)
    slow = replace(fast, length=64, speedup=0.8, speedup_low=0.7, speedup_high=0.9)
    ours = replace(ROWS[0], model=replace(MODEL, shapes=(unclear, fast)))
    rows = [ours, replace(ROWS[2], model=replace(MODEL, shapes=(slow,))), ROWS[3]]
    (_, table), (title, speeds) = methods_tables(rows)
    assert [row.cells[0].text for row in table.rows] == ["ours", "laco", "pruner"]
    assert title == "25% less time for a prefill, speed-up at others"
    assert [column.title for column in speeds.columns] == ["method", "1 × 64", "1 × 256", "8 × 2,048"]
    [ours_cells, laco] = [row.cells for row in speeds.rows]
    assert [cell.text for cell in ours_cells] == ["ours", "–", "1.50×", "1.10×"]
    assert (ours_cells[2].detail, ours_cells[3].tone) == ("[1.40, 1.60]", "unclear")
    assert (laco[1].text, laco[1].tone, laco[2].text) == ("0.80×", "bad", "–")
    page = render_report(replace(DATA, compared=tuple(rows)))
    assert "speed-up at others" in page and "8 × 2,048" in page


def timed(rows: Sequence[Compared]) -> list[Compared]:
    """The rows, of the prefill that the study was measured on."""
    shape = {"batch": DENSE.batch, "length": DENSE.length}
    return [one if one.model is None else replace(one, model=replace(one.model, **shape)) for one in rows]


def traces(figure: go.Figure) -> dict[str, Any]:
    return {trace.name: trace for trace in figure.data}


def test_other_methods_are_points_of_the_figures_of_what_was_measured() -> None:
    other = replace(MODEL, kl=0.3, kl_high=0.4)
    rows = timed([*ROWS, replace(ROWS[2], target=0.5, model=other), replace(ROWS[2], target=0.5, seed=1)])
    drawn = measurements_figure([replace(m, accuracy=None) for m in DATA.results], None, compared=rows)
    laco, ours = traces(drawn)["laco"], traces(drawn)["ours, compared"]
    # By the speed-up, whatever the clock said when it was measured; of two seeds, the mean.
    assert list(laco.x) == pytest.approx([DENSE.latency_ms / 1.2] * 2) and list(laco.y) == pytest.approx([0.1, 0.2])
    assert list(laco.error_y.array) == pytest.approx([0.02, 0.2]) and list(ours.y) == [0.05]
    assert laco.marker.symbol != ours.marker.symbol and laco.showlegend is not False
    for said in ("laco", "25% less time", "0.1 [0.08, 0.12]", "1.20× [1.10, 1.30]", "26.0%"):
        assert said in laco.hovertext[0]
    assert "mean of 2 seeds" in laco.hovertext[1] and "pruner" not in traces(drawn)
    # The axis of KL reaches to the highest of them.
    far = timed([replace(ROWS[2], model=replace(MODEL, kl=40.0, kl_low=30.0, kl_high=50.0))])
    top = measurements_figure([replace(m, accuracy=None) for m in DATA.results], None, compared=far).layout.yaxis
    assert (10 ** top.range[1] if top.type == "log" else top.range[1]) >= 50.0
    # Operations are counted; where all have choices, accuracy stands upwards.
    counted = traces(measurements_figure(DATA.results, None, "flops", compared=rows))["laco"]
    assert list(counted.x) == [1.0, 1.0] and list(counted.y) == [0.9, 0.9]
    # Beside trials they are none that could be selected.
    front = traces(front_figure(DATA.found, measurements=DATA.results, compared=rows))["laco"]
    assert list(front.y) == pytest.approx([0.1, 0.2]) and list(front.customdata) == [None, None]


@pytest.mark.parametrize("axes", [("latency_ms", "kl"), ("overall_sparsity", "kl")])
def test_what_no_axis_has_is_not_drawn(axes: tuple[str, str]) -> None:
    found, tested = DATA.found, DATA.results
    plain = front_figure(found, *axes, measurements=tested)
    # Of another prefill, or at a share of tokens that others do not know.
    rows = ROWS if axes[0] == "latency_ms" else timed(ROWS)
    assert front_figure(found, *axes, measurements=tested, compared=rows) == plain
    # Without the dense model on the clock, a speed-up is of nothing.
    untimed = [m for m in tested if m.variant != "dense"]
    assert front_figure(found, *axes, measurements=untimed, compared=timed(ROWS)) == front_figure(
        found, *axes, measurements=untimed
    )
