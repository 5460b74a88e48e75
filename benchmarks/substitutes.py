"""Claim: low-rank maps that stand in for halves that tokens skip spare a model most of what skipping loses.

KL to the dense model on held-out items, with the static router, of fixed schedules of halves with kept keys, without
maps and with some of several ranks, fitted to calibration items; beside it the prompt shortened by 30 %, which has no
maps. No schedule was searched. Last, the speed of a prefill with maps, all schedules and the dense model taking turns.

python benchmarks/substitutes.py --model DIR --data "SOURCE + SOURCE" [--ranks 16,32,64] [--calibration 180]
    [--held-out 48] [--dtype bfloat16] [--repeats 15] [--json PATH]
"""

import argparse
import json
import time
from pathlib import Path

from rich.console import Console
from rich.table import Table
from shapes import from_depth, random_prompts

from ftp_core.cost.flops import FlopsCounter
from ftp_core.cost.measure import Skipping, Unchanged, measure
from ftp_core.cost.timing import estimate_ratio
from ftp_core.quality.quality import QualitySet
from ftp_core.routers import StaticRouter
from ftp_core.schedule import SparsitySchedule
from ftp_core.skipping.substitutes import give_substitutes
from ftp_core.training.substitution import fit_substitutes
from search.inputs.data import load_workload

# First block that skips, as a share of the depth, and what each skips of its attention and of its MLP.
SCHEDULES = {
    "late blocks, 0.7": (17 / 30, 0.7, 0.7),
    "late blocks, 0.9": (17 / 30, 0.9, 0.9),
    "late blocks, 0.95": (17 / 30, 0.95, 0.95),
    "blocks from 27 % of depth on, 0.6": (8 / 30, 0.6, 0.6),
    "all blocks, 0.3": (0.0, 0.3, 0.3),
    "MLPs but the first, 0.5": (1 / 30, 0.0, 0.5),
}
BATCH, LENGTH = 4, 512
SHORTENED = 0.3


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True)
    parser.add_argument("--data", required=True)
    parser.add_argument("--ranks", type=lambda text: [int(part) for part in text.split(",")], default=[16, 32, 64])
    parser.add_argument("--calibration", type=int, default=180, help="items that maps are fitted to")
    parser.add_argument("--held-out", type=int, default=48)
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--repeats", type=int, default=15, help="rounds of timing")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    sizes = {"calibration": args.calibration, "validation": 6, "test": args.held_out}
    workload = load_workload(args.model, args.data, args.seed, sizes, dtype=args.dtype)
    model, calibration = workload.model.skipping, workload.splits["calibration"]
    held_out, counter = QualitySet(model, workload.splits["test"]), FlopsCounter(model)
    schedules = {"prompt shortened by 30 %": SparsitySchedule.uniform(SHORTENED, model.n_blocks)}
    schedules |= {name: from_depth(model.n_blocks, *shares) for name, shares in SCHEDULES.items()}
    dense = counter.count(SparsitySchedule.uniform(0.0, model.n_blocks), BATCH, LENGTH).total
    found, timed = {name: {} for name in schedules}, args.ranks[len(args.ranks) // 2]
    for rank in (0, *args.ranks):
        began = time.monotonic()
        maps = fit_substitutes(model, calibration, rank) if rank else None
        seconds = time.monotonic() - began
        give_substitutes(model.model, maps, model.blocks)
        for name, schedule in schedules.items():
            saved = 1 - counter.count(schedule, BATCH, LENGTH).total / dense
            found[name][rank] = {"kl": held_out.evaluate(schedule, StaticRouter()).kl, "saved": saved, "fit_s": seconds}
        if rank == timed:
            speeds = speeds_of(model, schedules, args.repeats)
    table = Table(title=f"KL on {args.held_out} held-out items; maps fitted to {len(calibration)} calibration items")
    speed = f"speed, rank {timed}"
    for column in ("schedule", "FLOPs saved", "without", *(f"rank {rank}" for rank in args.ranks), speed):
        table.add_column(column, justify="left" if column == "schedule" else "right")
    for name, by_rank in found.items():
        saved = " to ".join(dict.fromkeys(f"{by_rank[rank]['saved']:.1%}" for rank in (0, args.ranks[-1])))
        shown = "{median:.2f} [{low:.2f}, {high:.2f}]".format(**vars(speeds[name]))
        table.add_row(name, saved, *(f"{one['kl']:.3f}" for one in by_rank.values()), shown)
    console = Console(width=140)
    console.print(table)
    fits = [f"rank {rank}: {found['all blocks, 0.3'][rank]['fit_s']:.0f} s" for rank in args.ranks]
    console.print(f"Fitted in {', '.join(fits)}. Prefills of {BATCH} x {LENGTH} tokens.")
    if args.json is not None:
        figures = {name: {"by_rank": by_rank, "speed": vars(speeds[name])} for name, by_rank in found.items()}
        args.json.write_text(json.dumps(figures, indent=2) + "\n")


def speeds_of(model, schedules, repeats):
    """Speed of a prefill under each schedule, as a multiple of the dense model's."""
    prompts = random_prompts(model, BATCH, LENGTH, seed=0)
    variants = [Unchanged("dense"), *(Skipping(name, one, StaticRouter()) for name, one in schedules.items())]
    dense, *others = (timing.end_to_end_samples_ms for timing in measure(model, prompts, variants, repeats=repeats))
    return {name: estimate_ratio(dense, ms) for name, ms in zip(schedules, others, strict=True)}


if __name__ == "__main__":
    main()
