"""Claim: a profile of single blocks predicts whole schedules: 5 % mean error, rank correlation 0.97.

200 random schedules, none of which was profiled, are run and compared with what the profile says: prefills with the
static and with a dynamic router, and decoding behind them. All of them take turns, so that drift of the machine hits
all alike; the profile is measured before. Some runs are of a length between two that were profiled. Weights are random
for every shape but the demo's: latency does not depend on them.

With --busy another process computes all the while, which shows what a profile is worth on a machine that is not
quiet; --profile-seconds is the time that it may take for each length.

python benchmarks/latency_prediction.py [--quick] [--json PATH] [--shape demo|160m] [--threads N] [--busy]
    [--profile-seconds S]
"""

import argparse
import json
import random
import subprocess
import sys
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from rich.progress import Progress
from rich.table import Table
from shapes import LARGE, SHAPES, build, random_prompts

from ftp_core.cost.measure import Skipping
from ftp_core.cost.profiling import DEFAULT_SECONDS, profile_latency
from ftp_core.cost.timing import take_turns, timer_of
from ftp_core.loading.allocator import keep_freed_memory
from ftp_core.routers import DynamicRouter, StaticRouter
from search.problem.space import ScheduleSpace

N_SCHEDULES = 200
MAX_ERROR, MIN_RANK = 0.05, 0.97
# Batch, profiled lengths, and the length that is predicted.
RUNS = {
    "demo": ((8, (512,), 512), (1, (512,), 512), (8, (256, 512), 384)),
    "160m": ((1, (512,), 512), (4, (512,), 512), (1, (512, 1024), 768)),
}
# With the schedules that there is time for.
QUICK = {"demo": ((1, (256,), 256), N_SCHEDULES), "160m": ((1, (64,), 64), 30)}
LARGE_RUNS = ((1, (1024,), 1024), (4, (2048,), 2048), (4, (1024, 2048), 1536))
# Tokens that are decoded and not timed, as the first ones are slower than all behind them; and tokens that are timed.
COLD, DECODED = 3, 10


@torch.inference_mode()
def timed(step, ids, timer, decodes):
    """Milliseconds of a prefill, and of one decoded token behind it."""
    began = timer()
    logits, cache = step(ids, None)
    token = logits.argmax(-1, keepdim=True)
    prefill = timer() - began
    if not decodes:
        return 1000 * prefill, None
    for index in range(COLD + DECODED):
        if index == COLD:
            began = timer()
        logits, cache = step(token, cache)
        token = logits.argmax(-1, keepdim=True)
    return 1000 * prefill, 1000 * (timer() - began) / DECODED


def ranks(values):
    return np.argsort(np.argsort(values)).astype(float)


def compared(what, predicted, measured, uncertainty):
    return {
        "what": what,
        "error": float(np.mean(np.abs(predicted / measured - 1))),
        # Of the intervals that are to hold 95 % of what is measured.
        "within": float(np.mean(np.abs(measured / predicted - 1) <= uncertainty)),
        "bias": float(np.mean(predicted / measured - 1)),
        "worst": float(np.max(np.abs(predicted / measured - 1))),
        "rank_correlation": float(np.corrcoef(ranks(predicted), ranks(measured))[0, 1]),
    }


def one_run(model, batch, profiled, length, n_schedules, rounds, seconds, progress):
    """Rows of one batch and length."""
    shapes = [(batch, tokens) for tokens in profiled]
    bar = progress.add_task(f"profiling {batch} x {profiled}", total=len(shapes))
    profile = profile_latency(model, shapes, lambda done, _: progress.update(bar, completed=done), seconds=seconds)
    rng, space = random.Random(0), ScheduleSpace(model.n_blocks)
    schedules = [space.schedule(space.sample(rng)) for _ in range(n_schedules)]
    prompts = random_prompts(model, batch, length, seed=1)
    timer = timer_of(model.device)
    dynamic = DynamicRouter().eval().requires_grad_(False).to(model.device)
    runs = [
        partial(timed, Skipping("", schedule, router).step_of(model.model), prompts.ids, timer, decodes)
        for schedule in schedules
        for router, decodes in ((StaticRouter(), length + COLD + DECODED <= model.context), (dynamic, False))
    ]
    bar = progress.add_task(f"timing {batch} x {length}", total=(rounds + 1) * len(runs))
    times = take_turns(runs, rounds, lambda: progress.advance(bar))
    prefill = np.array([np.median([one[0] for one in own]) for own in times])
    decode = [np.median([one[1] for one in own]) for own in times[::2] if own[0][1] is not None]
    where = {"batch": batch, "length": length}
    rows = []
    for index, router in enumerate(("static", "dynamic")):
        predicted = np.array([profile.predict_ms(schedule, router=router, **where) for schedule in schedules])
        rows.append(compared(f"prefill, {router}", predicted, prefill[index::2], profile.uncertainty))
    if decode:
        behind = COLD + DECODED // 2
        predicted = np.array([profile.decode_ms(schedule, decoded=behind, **where) for schedule in schedules])
        rows.append(compared("decoding", predicted, np.array(decode), profile.uncertainty))
    waited = [shape.waited for shape in profile.shapes if shape.waited is not None]
    doubts = {
        "check_error": profile.check_error,
        "uncertainty": profile.uncertainty,
        "profile_s": sum(shape.seconds for shape in profile.shapes),
        "kept_counts": [len(shape.kept) for shape in profile.shapes],
        "waited": max(waited, default=None),
        "doubts": profile.doubts(),
    }
    return [{**where, "profiled": list(profiled), **row, **doubts} for row in rows]


@contextmanager
def company(is_busy):
    """Another process that keeps a core busy, or none."""
    if not is_busy:
        yield
        return
    # It ends with this process, however that ends.
    loop = "import os\nparent = os.getppid()\nwhile os.getppid() == parent: pass"
    other = subprocess.Popen([sys.executable, "-c", loop])
    try:
        yield
    finally:
        other.kill()
        other.wait()


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one small run, at most 60 s on 2 cores")
    parser.add_argument("--json", type=Path, help="write the rows here too")
    parser.add_argument("--shape", default="demo", choices=SHAPES, help="large shapes need a GPU")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--rounds", type=int, help="how often each schedule is timed")
    parser.add_argument("--busy", action="store_true", help="with another process that keeps a core busy")
    parser.add_argument("--profile-seconds", type=float, default=DEFAULT_SECONDS, help="for each profiled length")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    keep_freed_memory()
    device = "cuda" if args.shape in LARGE else "cpu"
    model = build(args.shape, device)
    runs, n_schedules = RUNS.get(args.shape, LARGE_RUNS), N_SCHEDULES
    if args.quick:
        run, n_schedules = QUICK.get(args.shape, (runs[0], N_SCHEDULES))
        runs = [run]
    rounds = args.rounds or (2 if args.quick else 7)
    rows = []
    with Progress(console=Console(stderr=True)) as progress, company(args.busy):
        for batch, profiled, length in runs:
            rows += one_run(model, batch, profiled, length, n_schedules, rounds, args.profile_seconds, progress)
    where = torch.cuda.get_device_name() if device == "cuda" else f"{args.threads} threads"
    print_rows(rows, f"{args.shape}: {n_schedules} schedules, median of {rounds} runs that took turns, {where}")
    if args.json:
        facts = {
            "shape": args.shape,
            "threads": args.threads,
            "device": where,
            "schedules": n_schedules,
            "rounds": rounds,
            "busy": args.busy,
        }
        args.json.write_text(json.dumps({**facts, "rows": rows}, indent=1) + "\n")


def print_rows(rows, title):
    table = Table(title=title)
    headings = (
        "predicted",
        "batch",
        "length",
        "profiled",
        "profile s",
        "mean error",
        "bias",
        "worst",
        "said",
        "within",
        "rank",
        "target",
    )
    for heading in headings:
        table.add_column(heading, justify="left" if heading == "predicted" else "right")
    for row in rows:
        met = row["error"] <= MAX_ERROR and row["rank_correlation"] >= MIN_RANK
        table.add_row(
            row["what"],
            str(row["batch"]),
            str(row["length"]),
            ", ".join(map(str, row["profiled"])),
            f"{row['profile_s']:.0f}",
            f"{row['error']:.1%}",
            f"{row['bias']:+.1%}",
            f"{row['worst']:.1%}",
            f"±{row['uncertainty']:.1%}",
            f"{row['within']:.0%}",
            f"{row['rank_correlation']:.3f}",
            "met" if met else "missed",
        )
    console = Console(width=140)
    console.print(table)
    for doubt in sorted({doubt for row in rows for doubt in row["doubts"]}):
        console.print(f"The machine was busy when latency was profiled: {doubt}", soft_wrap=True, highlight=False)


if __name__ == "__main__":
    main()
