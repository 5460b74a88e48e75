"""Claim: what a user gets on a pretrained model. Whole runs (search, router, measuring, test) on the paper's tasks.

A run for each task and overall sparsity, through the function that is the command line's `run`, with its defaults but
for the lengths given here. Every row is of test items; "uniform" is the shortened prompt of about the selected point's
FLOPs. Runs that a database has finished are not done again, so that the table grows over several sittings.

python benchmarks/real_models.py --model DIR --data FOLDER [--quick] [--json PATH]
    [--tasks arc_easy,arc_challenge,hellaswag,winogrande] [--sparsities 0.22,0.3,0.4] [--trials 100] [--storage URL]
    [--seed N]
"""

import argparse
import json
import resource
import time
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

import search
from dashboards.report.results import plain_result
from search.pipeline.sweep import has_finished
from search.reports import report_data
from studies import StudyStore

TASKS = ("arc_easy", "arc_challenge", "hellaswag", "winogrande")
SPARSITIES = (0.22, 0.3, 0.4)
# As the claim has them: 64 search items, 100 trials, one round.
SIZES = {"search_items": 64, "calibration_items": 96, "validation_items": 64, "test_items": 200}
QUICK_SIZES = {"search_items": 8, "calibration_items": 12, "validation_items": 8, "test_items": 24, "router_steps": 4}
COLUMNS = ("accuracy", "retention", "kl", "perplexity", "speed_up", "flops_saved", "peak_bytes")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="directory or id of the model")
    parser.add_argument("--data", type=Path, required=True, help="folder with TASK.jsonl for each task")
    parser.add_argument("--tasks", default=",".join(TASKS))
    parser.add_argument("--sparsities", default=",".join(map(str, SPARSITIES)))
    parser.add_argument("--trials", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--storage", default="sqlite:///real-models.db")
    parser.add_argument("--out", type=Path, default=Path("real-models"), help="folder of the reports")
    parser.add_argument("--quick", action="store_true", help="few items, trials and steps, of one task at one sparsity")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    tasks, sparsities = args.tasks.split(","), [float(one) for one in args.sparsities.split(",")]
    if args.quick:
        tasks, sparsities, args.trials = tasks[:1], sparsities[1:2] or sparsities, 10

    console, found = Console(), []
    for task in tasks:
        for sparsity in sparsities:
            found.append(one_run(args, task, sparsity))
            print_run(console, found[-1])
            if args.json is not None:
                args.json.write_text(json.dumps(found, indent=2) + "\n")


def one_run(args: argparse.Namespace, task: str, sparsity: float) -> dict[str, Any]:
    """A study of one task at one overall sparsity, as it is kept or from its beginning to its end."""
    name, began = f"{task}-{sparsity:g}-{args.trials}-{args.seed}", time.monotonic()
    settings = {
        "model": args.model,
        "data": str(args.data / f"{task}.jsonl"),
        "target_sparsity": sparsity,
        "trials": args.trials,
        "seed": args.seed,
        "rounds": 1,
        "refine_trials": max(1, args.trials // 4),
        "router_trials": 0,
        "latency_batch": 4,
        "latency_length": (256,),
        "new_tokens": (0,),
        "out": args.out / name,
        "export": "none",
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
        data = report_data(store, name)
        facts, config = data.study.facts, data.study.config
    stages = {stage.name: stage.seconds for stage in data.stages}
    return {
        "task": task,
        "target_sparsity": sparsity,
        "dtype": config["dtype"],
        "verdict": data.verdict,
        "rows": [plain_result(one) for one in data.results if one.measurement.variant != "candidate"],
        "stages_s": stages,
        "run_s": None if is_finished else seconds,
        "peak_process_bytes": facts.peak_process_bytes,
        # The largest of the workers, whose memory holds the weights that they share, too.
        "peak_child_bytes": 1024 * resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss,
    }


def print_run(console: Console, one: dict[str, Any]) -> None:
    """A run as a table."""
    table = Table(title=f"{one['task']} at {one['target_sparsity']:.0%}, {one['dtype']}", title_justify="left")
    for column in ("row", "sparsity", *COLUMNS):
        table.add_column(column)
    for row in one["rows"]:
        cells = [_cell(row, column) for column in COLUMNS]
        table.add_row(row["variant"] + " *" * bool(row["selected"]), f"{row['overall_sparsity']:.1%}", *cells)
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
