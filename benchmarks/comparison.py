"""Claim: at equal measured time, no other method has a lower KL or a higher accuracy than the searched schedules.

A search for each budget (`--target-speedup` as predicted, or `--target-flops-saved` with `--match flops`), then every
method of `ftp-search compare` at that budget: prepared on the same calibration items, run on the same test items, timed
in turns with the dense model. Rows against ours are judged by paired tests. What a database has is not done again, so
that the table grows over several sittings.

python benchmarks/comparison.py [--model smollm2] [--data "SOURCE + SOURCE"] [--budgets 0.15,0.25,0.4]
    [--methods NAMES] [--match latency|flops] [--trials 100] [--test-items 160] [--storage URL] [--quick]
    [--shapes 1x256,8x2048] [--json PATH] [--tables PATH.md] [--picture PATH.html]
"""

import argparse
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import plotly.graph_objects as go
from plotly.subplots import make_subplots
from rich.console import Console

import search
from dashboards.analysis.other_methods import MethodPoint, method_points
from dashboards.figures.appearance import VARIANT_COLOURS
from dashboards.report import markdown
from dashboards.report.methods import methods_tables
from search.cli.compare import print_compared
from search.comparison.plan import listed
from studies import StudyStore
from studies.records.compared import OURS, Compared

QUICK = ("shortened_prompt", "last_k", "shortgpt")
OURS_COLOUR, OTHERS_COLOUR = VARIANT_COLOURS["refined"], "#777777"
_ROW_PX = 24


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="demo")
    parser.add_argument("--data", default="demo", help="as for `ftp-search run`")
    parser.add_argument("--budgets", default="0.15,0.25,0.4", help="shares of time, or operations, to save")
    parser.add_argument("--methods", help="names with commas; all if not given")
    parser.add_argument("--match", choices=["latency", "flops"], default="latency")
    parser.add_argument("--trials", type=int, default=100)
    parser.add_argument("--test-items", type=int, default=160)
    parser.add_argument("--length", type=int, default=256, help="tokens of each of the four prompts that are timed")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--seeds", type=int, default=3, help="seeds of methods with chance")
    parser.add_argument("--storage", default="sqlite:///comparison.db")
    parser.add_argument("--quick", action="store_true", help="few items and trials, three methods, one budget")
    parser.add_argument("--shapes", default="", help="further prefills to time, as `ftp-search compare` has them")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--tables", type=Path, help="a file for the tables in Markdown")
    parser.add_argument("--picture", type=Path, help="a page that opens offline")
    args = parser.parse_args()
    budgets = [float(one) for one in args.budgets.split(",")]
    methods = None if args.methods is None else args.methods.split(",")
    if args.quick:
        budgets, methods, args.trials, args.test_items, args.seeds = budgets[1:2] or budgets, list(QUICK), 12, 16, 1
    console, rows = Console(width=140, markup=False, highlight=False), list[Compared]()
    for budget in budgets:
        rows += (found := compared(args, budget, methods))
        print_compared(console, found)
        if args.json is not None:
            args.json.write_text(json.dumps([asdict(one) for one in rows], indent=2) + "\n")
        if args.tables is not None:
            parts = (f"## {title}\n\n{markdown.table(table)}" for title, table in methods_tables(rows))
            args.tables.write_text("\n\n".join(parts) + "\n")
    if args.picture is not None:
        picture(rows).write_html(args.picture, include_plotlyjs=True)


def compared(args: argparse.Namespace, budget: float, methods: list[str] | None) -> list[Compared]:
    """All methods at a budget, beside a study that was searched for it."""
    name = f"comparison-{args.match}-{budget:g}-{args.trials}-{args.seed}"
    own: dict[str, Any] = {"target_flops_saved": budget}
    if args.match == "latency":
        own = {"target_speedup": round(1 / (1 - budget), 4)}
    with StudyStore(args.storage) as store:
        is_known = any(one.name == name for one in store.studies.summaries())
        is_searched = is_known and store.runs.has_finished(name, "report")
    settings = {"trials": args.trials, "seed": args.seed, "rounds": 0, "export": "none", **own}
    settings |= {"latency_batch": 4, "latency_length": (args.length,), "test_items": args.test_items}
    settings |= {"search_items": 8, "calibration_items": 16, "validation_items": 8} if args.quick else {}
    if is_known and not is_searched:
        search.resume(name, storage=args.storage)
    elif not is_known:
        search.run(name, storage=args.storage, model=args.model, data=args.data, **settings)
    asked = {"budgets": [budget], "match": args.match, "seeds": args.seeds, "shapes": listed(args.shapes)}
    return search.compare(name, storage=args.storage, methods=methods, **asked)


def picture(rows: list[Compared]) -> go.Figure:
    """KL and measured speed-up of all methods, those of a target in one row of panels, the lowest KL on top."""
    targets: dict[str, list[MethodPoint]] = {}
    for one in method_points(rows):
        targets.setdefault(one.title, []).append(one)
    heights = [len(points) for points in targets.values()]
    titles = [words for title in targets for words in (f"at {title}", "")]
    figure = make_subplots(
        len(targets),
        2,
        shared_yaxes=True,
        row_heights=heights,
        column_widths=[0.65, 0.35],
        horizontal_spacing=0.03,
        vertical_spacing=80 / (80 + _ROW_PX * sum(heights)),
        subplot_titles=titles,
    )
    for place, points in enumerate(targets.values(), 1):
        ordered = sorted(points, key=lambda one: -one.kl)
        for one in ordered:
            of_kl, of_speed = one.kl_interval, one.speedup_interval or (one.first.speedup,) * 2
            for column, value, (low, high) in ((1, one.kl, of_kl), (2, one.first.speedup, of_speed)):
                figure.add_scatter(
                    x=[value],
                    y=[one.method],
                    error_x={"type": "data", "array": [high - value], "arrayminus": [value - low]},
                    marker={"size": 10, "color": OURS_COLOUR if one.method == OURS else OTHERS_COLOUR},
                    showlegend=False,
                    row=place,
                    col=column,
                )
        figure.update_yaxes(categoryarray=[one.method for one in ordered], row=place)
        figure.update_xaxes(title="KL to the dense model, nats per token", type="log", dtick=1, row=place, col=1)
        figure.update_xaxes(title="speed of a prefill, times the dense model's", row=place, col=2)
    figure.update_annotations(x=0, xanchor="left", font_size=14)
    return figure.update_layout(
        template="plotly_white", width=1000, height=130 + 80 * (len(targets) - 1) + _ROW_PX * sum(heights)
    )


if __name__ == "__main__":
    main()
