"""Claim: what a user gets on a pretrained model. Whole runs (search, router, measuring, test) on the paper's tasks.

A run for each share of FLOPs saved, or predicted speed-up, and kind of schedule (whole blocks whose skipped tokens
leave no keys and values, as the paper has them; halves of blocks, keys and values kept; whole blocks that keep them),
on a mix of the tasks in equal parts, tested on each task, through the function that is the command line's `run`. Every
row is of test items; "uniform" is the shortened prompt of about the selected point's FLOPs, or predicted time. With
`--calibration`, a search with the static router for each kind of calibration data instead (the tasks, Alpaca, and text
that the model writes itself), each tested on all three. Runs that a database has finished are not done again, so that
the table grows over several sittings.

python benchmarks/real_models.py --model DIR --data FOLDER [--calibration] [--quick] [--json PATH]
    [--tasks arc_easy,arc_challenge,hellaswag,winogrande] [--saved 0.22,0.3,0.4 | --speedups 1.15,1.3] [--length 256]
    [--kinds block,half,whole] [--trials 100] [--static] [--storage URL] [--seed N]
"""

import argparse
import json
import time
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

import search
from dashboards.analysis.tables import Table as ReportTable
from dashboards.report.elsewhere import elsewhere_table
from dashboards.report.results import plain_result, results
from search.pipeline.sweep import has_finished
from search.reports import report_data
from studies import StudyStore

TASKS = ("arc_easy", "arc_challenge", "hellaswag", "winogrande")
SAVED = (0.22, 0.3, 0.4)
KINDS = {
    "block": {"granularity": "block", "kv": "drop"},
    "half": {"granularity": "half", "kv": "keep"},
    "whole": {"granularity": "block", "kv": "keep"},
}
# As the claim has them: 64 search items, 100 trials, one round.
SIZES = {"search_items": 64, "calibration_items": 96, "validation_items": 64, "test_items": 160}
QUICK_SIZES = {"search_items": 8, "calibration_items": 12, "validation_items": 8, "test_items": 24, "router_steps": 4}
COLUMNS = ("accuracy", "retention", "kl", "perplexity", "speed_up", "flops_saved", "peak_bytes")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="directory or id of the model")
    parser.add_argument("--data", type=Path, required=True, help="folder with TASK.jsonl for each task")
    parser.add_argument("--tasks", default=",".join(TASKS))
    parser.add_argument("--saved", default=",".join(map(str, SAVED)), help="shares of FLOPs to save")
    parser.add_argument("--speedups", help="predicted speed-ups to reach, in place of shares of FLOPs")
    parser.add_argument("--length", type=int, default=256, help="tokens of each of the four prompts that are timed")
    parser.add_argument("--kinds", default="block,half", help="kinds of schedule")
    parser.add_argument("--trials", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--storage", default="sqlite:///real-models.db")
    parser.add_argument("--out", type=Path, default=Path("real-models"), help="folder of the reports")
    parser.add_argument("--static", action="store_true", help="train no router")
    parser.add_argument("--calibration", action="store_true", help="compare kinds of calibration data instead")
    parser.add_argument("--quick", action="store_true", help="few items, trials and steps, of two tasks at one share")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    tasks, by = args.tasks.split(","), "target_flops_saved" if args.speedups is None else "target_speedup"
    targets = [float(one) for one in (args.speedups or args.saved).split(",")]
    if args.quick:
        tasks, targets, args.trials = tasks[:2], targets[1:2] or targets, 10
    files = [str(prepared(args.data / f"{task}.jsonl", args.out)) for task in tasks]
    mix = " + ".join(files)
    runs: list[tuple[str, str, list[str], float, dict[str, Any]]]
    if args.calibration:
        kinds = {"tasks": mix, "alpaca": str(args.data / "alpaca.jsonl"), "self": "self"}
        others = {kind: [data for other, data in kinds.items() if other != kind] for kind in kinds}
        others["alpaca"][:1] = others["self"][:1] = files
        static = {"rounds": 0, "router": "dynamic", **KINDS["half"]}
        runs = [(kind, data, others[kind], targets[len(targets) // 2], static) for kind, data in kinds.items()]
    else:
        trained = {"rounds": 1, "refine_trials": max(1, args.trials // 4), "router_trials": 0, "router": "dynamic"}
        trained = {"rounds": 0} if args.static else trained
        runs = [
            (kind, mix, files, target, {**trained, **KINDS[kind]})
            for target in targets
            for kind in args.kinds.split(",")
        ]
    console, found = Console(), []
    for kind, data, tested, target, settings in runs:
        name = f"{kind}-{target:g}-{args.trials}-{args.seed}" + ("" if args.length == 256 else f"-{args.length}")
        found.append(one_run(args, name, data, tested, {by: target, **settings}))
        print_run(console, found[-1])
        if args.json is not None:
            args.json.write_text(json.dumps(found, indent=2) + "\n")


def prepared(path: Path, folder: Path) -> Path:
    """A task's file; WinoGrande's sentences with a gap in the form in which choices are filled in, as lm-eval does."""
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    if not all("_" in row.get("question", "") and len(row["choices"]) == 2 for row in rows):
        return path
    folder.mkdir(parents=True, exist_ok=True)
    filled = folder / path.name
    lines = [
        {
            "sentence": row["question"],
            "option1": row["choices"][0],
            "option2": row["choices"][1],
            "answer": str(row["answer"] + 1),
        }
        for row in rows
    ]
    filled.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return filled


def one_run(args: argparse.Namespace, name: str, data: str, tested: list[str], own: dict[str, Any]) -> dict[str, Any]:
    """A study at one target, as it is kept or from its beginning to its end."""
    began = time.monotonic()
    settings = {
        "model": args.model,
        "data": data,
        "test_data": " + ".join(tested),
        "trials": args.trials,
        "seed": args.seed,
        "latency_batch": 4,
        "latency_length": (args.length,),
        "new_tokens": (0,),
        "out": args.out / name,
        "export": "none",
        **own,
        **(QUICK_SIZES if args.quick else SIZES),
    }
    with StudyStore(args.storage) as store:
        is_known = any(summary.name == name for summary in store.studies.summaries())
        is_finished = is_known and has_finished(store, name)
    if is_known and not is_finished:
        search.resume(name, storage=args.storage)
    elif not is_known:
        search.run(name, storage=args.storage, **settings)
    seconds = time.monotonic() - began
    with StudyStore(args.storage) as store:
        data_of_run = report_data(store, name)
        facts, config = data_of_run.study.facts, data_of_run.study.config
    return {
        "study": name,
        "target": {name: config[name] for name in ("target_flops_saved", "target_speedup")},
        "dtype": config["dtype"],
        "verdict": data_of_run.verdict,
        "rows": [plain_result(one) for one in results(data_of_run) if one.measurement.variant != "candidate"],
        "tested_on": as_plain(elsewhere_table(data_of_run)),
        "stages_s": {stage.name: stage.seconds for stage in data_of_run.stages},
        "run_s": None if is_finished else seconds,
        "peak_process_bytes": facts.peak_process_bytes,
        "peak_worker_bytes": facts.peak_worker_bytes,
    }


def as_plain(table: ReportTable) -> list[dict[str, str]]:
    """A table of the report as texts by column."""
    names = [column.title for column in table.columns]
    return [
        {name: f"{cell.text} {cell.detail}".strip() for name, cell in zip(names, row.cells, strict=True)}
        for row in table.rows
    ]


def print_run(console: Console, one: dict[str, Any]) -> None:
    """A run as tables."""
    table = Table(title=f"{one['study']}, {one['dtype']}", title_justify="left")
    for column in ("row", "sparsity", *COLUMNS):
        table.add_column(column)
    for row in one["rows"]:
        cells = [_cell(row, column) for column in COLUMNS]
        table.add_row(row["variant"] + " *" * bool(row["selected"]), f"{row['overall_sparsity']:.1%}", *cells)
    console.print(table)
    if one["tested_on"]:
        table = Table(*one["tested_on"][0])
        for row in one["tested_on"]:
            table.add_row(*row.values())
        console.print(table)
    stages = ", ".join(f"{name} {seconds:.0f} s" for name, seconds in one["stages_s"].items() if seconds)
    console.print(f"{one['verdict']}\n{stages}", soft_wrap=True)


def _cell(row: dict[str, Any], column: str) -> str:
    value = row.get(column)
    if value is None:
        return "-"
    if column == "peak_bytes":
        return f"{value / 2**20:.0f} MiB"
    form = ".1%" if column in ("accuracy", "retention", "flops_saved") else ".3f"
    ends = [row.get(f"{column}_{end}") for end in ("low", "high")]
    return f"{value:{form}}" + (f" [{ends[0]:{form}}, {ends[1]:{form}}]" if None not in ends else "")


if __name__ == "__main__":
    main()
