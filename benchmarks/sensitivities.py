"""What a pretrained model loses where it skips: single blocks at several levels, pairs, runs, and whole schedules.

KL of each example, static router, one process; states behind equal beginnings are reused, so that a late block costs
next to nothing. The table that is kept, `benchmarks/tables/smollm2_sensitivities.json`, is what
`tests/search/deep_objective.py` is fitted to. Interrupted or called again, it measures what the table lacks.

python benchmarks/sensitivities.py --model DIR --data "FOLDER/arc_easy.jsonl + FOLDER/arc_challenge.jsonl + ..."
    [--kinds block,both,attention,mlp] [--groups single,pair,run,whole] [--items 32] [--json PATH]
"""

import argparse
import json
import random
import time
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from rich.progress import track

from ftp_core.quality.quality import QualitySet
from ftp_core.routers import StaticRouter
from ftp_core.schedule import SparsitySchedule
from ftp_core.skipping.prefixes import PrefixStore
from ftp_core.text.encoding import encoded_fingerprint
from search.inputs.data import load_workload
from search.problem.space import ScheduleSpace

TABLE = Path(__file__).parent / "tables" / "smollm2_sensitivities.json"
LEVELS = (0.2, 0.4, 0.6, 0.8)
# Skips of a block: as a whole with its keys and values; the same, but they are kept; or one half, keys and values kept.
KINDS = ("block", "both", "attention", "mlp")
TARGETS = (0.25, 0.4)
PAIR_LEVELS = (0.4, 0.6)
RUN_LEVEL = 0.4
SAVED_EVERY_S = 60


def schedule_of(kind, sparsities):
    """The schedule of a kind with one sparsity per block."""
    if kind == "block":
        return SparsitySchedule(sparsities)
    nothing = [0.0] * len(sparsities)
    attention = nothing if kind == "mlp" else sparsities
    return SparsitySchedule.of_halves(attention, nothing if kind == "attention" else sparsities, keeps_kv=True)


def singles(kind, n_blocks):
    """The last block first: each schedule then begins like the one before it."""
    for block in reversed(range(n_blocks)):
        for level in LEVELS:
            yield schedule_of(kind, [level * (other == block) for other in range(n_blocks)])


def pairs(kind, n_blocks):
    """Neighbours, and blocks that are far from each other."""
    chosen = [(first, first + distance) for distance in (1, 4, 10, 20) for first in range(0, n_blocks - distance, 4)]
    for first, second in sorted(set(chosen), reverse=True):
        for level in PAIR_LEVELS:
            yield schedule_of(kind, [level * (block in (first, second)) for block in range(n_blocks)])


def runs(kind, n_blocks):
    """Neighbouring blocks that skip the same tokens: to the end at every level, or some of them at one."""
    for start in (27, 24, 20, 16, 12, 8, 4, 2, 1, 0):
        for level in LEVELS:
            yield schedule_of(kind, [level * (block >= start) for block in range(n_blocks)])
    for start in (14, 8, 2):
        for last in (n_blocks - 2, n_blocks - 3, n_blocks - 5):
            yield schedule_of(kind, [RUN_LEVEL * (start <= block <= last) for block in range(n_blocks)])
    for length in (3, 6, 12, 20):
        for start in reversed(range(0, n_blocks - length, max(3, length // 2))):
            yield schedule_of(kind, [RUN_LEVEL * (start <= block < start + length) for block in range(n_blocks)])


def wholes(kind, n_blocks):
    """Uniform schedules, plateaus over the last blocks, and random ones, most of which spare the first two blocks."""
    rng = random.Random(0)
    for level in (0.1, 0.2, 0.25, 0.3, 0.4, 0.5):
        yield schedule_of(kind, [level] * n_blocks)
    for target in TARGETS:
        for start in (2, 8, 13, 15, 17, 19):
            height = target * n_blocks / (n_blocks - start)
            if height <= 0.95:
                yield schedule_of(kind, [height * (block >= start) for block in range(n_blocks)])
        for n_dense in (0, 2, 2, 2):
            space = ScheduleSpace(n_blocks, target, dense_blocks=tuple(range(n_dense)))
            for _ in range(3):
                yield schedule_of(kind, list(space.schedule(space.sample(rng))))


GROUPS = {"single": singles, "pair": pairs, "run": runs, "whole": wholes}


def key_of(kind, schedule):
    """Sparsities of the blocks that skip: the kind says what they skip."""
    shares = schedule.mlp if kind == "mlp" else schedule.attention
    return " ".join(f"{block}:{share:.4g}" for block, share in enumerate(shares) if share)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--data", required=True, help="sources with + between them, as for `ftp-search run`")
    parser.add_argument("--kinds", default="block")
    parser.add_argument("--groups", default=",".join(GROUPS))
    parser.add_argument("--items", type=int, default=32)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", type=Path, default=TABLE)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    console = Console(width=120)
    sizes = {"calibration": args.items, "validation": 3, "test": 3}
    workload = load_workload(args.model, args.data, 0, sizes, dtype="bfloat16")
    examples, skipping = workload.splits["calibration"], workload.model.skipping
    facts = {
        "model": workload.model.fingerprint(),
        "search_set": encoded_fingerprint(examples),
        "n_blocks": skipping.n_blocks,
    }
    table = json.loads(args.json.read_text()) if args.json.exists() else facts | {"n_tokens": [], "measured": []}
    if {name: table[name] for name in facts} != facts:
        raise SystemExit(f"{args.json} is of another model or other examples: give another --json, or remove it.")
    known = {(one["kind"], one["skips"]) for one in table["measured"]}
    wanted = [
        (kind, group, schedule)
        for kind in args.kinds.split(",")
        for group in args.groups.split(",")
        for schedule in GROUPS[group](kind, skipping.n_blocks)
        if (kind, key_of(kind, schedule)) not in known
    ]
    # One router: what it decided is known again only to itself.
    quality, store, router = QualitySet(skipping, examples, 16), PrefixStore(2**29), StaticRouter()
    began = saved = time.monotonic()
    for kind, group, schedule in track(wanted, f"{len(wanted)} schedules", console=console):
        items = quality.per_item(schedule, router, choices=False, prefixes=store)
        table["n_tokens"] = [item.n_tokens for item in items]
        kl = [float(f"{item.kl:.3g}") for item in items]
        table["measured"].append({"kind": kind, "group": group, "skips": key_of(kind, schedule), "kl": kl})
        if time.monotonic() - saved > SAVED_EVERY_S:
            write(args.json, table)
            saved = time.monotonic()
    write(args.json, table)
    blocks = store.blocks_run + store.blocks_reused
    console.print(
        f"{len(wanted)} schedules in {time.monotonic() - began:.0f} s; {store.blocks_reused / max(1, blocks):.0%} of "
        f"the block computations were known. {args.json.name} written."
    )
    show(console, table)


def write(path, table):
    lines = ",\n".join(json.dumps(one, separators=(",", ":")) for one in table["measured"])
    head = json.dumps({**table, "measured": []})[: -len("]}")]
    path.write_text(f"{head}\n{lines}\n]}}\n")


def show(console, table):
    """Mean KL of single blocks, one line each."""
    n_tokens = np.array(table["n_tokens"])
    for kind in dict.fromkeys(one["kind"] for one in table["measured"]):
        own = [one for one in table["measured"] if (one["kind"], one["group"]) == (kind, "single")]
        by_key = {one["skips"]: float(np.average(one["kl"], weights=n_tokens)) for one in own}
        order = [key_of(kind, one) for one in singles(kind, table["n_blocks"])]
        values = np.array([by_key[key] for key in order if key in by_key]).reshape(-1, len(LEVELS))[::-1]
        console.print(f"{kind}: KL where one block skips {', '.join(f'{level:.0%}' for level in LEVELS)}")
        for block, line in enumerate(values):
            console.print(f"{block:3d} " + " ".join(f"{value:8.4f}" for value in line))


if __name__ == "__main__":
    main()
