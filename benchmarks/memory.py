"""Claim: a prefill that skips holds less memory, and its peak is known beforehand to 10 %.

Peak of the tensors held at once beyond the weights, of a dense prefill, of pruned ones, and of training a router, as
predicted and as measured. On the CPU, tensors are followed one by one; beside that stands by how much the process's
resident memory rose in another run, where Linux tells it, with a mapping for each large tensor, so that it holds no
fragments. On a GPU, torch's allocator is asked. The paper is silent about what training needs; it is measured, not
predicted. Weights are random for every shape but the demo's: memory does not depend on them.

python benchmarks/memory.py [--quick] [--json PATH] [--shape demo|160m] [--device cpu|cuda] [--threads N]
"""

import argparse
import ctypes
import json
import platform
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import Progress
from rich.table import Table
from shapes import build

from ftp_core.cost.memory import AllocationTracker, kv_bytes, peak_activation_bytes
from ftp_core.routers import DEFAULT_WINDOW, DynamicRouter, Router, StaticRouter
from ftp_core.schedule import SparsitySchedule
from ftp_core.skipping.skipping_model import SkippingModel
from ftp_core.text.encoding import EncodedExample, PromptBatch
from ftp_core.training.distillation import distill
from ftp_core.training.distillation_config import DistillationConfig

# Most that prediction and measurement may differ.
TARGET = 0.1
SPARSITIES = (0.25, 0.5)
# Batch and length; lengths are cut to what the model reads. Training keeps what the backward pass needs.
PREFILLS = {"demo": ((1, 512), (8, 256), (8, 512)), "160m": ((1, 512), (1, 2048), (4, 512), (4, 1024))}
TRAININGS = {"demo": ((2, 256), (8, 256), (8, 512)), "160m": ((1, 256), (1, 512), (4, 256))}
COMPLETION = 16
_M_MMAP_THRESHOLD, _LARGE_BYTES = -3, 2**16
_MEBI = 2**20


def map_large_tensors() -> None:
    """Let glibc give every large tensor a mapping of its own, which it gives back when the tensor dies."""
    if platform.libc_ver()[0] == "glibc":
        ctypes.CDLL(None).mallopt(_M_MMAP_THRESHOLD, _LARGE_BYTES)


def resident_bytes(field: str) -> int:
    """VmRSS or VmHWM (its highest so far) of this process."""
    status = Path("/proc/self/status").read_text()
    return int(status.split(f"{field}:")[1].split()[0]) * 1024


def resident_rise(run: Callable[[], object]) -> int | None:
    """By how much resident memory rises while something runs; None where nobody says."""
    try:
        # Sets the highest so far back, see proc_pid_clear_refs(5).
        Path("/proc/self/clear_refs").write_text("5")
        before = resident_bytes("VmRSS")
        run()
        return resident_bytes("VmHWM") - before
    except OSError:
        return None


def measured(run: Callable[[], object], device: torch.device) -> dict[str, int | None]:
    """Most bytes held while something runs, by tensors and by the process; it runs twice."""
    if device.type == "cuda":
        # The first product takes a workspace that stays.
        run()
    with AllocationTracker(device) as held:
        run()
    return {
        "peak_memory_bytes": held.peak_bytes,
        "resident_bytes": None if device.type == "cuda" else resident_rise(run),
    }


def prefill_row(
    model: SkippingModel, variant: str, router: Router, sparsity: float, batch: int, length: int
) -> dict[str, Any]:
    schedule = SparsitySchedule.uniform(sparsity, model.n_blocks)
    ids = torch.randint(3, model.model.config.vocab_size, (batch, length))
    prompts = PromptBatch(ids, torch.full((batch,), length)).to(model.device)
    held: list[int] = []

    def run() -> None:
        prefill = model.prefill(prompts, schedule, router)
        model.next_logits(prefill)
        held.append(prefill.cache.kv_bytes())

    return {
        "variant": variant,
        "batch": batch,
        "length": length,
        "overall_sparsity": schedule.overall,
        "predicted_bytes": peak_activation_bytes(model, schedule, batch, length, router.window),
        **measured(run, model.device),
        "predicted_kv_bytes": kv_bytes(model, schedule, batch, length),
        "kv_bytes": held[0],
    }


def training_row(model: SkippingModel, checkpointing: bool, batch: int, length: int) -> dict[str, Any]:
    schedule = SparsitySchedule.uniform(SPARSITIES[0], model.n_blocks)
    ids = torch.randint(3, model.model.config.vocab_size, (3 * batch, length)).tolist()
    examples = [
        EncodedExample(tuple(row[:-COMPLETION]), (tuple(row[-COMPLETION:]),), answer=0, has_choices=False)
        for row in ids
    ]
    config = DistillationConfig(
        steps=2, batch_size=batch, evaluate_every=2, gradient_checkpointing=checkpointing, consider_static=False
    )
    return {
        "variant": "training, checkpointed" if checkpointing else "training",
        "batch": batch,
        "length": length,
        "overall_sparsity": schedule.overall,
        "predicted_bytes": None,
        **measured(lambda: distill(model, examples[batch:], schedule, config, held_out=examples[:batch]), model.device),
        "predicted_kv_bytes": None,
        "kv_bytes": None,
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="the first run of each kind, at most 60 s on 2 cores")
    parser.add_argument("--json", type=Path, help="write the rows here too")
    parser.add_argument("--shape", choices=sorted(PREFILLS), default="demo")
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    model = build(args.shape, torch.device("cpu"))
    model.model.to(args.device)
    map_large_tensors()
    static, dynamic = StaticRouter(), DynamicRouter().requires_grad_(False).to(model.device)
    variants = [("dense", static, 0.0)]
    variants += [(router.kind, router, s) for s in SPARSITIES for router in (static, dynamic)]
    prefills, trainings = PREFILLS[args.shape], TRAININGS[args.shape]
    if args.quick:
        prefills, trainings = prefills[:1], trainings[:1]
    jobs: list[Callable[[], dict[str, Any]]] = [
        lambda variant=variant, run=run: prefill_row(model, *variant, run[0], min(run[1], model.context))
        for run in prefills
        for variant in variants
    ]
    jobs += [
        lambda checkpointing=checkpointing, run=run: training_row(
            model, checkpointing, run[0], min(run[1], model.context)
        )
        for run in trainings
        for checkpointing in (False, True)
    ]
    torch.manual_seed(0)
    rows = []
    with Progress(console=Console(stderr=True)) as progress:
        for job in progress.track(jobs, description="measuring"):
            rows.append(job())
    weights = sum(parameter.nbytes for parameter in model.model.parameters())
    show(rows, f"{args.shape} ({weights / _MEBI:.0f} MiB of weights) on {args.device}, {args.threads} threads")
    if args.json:
        facts = {"shape": args.shape, "device": args.device, "weights_bytes": weights, "rows": rows}
        args.json.write_text(json.dumps(facts, indent=1) + "\n")


def show(rows: list[dict[str, Any]], where: str) -> None:
    """One table, in MiB."""
    table = Table(title=f"Peak memory beyond weights in MiB: {where}; dynamic router of window {DEFAULT_WINDOW}")
    headings = ("batch", "length", "sparsity", "predicted", "measured", "off", "target", "of dense", "resident", "KV")
    table.add_column("variant")
    for heading in headings:
        table.add_column(heading, justify="right")
    dense = {(row["batch"], row["length"]): row for row in rows if row["variant"] == "dense"}

    def mebi(n_bytes: int | None) -> str:
        return "–" if n_bytes is None else f"{n_bytes / _MEBI:.1f}"

    for row in rows:
        predicted, peak = row["predicted_bytes"], row["peak_memory_bytes"]
        off = None if predicted is None else predicted / peak - 1
        beside = dense.get((row["batch"], row["length"]))
        table.add_row(
            row["variant"],
            str(row["batch"]),
            str(row["length"]),
            f"{row['overall_sparsity']:.0%}",
            mebi(predicted),
            mebi(peak),
            "–" if off is None else f"{off:+.1%}",
            "–" if off is None else "met" if abs(off) <= TARGET else "missed",
            "–" if beside is None else f"{peak / beside['peak_memory_bytes']:.0%}",
            mebi(row["resident_bytes"]),
            # What is predicted of keys and values is exact.
            mebi(row["kv_bytes"]) + ("" if row["kv_bytes"] == row["predicted_kv_bytes"] else " (mispredicted)"),
        )
    Console(width=130).print(table)


if __name__ == "__main__":
    main()
