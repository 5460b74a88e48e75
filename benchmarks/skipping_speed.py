"""Claim: skipped work is really gone. Prefill of the pruned model against the dense one, both sides in one run.

python benchmarks/skipping_speed.py [--quick] [--json PATH] [--model demo] [--threads N]
"""

import argparse
import json
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from ftp_core.cost import measure_latency, prefill_flops
from ftp_core.encoding import PromptBatch
from ftp_core.models import load_model
from ftp_core.routers import DynamicRouter, StaticRouter
from ftp_core.schedule import SparsitySchedule

SPARSITIES = (0.1, 0.2, 0.3, 0.4, 0.5, 0.7, 0.9)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one shape, at most 60 s on 2 cores")
    parser.add_argument("--json", type=Path, help="write the rows here too")
    parser.add_argument("--model", default="demo", help="demo, a directory, or a Hugging Face id")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    model = load_model(args.model).skipping
    shapes = [(8, 256)] if args.quick else [(1, 256), (8, 256), (8, 512)]
    repeats = 9 if args.quick else 21
    # A router costs the same whatever its weights are.
    routers = {"static": StaticRouter(), "dynamic": DynamicRouter().eval().requires_grad_(False)}
    draw = torch.Generator().manual_seed(0)
    rows = []
    with Progress(console=Console(stderr=True)) as progress:
        bar = progress.add_task("timing", total=len(shapes) * repeats)
        for batch, length in [(b, min(n, model.context)) for b, n in shapes]:
            ids = torch.randint(3, model.model.config.vocab_size, (batch, length), generator=draw)
            prompts = PromptBatch(ids, torch.full((batch,), length))
            dense = ("dense", 0.0, StaticRouter())
            variants = [dense, *((name, s, router) for s in SPARSITIES for name, router in routers.items())]
            schedules = [SparsitySchedule.uniform(s, model.n_blocks) for _, s, _ in variants]
            timed = [(schedule, router) for schedule, (_, _, router) in zip(schedules, variants, strict=True)]
            latencies = measure_latency(model, prompts, timed, repeats, lambda: progress.advance(bar))
            flops = [prefill_flops(model, schedule, batch, length) for schedule in schedules]
            for (name, sparsity, _), latency, count in zip(variants, latencies, flops, strict=True):
                rows.append(
                    {
                        "variant": name,
                        "batch": batch,
                        "length": length,
                        "overall_sparsity": sparsity,
                        "latency_ms": latency.median_ms,
                        "latency_low_ms": latency.low_ms,
                        "latency_high_ms": latency.high_ms,
                        "speed_up": latencies[0].median_ms / latency.median_ms,
                        "speed_up_by_flops": flops[0] / count,
                    }
                )
    table = Table(
        title=f"Prefill, {args.model}, median of {repeats} runs that took turns, {torch.get_num_threads()} threads"
    )
    for heading in ("variant", "batch", "length", "sparsity", "ms", "quartiles", "speed-up", "by FLOPs"):
        table.add_column(heading, justify="left" if heading == "variant" else "right")
    for row in rows:
        table.add_row(
            row["variant"],
            str(row["batch"]),
            str(row["length"]),
            f"{row['overall_sparsity']:.0%}",
            f"{row['latency_ms']:.1f}",
            f"{row['latency_low_ms']:.1f}–{row['latency_high_ms']:.1f}",
            f"{row['speed_up']:.2f}x",
            f"{row['speed_up_by_flops']:.2f}x",
        )
    Console(width=100).print(table)
    if args.json:
        args.json.write_text(json.dumps({"threads": torch.get_num_threads(), "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
