"""Claim: deciding which tokens run costs next to nothing beside running them.

A prefill with the dynamic router against one with the static router at the same schedule, as a share of the dense
prefill; all three take turns in one run. Weights are random for every shape but the demo's: a router costs the same
whatever they are.

python benchmarks/router_overhead.py [--quick] [--json PATH] [--shapes demo,160m] [--threads N]
"""

import argparse
import json
import platform
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import Progress
from rich.table import Table
from transformers import LlamaConfig, LlamaForCausalLM

from ftp_core.cost import measure_latency
from ftp_core.encoding import PromptBatch
from ftp_core.models import load_model
from ftp_core.routers import DynamicRouter, StaticRouter
from ftp_core.schedule import SparsitySchedule
from ftp_core.skipping_model import SkippingModel

TARGET = 0.03
SPARSITY = 0.3
# Batch and length; lengths are cut to what the model reads.
RUNS = {"demo": ((1, 512), (8, 512)), "160m": ((1, 512), (4, 512), (1, 1024), (1, 2048))}


def shaped(shape: str) -> SkippingModel:
    """The demo model, or a Llama in the shape of Pythia-160M."""
    if shape == "demo":
        return load_model("demo").skipping
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=32_000,
        hidden_size=768,
        intermediate_size=2048,
        num_hidden_layers=12,
        num_attention_heads=12,
        max_position_embeddings=2048,
    )
    return SkippingModel(LlamaForCausalLM(config))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="the first run of each shape, at most 60 s on 2 cores")
    parser.add_argument("--json", type=Path, help="write the rows here too")
    parser.add_argument("--shapes", default="demo,160m", help="some of demo,160m")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    repeats = 7 if args.quick else 25
    shapes = args.shapes.split(",")
    runs = [(shape, *run) for shape in shapes for run in (RUNS[shape][:1] if args.quick else RUNS[shape])]
    # A router costs the same whatever its weights are.
    torch.manual_seed(0)
    routers = {"dense": StaticRouter(), "static": StaticRouter(), "dynamic": DynamicRouter().requires_grad_(False)}
    models, rows = {shape: shaped(shape) for shape in shapes}, []
    with Progress(console=Console(stderr=True)) as progress:
        bar = progress.add_task("timing", total=len(runs) * repeats)
        for shape, batch, length in runs:
            model = models[shape]
            length = min(length, model.context)
            ids = torch.randint(3, model.model.config.vocab_size, (batch, length))
            prompts = PromptBatch(ids, torch.full((batch,), length))
            schedules = {
                name: SparsitySchedule.uniform(0.0 if name == "dense" else SPARSITY, model.n_blocks) for name in routers
            }
            timed = [(schedules[name], router) for name, router in routers.items()]
            latencies = measure_latency(model, prompts, timed, repeats, lambda: progress.advance(bar))
            dense, static, dynamic = (latency.median_ms for latency in latencies)
            rows.append(
                {
                    "shape": shape,
                    "batch": batch,
                    "length": length,
                    "overall_sparsity": SPARSITY,
                    "dense_ms": dense,
                    "static_ms": static,
                    "dynamic_ms": dynamic,
                    "router_overhead": (dynamic - static) / dense,
                    # How much the timings of one variant vary: a smaller overhead than this is noise.
                    "noise": (latencies[0].high_ms - latencies[0].low_ms) / dense / repeats**0.5,
                }
            )
    where = f"{platform.machine()}, {args.threads} threads"
    table = Table(title=f"Dynamic router at {SPARSITY:.0%}, median of {repeats} runs that took turns, {where}")
    for heading in ("shape", "batch", "length", "dense ms", "static ms", "dynamic ms", "overhead", "noise", "target"):
        table.add_column(heading, justify="left" if heading == "shape" else "right")
    for row in rows:
        table.add_row(
            row["shape"],
            str(row["batch"]),
            str(row["length"]),
            *(f"{row[f'{name}_ms']:.1f}" for name in routers),
            f"{row['router_overhead']:.1%}",
            f"±{row['noise']:.1%}",
            "met" if row["router_overhead"] <= TARGET else "missed",
        )
    Console(width=110).print(table)
    if args.json:
        args.json.write_text(json.dumps({"threads": args.threads, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
