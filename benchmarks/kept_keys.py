"""What a search could gain by choosing for each block whether tokens that skip it keep their keys and values there.

Plateaus over late blocks, both halves, static router, rank-32 maps for what is skipped: tokens keep keys and values in
all of these blocks, in all but the last ones, from which they do not come back, or in none. All save the same FLOPs:
counted as the model's are, or as they would be if keys and values were as wide as queries, a sixth of a block, as in
Llama-2-7B. KL to the dense model on held-out items, and its ratio to that of keeping all, items drawn again.

python benchmarks/kept_keys.py --model DIR --data "SOURCE + SOURCE" [--held-out 96] [--dtype bfloat16] [--json PATH]
"""

import argparse
import json
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from ftp_core.quality.quality import QualitySet
from ftp_core.routers import StaticRouter
from ftp_core.schedule import MAX_SPARSITY, SparsitySchedule
from ftp_core.skipping.substitutes import give_substitutes
from ftp_core.training.substitution import fit_substitutes
from search.config.groups import DEFAULT_RANK
from search.inputs.data import load_workload

# Share of FLOPs to save, and where the plateau begins.
PLATEAUS = ((0.25, 17 / 30), (0.4, 8 / 30))
# Of the blocks of a plateau, how many of the last ones drop keys.
DROPPED = (0.0, 0.1, 0.25, 0.5, 1.0)
WIDE = 1 / 6
N_CALIBRATION, N_RESAMPLED = 96, 2000


def key_share(config):
    """Share of a block's FLOPs, attention scores left out, that its keys and values take."""
    width, heads = config.hidden_size, config.num_attention_heads
    of_queries = 2 * width * getattr(config, "head_dim", width // heads) * heads
    of_keys = of_queries * config.num_key_value_heads / heads
    return of_keys / (of_queries + of_keys + 3 * width * config.intermediate_size)


def plateau(n_blocks, start, n_dropped, target, share):
    """The schedule whose height saves the target, where keys and values are such a share of a block; None if none can.

    Tokens that keep them save all of a block but that share.
    """
    first = round(start * n_blocks)
    n_kept = n_blocks - first - n_dropped
    height = target * n_blocks / (n_kept * (1 - share) + n_dropped)
    if height > MAX_SPARSITY:
        return None
    shares = [height * (block >= first) for block in range(n_blocks)]
    keeps = [first <= block < first + n_kept for block in range(n_blocks)]
    return SparsitySchedule.of_halves(shares, shares, keeps)


def ratio(own, kept, seed=0):
    """KL as a multiple of another schedule's, with a 95 % interval over items drawn again."""
    weights = np.array([item.n_tokens for item in kept], dtype=float)
    kl = [np.array([item.kl for item in items]) * weights for items in (own, kept)]
    drawn = np.random.default_rng(seed).integers(0, len(weights), (N_RESAMPLED, len(weights)))
    ratios = kl[0][drawn].sum(1) / kl[1][drawn].sum(1)
    return float(kl[0].sum() / kl[1].sum()), *np.quantile(ratios, [0.025, 0.975]).tolist()


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True)
    parser.add_argument("--data", required=True, help="sources with + between them, as for `ftp-search run`")
    parser.add_argument("--held-out", type=int, default=96)
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    sizes = {"calibration": N_CALIBRATION, "validation": 3, "test": args.held_out}
    workload = load_workload(args.model, args.data, 0, sizes, dtype=args.dtype)
    model = workload.model.skipping
    maps = fit_substitutes(model, workload.splits["calibration"], DEFAULT_RANK)
    give_substitutes(model.model, maps, model.blocks)
    held_out, router, rows = QualitySet(model, workload.splits["test"], 16), StaticRouter(), []
    table = Table(title=f"KL on {args.held_out} held-out items, at equal FLOPs")
    for heading in ("keys and values", "saved", "drop them", "height", "KL", "of keeping all", "95 %"):
        table.add_column(heading, justify="right")
    for share in (key_share(model.model.config), WIDE):
        for target, start in PLATEAUS:
            n_late, kept = model.n_blocks - round(start * model.n_blocks), None
            for n_dropped in dict.fromkeys(round(part * n_late) for part in DROPPED):
                schedule = plateau(model.n_blocks, start, n_dropped, target, share)
                if schedule is None:
                    continue
                items = held_out.per_item(schedule, router, choices=False)
                kept = items if n_dropped == 0 else kept
                n_tokens = sum(item.n_tokens for item in items)
                row = {
                    "key_share": share,
                    "saved": target,
                    "dropped": n_dropped,
                    "height": schedule.mlp[-1],
                    "kl": sum(item.kl * item.n_tokens for item in items) / n_tokens,
                    "ratio": None if kept is None else ratio(items, kept),
                }
                rows.append(row)
                found, low, high = row["ratio"] or (float("nan"),) * 3
                cells = (f"{share:.1%} of a block", f"{target:.0%}", f"last {n_dropped} of {n_late}")
                figures = (f"{row['height']:.2f}", f"{row['kl']:.4f}", f"{found:.2f}", f"{low:.2f} to {high:.2f}")
                table.add_row(*cells, *figures)
    Console(width=120).print(table)
    if args.json is not None:
        args.json.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
