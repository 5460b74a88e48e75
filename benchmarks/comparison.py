"""Claim: at equal measured time, no other method has a lower KL or a higher accuracy than the searched schedules.

A search for each budget (`--target-speedup` as predicted, or `--target-flops-saved` with `--match flops`), then every
method of `ftp-search compare` at that budget: prepared on the same calibration items, run on the same test items, timed
in turns with the dense model. Rows against ours are judged by paired tests. What a database has is not done again, so
that the table grows over several sittings.

python benchmarks/comparison.py [--model smollm2] [--data "SOURCE + SOURCE"] [--budgets 0.15,0.25,0.4]
    [--methods NAMES] [--match latency|flops] [--trials 100] [--test-items 160] [--storage URL] [--quick]
    [--json PATH] [--picture PATH.html]
"""

import argparse
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import plotly.graph_objects as go
from rich.console import Console
from rich.table import Table

import search
from dashboards.report.methods import methods_tables
from studies import StudyStore
from studies.records.compared import OURS, Compared

QUICK = ("shortened_prompt", "last_k", "shortgpt")


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
    parser.add_argument("--json", type=Path)
    parser.add_argument("--picture", type=Path, help="a page that opens offline")
    args = parser.parse_args()
    budgets = [float(one) for one in args.budgets.split(",")]
    methods = None if args.methods is None else args.methods.split(",")
    if args.quick:
        budgets, methods, args.trials, args.test_items, args.seeds = budgets[1:2] or budgets, list(QUICK), 12, 16, 1
    console, rows = Console(), list[Compared]()
    for budget in budgets:
        rows += compared(args, budget, methods)
        for title, table in methods_tables([one for one in rows if one.target == budget]):
            shown = Table(title=title, title_justify="left")
            for column in table.columns:
                shown.add_column(f"{column.title} {column.unit}".strip(), overflow="fold")
            for row in table.rows:
                shown.add_row(*(f"{cell.text} {cell.detail}".strip() for cell in row.cells))
            console.print(shown)
        if args.json is not None:
            args.json.write_text(json.dumps([asdict(one) for one in rows], indent=2) + "\n")
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
    return search.compare(
        name, storage=args.storage, methods=methods, budgets=[budget], match=args.match, seeds=args.seeds
    )


def picture(rows: list[Compared]) -> go.Figure:
    """KL against measured time of all methods, a line for each."""
    figure = go.Figure()
    for method in dict.fromkeys(one.method for one in rows):
        models = sorted((one.model for one in rows if one.method == method and one.model), key=lambda m: m.speedup)
        if not models:
            continue
        figure.add_scatter(
            x=[1 - 1 / model.speedup for model in models],
            y=[model.kl for model in models],
            error_y={
                "type": "data",
                "array": [model.kl_high - model.kl for model in models],
                "arrayminus": [model.kl - model.kl_low for model in models],
            },
            mode="lines+markers",
            name=method,
            line_width=4 if method == OURS else 1.5,
        )
    figure.update_xaxes(title="less time for a prefill, measured", tickformat=".0%")
    figure.update_yaxes(title="KL to the dense model, nats per token", type="log")
    return figure.update_layout(template="plotly_white", width=900, height=560)


if __name__ == "__main__":
    main()
