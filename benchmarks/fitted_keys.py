"""Claim: keys fitted to a schedule spare late blocks as much as low-rank maps do, for no operation.

KL to the dense model on held-out items, with the static router, of fixed schedules of halves with kept keys: with the
blocks' own projections of skipped tokens' keys and values, with fitted ones, with low-rank maps that stand in for what
is skipped, and with both. Beside it the seconds that it takes to fit a schedule. No schedule was searched.

python benchmarks/fitted_keys.py --model DIR --data "SOURCE + SOURCE" [--rank 32] [--calibration 180] [--held-out 48]
    [--dtype bfloat16] [--json PATH]
"""

import argparse
import json
import time
from pathlib import Path

from rich.console import Console
from rich.table import Table
from shapes import from_depth

from ftp_core.cost.flops import FlopsCounter
from ftp_core.quality.quality import QualitySet
from ftp_core.routers import StaticRouter
from ftp_core.schedule import SparsitySchedule
from ftp_core.skipping.fitted_keys import FittedKeys, give_fitted_keys, prompts_to_fit
from ftp_core.skipping.substitutes import give_substitutes
from ftp_core.training.substitution import fit_substitutes
from search.inputs.data import load_workload

# First block that skips, as a share of the depth, and what each skips of its attention and of its MLP.
SCHEDULES = {
    "blocks from 33 % of depth on, 0.4": (10 / 30, 0.4, 0.4),
    "late blocks, 0.6": (17 / 30, 0.6, 0.6),
    "late blocks, 0.7": (17 / 30, 0.7, 0.7),
    "late blocks, 0.9": (17 / 30, 0.9, 0.9),
    "last third, 0.8": (20 / 30, 0.8, 0.8),
    "last third, 0.95": (20 / 30, 0.95, 0.95),
    "late MLPs, 0.8": (17 / 30, 0.0, 0.8),
}
BATCH, LENGTH = 4, 512
VARIANTS = {"own keys": (False, False), "fitted keys": (True, False), "maps": (False, True), "both": (True, True)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True)
    parser.add_argument("--data", required=True)
    parser.add_argument("--rank", type=int, default=32, help="of the maps")
    parser.add_argument("--calibration", type=int, default=180, help="items that keys and maps are fitted to")
    parser.add_argument("--held-out", type=int, default=48)
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    sizes = {"calibration": args.calibration, "validation": 6, "test": args.held_out}
    workload = load_workload(args.model, args.data, args.seed, sizes, dtype=args.dtype)
    model, calibration = workload.model.skipping, workload.splits["calibration"]
    held_out, counter = QualitySet(model, workload.splits["test"]), FlopsCounter(model)
    dense = counter.count(SparsitySchedule.uniform(0.0, model.n_blocks), BATCH, LENGTH).total
    prompts = prompts_to_fit(model, [one.prompt for one in calibration])
    maps = fit_substitutes(model, calibration, args.rank)
    found: dict[str, dict[str, dict[str, float]]] = {}
    for name, shares in SCHEDULES.items():
        schedule, found[name] = from_depth(model.n_blocks, *shares), {}
        for variant, (fits, has_maps) in VARIANTS.items():
            give_substitutes(model.model, maps if has_maps else None, model.blocks)
            keys = FittedKeys(model, prompts) if fits else None
            began = time.monotonic()
            if keys is not None:
                keys.of(model, schedule)
            seconds = time.monotonic() - began
            give_fitted_keys(model.model, keys)
            saved = 1 - counter.count(schedule, BATCH, LENGTH).total / dense
            found[name][variant] = {
                "kl": held_out.evaluate(schedule, StaticRouter()).kl,
                "saved": saved,
                "fit_s": seconds,
            }
    n_tokens = sum(map(len, prompts))
    table = Table(
        title=f"KL on {args.held_out} held-out items; keys fitted to {n_tokens} tokens, maps of rank {args.rank}"
    )
    for column in ("schedule", "FLOPs saved, with maps", *VARIANTS, "seconds to fit"):
        table.add_column(column, justify="left" if column == "schedule" else "right")
    for name, of_one in found.items():
        saved = ", ".join(f"{of_one[variant]['saved']:.1%}" for variant in ("own keys", "maps"))
        kls = (f"{one['kl']:.3f}" for one in of_one.values())
        table.add_row(name, saved, *kls, f"{of_one['fitted keys']['fit_s']:.0f}")
    Console(width=140).print(table)
    if args.json is not None:
        args.json.write_text(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    main()
