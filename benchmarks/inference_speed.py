"""Claim: skipped work is really gone. Speed-up over the dense model, beside what the count of operations allows.

All variants of one batch, length and overall sparsity take turns. "Length" is input and output tokens: by default the
whole length is prompt, and the time is that to the first token; --new-tokens N makes the last N of it decoded ones,
and the time is that to the last of them. Memory is measured in a pass of its own. The dense model is transformers'
own, untouched.

"searched" is no search's result, as speed needs none: a fixed schedule of the kind that searches find, whose first and
last two blocks skip less than the others. Variants with halves skip by it, too: whole blocks whose skipped tokens keep
keys and values, attention half of it and MLP one and a half of it, or one of the two alone. "late kept" skips both
halves of the last 43 % of the blocks alone, as searches of SmolLM2 with kept keys find it. With --substitute, low-rank
maps stand in for skipped halves. Weights are random but the demo's; a router costs the same whatever its are, and maps
are zeros.

python benchmarks/inference_speed.py [--quick] [--json PATH] [--shape demo,160m] [--batches 1,4,16]
    [--lengths 256,512,1024,2048] [--sparsities 0.22,0.25,0.3,0.4,0.5] [--variants LIST] [--schedule 0,0.3,...]
    [--new-tokens N] [--repeats N] [--threads N] [--break-even] [--substitute RANK] [--profile-pass]
python benchmarks/inference_speed.py --shape smollm2 --batches 1,4,8 --lengths 256,512 --sparsities 0.25,0.3
    --variants "dense,uniform,searched static,late kept,block kept,halves kept,attention kept,mlp" --repeats 7
    --substitute 32
"""

import argparse
import gc
import json
import os
import platform
import time
from dataclasses import dataclass, replace
from itertools import groupby
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from rich.progress import Progress
from rich.table import Table
from shapes import LARGE, OUTER_SHARES, SHAPES, build, random_prompts, searched

from ftp_core.baselines.shortgpt import (
    BlockRemoval,
    block_influence,
    blocks_removed_at,
    flops_without_blocks,
    least_influential,
)
from ftp_core.cost.break_even import BreakEven
from ftp_core.cost.flops import FlopsCounter
from ftp_core.cost.measure import Skipping, Unchanged, Variant, measure
from ftp_core.cost.memory import AllocationTracker
from ftp_core.cost.profiling import profile_latency
from ftp_core.cost.timing import estimate_ratio
from ftp_core.loading.allocator import keep_freed_memory
from ftp_core.routers import DynamicRouter, StaticRouter
from ftp_core.schedule import MAX_SPARSITY, SparsitySchedule
from ftp_core.skipping.substitutes import Substitutes, give_substitutes
from ftp_core.training.calibration import calibrate_thresholds

DENSE, UNIFORM, STATIC, REMOVAL = "dense", "uniform", "searched static", "block removal"
BUDGET, THRESHOLD = "searched dynamic budget", "searched dynamic threshold"
VARIANTS = (DENSE, UNIFORM, STATIC, BUDGET, THRESHOLD, REMOVAL)
# Shares of the schedule's sparsities that attention and MLP skip; all keep keys and values.
HALVES = {"block kept": (1.0, 1.0), "halves kept": (0.5, 1.5), "attention kept": (1.0, 0.0), "mlp": (0.0, 1.0)}
# Blocks of the last part of the depth alone, both halves, as searches of SmolLM2 with kept keys find them.
LATE, FIRST_LATE = "late kept", 17 / 30
WITH_HALVES = (*HALVES, LATE)
# Shape, batch, length and overall sparsity; no point is begun after so many seconds.
QUICK = (("demo", 1, 512, 0.3), ("demo", 4, 512, 0.3), ("demo", 4, 256, 0.4), ("160m", 1, 512, 0.4))
QUICK_SECONDS = 25
PAPER = "Beside it: FTP (arXiv 2412.11494), Table 6, 7B models at 1,000 and 2,000 tokens: 1.28x to 1.61x."


@dataclass(frozen=True)
class Contestant:
    """A variant with its count of operations, the router's left out, and the share of tokens that skip blocks.

    With --break-even some blocks may run whole though the schedule lets them skip.
    """

    variant: Variant
    flops: float
    skipped: float
    whole_blocks: int = 0


def contestants(model, influence, batch, length, new_tokens, overall, schedule, break_even=None):
    """Everything that takes turns at one point, by name; `length` is the prompt's."""
    counter = FlopsCounter(model)

    static = StaticRouter()

    def skipping(name, asked, router=static):
        # The ideal is that of the schedule that was asked for.
        flops = counter.count(asked, batch, length, new_tokens).total
        runs = asked if break_even is None else break_even.schedule(asked, batch, length, router)
        whole = sum(entry != run for entry, run in zip(asked.blocks, runs.blocks, strict=True))
        return Contestant(Skipping(name, runs, router), flops, runs.overall, whole)

    dense, uniform = (SparsitySchedule.uniform(share, model.n_blocks) for share in (0.0, overall))
    torch.manual_seed(0)
    budget = DynamicRouter().requires_grad_(False).to(model.device)
    # On other prompts than those that are timed, as in life.
    threshold = calibrate_thresholds(model, budget, random_prompts(model, batch, length, seed=1), schedule)

    first_late = round(FIRST_LATE * model.n_blocks)

    def halves(*factors):
        attention, mlp = ([min(MAX_SPARSITY, factor * share) for share in schedule] for factor in factors)
        return SparsitySchedule.of_halves(attention, mlp, True)

    late = [overall * model.n_blocks / (model.n_blocks - first_late)] * (model.n_blocks - first_late)
    late = [0.0] * first_late + [min(MAX_SPARSITY, share) for share in late]
    removed = least_influential(influence, blocks_removed_at(model, schedule, batch, length))
    return {
        DENSE: Contestant(Unchanged(DENSE), counter.count(dense, batch, length, new_tokens).total, 0.0),
        UNIFORM: skipping(UNIFORM, uniform),
        STATIC: skipping(STATIC, schedule),
        BUDGET: skipping(BUDGET, schedule, budget),
        THRESHOLD: skipping(THRESHOLD, schedule, threshold),
        REMOVAL: Contestant(
            BlockRemoval(removed, REMOVAL),
            flops_without_blocks(model, len(removed), batch, length, new_tokens),
            len(removed) / model.n_blocks,
        ),
        **{name: skipping(name, halves(*factors)) for name, factors in HALVES.items()},
        LATE: skipping(LATE, SparsitySchedule.of_halves(late, late, True)),
    }


@torch.inference_mode()
def memory(model, variant, ids):
    """Peak bytes of a prefill, bytes of keys and values behind it, and the tokens that each block holds, if it says."""
    gc.collect()
    step = variant.step_of(model.model)
    with AllocationTracker(model.device) as tracker:
        _, cache = step(ids, None)
    tensors = [part for layer in cache.layers for part in (layer.keys, layer.values) if part is not None]
    positions = [getattr(layer, "positions", None) for layer in cache.layers]
    held = [None if columns is None else int((columns >= 0).sum()) for columns in positions]
    return tracker.peak_bytes, sum(tensor.nbytes for tensor in tensors), held


def rows_of(model, influence, point, args, on_run):
    """Rows of all variants of one batch, length and sparsity."""
    shape, batch, length, overall = point
    n_prompt, n_new = length - args.new_tokens, args.new_tokens
    break_even = break_even_at(model, shape, batch, n_prompt) if args.break_even else None
    schedule = schedule_of(args, overall, model)
    everyone = contestants(model, influence, batch, n_prompt, n_new, overall, schedule, break_even)
    some = {name: everyone[name] for name in (*VARIANTS, *WITH_HALVES) if name in args.variants}
    prompts = random_prompts(model, batch, n_prompt, seed=0)
    held = {name: memory(model, one.variant, prompts.ids) for name, one in some.items()}
    if THRESHOLD in some:
        # It keeps about as many as it was asked to: what it can gain at best hangs on how many it did keep.
        n_all = batch * n_prompt
        # Where every block ran whole, the dense model's own cache does not say.
        counts = [n_all if count is None else count for count in held[THRESHOLD][2]]
        skipped = [min(1 - count / n_all, MAX_SPARSITY) for count in counts]
        flops = FlopsCounter(model).count(SparsitySchedule(skipped), batch, n_prompt, n_new).total
        some[THRESHOLD] = replace(some[THRESHOLD], flops=flops, skipped=float(np.mean(skipped)))
    variants = [one.variant for one in some.values()]
    results = measure(model, prompts, variants, new_tokens=n_new, repeats=args.repeats, on_run=on_run)
    measured = {result.variant: result for result in results}
    dense, rows = measured[DENSE], []
    for name, result in measured.items():
        speedup = estimate_ratio(dense.end_to_end_samples_ms, result.end_to_end_samples_ms)
        ideal = some[DENSE].flops / some[name].flops
        overhead = None
        # With thresholds other numbers of tokens are kept, so that the difference is not the router's alone.
        if name == BUDGET and STATIC in measured:
            pairs = zip(result.end_to_end_samples_ms, measured[STATIC].end_to_end_samples_ms, strict=True)
            overhead = estimate_ratio([own - static for own, static in pairs], dense.end_to_end_samples_ms)
        low_ms, high_ms = np.quantile(result.end_to_end_samples_ms, [0.25, 0.75]).tolist()
        rows.append(
            {
                "shape": shape,
                "variant": name,
                "batch": batch,
                "length": length,
                "new_tokens": n_new,
                "overall_sparsity": 0.0 if name == DENSE else overall,
                # Of the point, also in the dense model's row: with whom it took turns.
                "point_sparsity": overall,
                "skipped": some[name].skipped,
                "whole_blocks": some[name].whole_blocks,
                "speedup": speedup.median,
                "speedup_low": speedup.low,
                "speedup_high": speedup.high,
                "ideal": ideal,
                "share_of_ideal": speedup.median / ideal,
                "router_overhead": overhead and overhead.median,
                "router_overhead_low": overhead and overhead.low,
                "router_overhead_high": overhead and overhead.high,
                "peak_memory_bytes": held[name][0],
                "kv_bytes": held[name][1],
                "ttft_ms": result.first_token_ms.median,
                "tokens_per_second": result.tokens_per_second and result.tokens_per_second.median,
                "end_to_end_ms": result.end_to_end_ms.median,
                "end_to_end_low_quartile_ms": low_ms,
                "end_to_end_high_quartile_ms": high_ms,
                "repeats": result.repeats,
                "device": device_name(model.device),
                "dtype": result.dtype,
                "threads": args.threads,
            }
        )
    return rows


PROFILED = {}


def break_even_at(model, shape, batch, length):
    """By a profile of the point's own batch and length, measured once."""
    if (shape, batch, length) not in PROFILED:
        PROFILED[shape, batch, length] = BreakEven(profile_latency(model, [(batch, length)]))
    return PROFILED[shape, batch, length]


def schedule_of(args, overall, model):
    return args.schedule or searched(overall, model.n_blocks)


def device_name(device):
    return torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine()


def print_rows(console, rows):
    title = "{shape} ({dtype}, {device}), batch {batch}, length {length}, of which {new_tokens} new, ".format(**rows[0])
    title += f"{rows[0]['point_sparsity']:.0%} overall" + (f"\n{PAPER}" if rows[0]["shape"] in LARGE else "")
    table = Table(title=title)
    for heading in ("variant", "ms", "speed-up", "95 %", "ideal", "share", "router", "95 %", "peak MiB", "KV MiB"):
        table.add_column(heading, justify="left" if heading == "variant" else "right", no_wrap=True)
    for row in rows:
        overhead = ("", "")
        if row["router_overhead"] is not None:
            low, high = row["router_overhead_low"], row["router_overhead_high"]
            overhead = (f"{row['router_overhead']:.1%}", f"{low:.1%} – {high:.1%}")
        table.add_row(
            row["variant"],
            f"{row['end_to_end_ms']:.1f}",
            f"{row['speedup']:.2f}x",
            f"{row['speedup_low']:.2f} – {row['speedup_high']:.2f}",
            f"{row['ideal']:.2f}x",
            f"{row['share_of_ideal']:.1%}",
            *overhead,
            f"{row['peak_memory_bytes'] / 2**20:.1f}",
            f"{row['kv_bytes'] / 2**20:.1f}",
        )
    console.print(table)


def print_targets(console, rows):
    """What was aimed at, and where it was missed by most. Block removal is the baseline: no target of ours."""
    pruned = [row for row in rows if row["variant"] not in (DENSE, REMOVAL)]
    long = [row for row in pruned if row["length"] >= 512 and row["variant"] not in WITH_HALVES]
    apart = [row for row in pruned if row["length"] >= 512 and row["batch"] >= 4 and row["variant"] in WITH_HALVES]
    at_40 = [row for row in long if row["shape"] in LARGE and row["length"] >= 2000 and row["overall_sparsity"] == 0.4]
    targets = (
        ("share of ideal, length ≥ 512, batch ≥ 4", "share_of_ideal", [r for r in long if r["batch"] >= 4], 0.95),
        ("share of ideal, length ≥ 512, batch 1", "share_of_ideal", [r for r in long if r["batch"] == 1], 0.90),
        ("the same with halves", "share_of_ideal", apart, 0.85),
        ("never slower than dense", "speedup", pruned, 1.0),
        ("router overhead", "router_overhead", [r for r in pruned if r["router_overhead"] is not None], 0.03),
        ("7B and 13B shapes, 40 %, length ≥ 2,000", "speedup", at_40, 1.61),
    )
    table = Table(title="Targets, by medians")
    for heading in ("target", "aim", "points", "met", "worst", "where"):
        table.add_column(heading, justify="left" if heading in ("target", "where") else "right")
    for name, key, of, aim in targets:
        less_is_better = key == "router_overhead"
        shown = "{:.2f}x" if key == "speedup" else "{:.1%}"
        wanted = ("≤ " if less_is_better else "≥ ") + shown.format(aim)
        if not of:
            table.add_row(name, wanted, "0", "not measured", "", "")
            continue
        n_met = sum(row[key] <= aim if less_is_better else row[key] >= aim for row in of)
        worst = (max if less_is_better else min)(of, key=lambda row: row[key])
        where = "{shape}, {variant}, batch {batch}, length {length}, {point_sparsity:.0%}".format(**worst)
        verdict = "yes" if n_met == len(of) else f"{n_met} of {len(of)}"
        table.add_row(name, wanted, str(len(of)), verdict, shown.format(worst[key]), where)
    console.print(table)


def print_profile(console, model, influence, point, args):
    """Operators that take longer in a pruned prefill than the dense model's time divided by the ideal."""
    shape, batch, length, overall = point
    everyone = contestants(model, influence, batch, length, 0, overall, schedule_of(args, overall, model))
    key = "self_device_time_total" if model.device.type == "cuda" else "self_cpu_time_total"
    prompts, times = random_prompts(model, batch, length, seed=0), {}
    for name in (DENSE, BUDGET):
        step = everyone[name].variant.step_of(model.model)
        with torch.inference_mode():
            step(prompts.ids, None)
            with torch.profiler.profile() as profile:
                step(prompts.ids, None)
        times[name] = {event.key: (getattr(event, key) / 1000, event.count) for event in profile.key_averages()}
    ideal = everyone[DENSE].flops / everyone[BUDGET].flops

    def above_ideal_ms(operator):
        return times[BUDGET][operator][0] - times[DENSE].get(operator, (0.0, 0))[0] / ideal

    table = Table(title=f"Profiled prefills, {shape}, batch {batch}, length {length}, {overall:.0%} overall, {BUDGET}")
    for heading in ("operator", "dense ms", "calls", "pruned ms", "calls", "above ideal ms"):
        table.add_column(heading, justify="left" if heading == "operator" else "right", no_wrap=True)
    for operator in sorted(times[BUDGET], key=above_ideal_ms, reverse=True)[:15]:
        both = [times[name].get(operator, (0.0, 0)) for name in (DENSE, BUDGET)]
        figures = [text for ms, calls in both for text in (f"{ms:.2f}", str(calls))]
        table.add_row(operator[:60], *figures, f"{above_ideal_ms(operator):.2f}")
    console.print(table)


def save(path, rows, left_out):
    """Whole or not at all: a run that is killed keeps the rows that it had."""
    beside = path.with_name(path.name + ".part")
    beside.write_text(json.dumps({"rows": rows, "not_measured": left_out}, indent=1) + "\n")
    os.replace(beside, path)


def parsed():
    def list_of(kind):
        return lambda text: [kind(part) for part in text.split(",")]

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a few points, at most 60 s on 2 cores")
    parser.add_argument("--json", type=Path, help="write the rows here too, as they come")
    parser.add_argument("--shape", type=list_of(str), default=list(SHAPES), help="default: " + ",".join(SHAPES))
    parser.add_argument("--device", default="cpu", help="where demo and 160m run; the others need cuda, or ROCm")
    parser.add_argument("--batches", type=list_of(int), default=[1, 4, 16])
    parser.add_argument("--lengths", type=list_of(int), default=[256, 512, 1024, 2048])
    parser.add_argument("--sparsities", type=list_of(float), default=[0.22, 0.25, 0.3, 0.4, 0.5])
    parser.add_argument(
        "--variants", type=list_of(str), default=list(VARIANTS), help=", ".join((*VARIANTS, *WITH_HALVES))
    )
    parser.add_argument("--schedule", type=list_of(float), help="instead of the fixed one, one sparsity per block")
    parser.add_argument("--new-tokens", type=int, default=0, help="how much of the length is decoded")
    parser.add_argument(
        "--break-even", action="store_true", help="run blocks whole where skipping takes no less time, by a profile"
    )
    parser.add_argument("--repeats", type=int, help="rounds of each point (default: 15, with --quick 5)")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--substitute", type=int, default=0, metavar="RANK", help="of maps; 0 for none")
    parser.add_argument("--profile-pass", action="store_true", help="print what takes longer than it should, and end")
    args = parser.parse_args()
    for given, known in ((args.shape, SHAPES), (args.variants, (*VARIANTS, *WITH_HALVES))):
        if unknown := [name for name in given if name not in known]:
            parser.error(f"there is no {', '.join(unknown)}: choose of {','.join(known)}")
    if args.new_tokens >= min(args.lengths):
        parser.error(f"--new-tokens {args.new_tokens} leaves no prompt of a length of {min(args.lengths)}")
    args.repeats = args.repeats or (5 if args.quick else 15)
    args.variants.append(DENSE)
    if args.schedule:
        args.schedule = SparsitySchedule(args.schedule)
        args.sparsities = [args.schedule.overall]
    points = [
        (shape, batch, length, sparsity)
        for shape in SHAPES
        if shape in args.shape
        for length in args.lengths
        for batch in args.batches
        for sparsity in args.sparsities
    ]
    if args.quick:
        points = [one for one in (*QUICK, *((shape, 1, 1024, 0.4) for shape in LARGE)) if one[0] in args.shape]
    return args, points


def run_shape(console, bar, task, points, args, started):
    """Measures the points of one shape; yields the rows of each point, or none and why not."""
    shape = points[0][0]
    device, model = "cuda" if shape in LARGE else args.device, None
    for point in points:
        rows, why = [], None
        if device == "cuda" and not torch.cuda.is_available():
            why = "no CUDA or ROCm device"
        elif args.quick and time.monotonic() - started > QUICK_SECONDS:
            why = "no time left for --quick"
        else:
            if model is None:
                model = build(shape, device)
                if args.substitute:
                    width, dtype = model.model.config.hidden_size, model.model.dtype
                    maps = Substitutes(model.n_blocks, width, args.substitute, dtype)
                    give_substitutes(model.model, maps, model.blocks)
                influence = block_influence(model, random_prompts(model, 1, 64, seed=2))
            try:
                if point[2] > model.context:
                    why = f"the model reads {model.context} tokens"
                elif args.profile_pass:
                    print_profile(console, model, influence, point, args)
                else:
                    rows = rows_of(model, influence, point, args, lambda: bar.advance(task))
                    print_rows(console, rows)
            except torch.OutOfMemoryError:
                why = "out of memory"
        if not rows:
            bar.advance(task, args.repeats)
        yield point, rows, why


def main():
    args, points = parsed()
    started, console = time.monotonic(), Console(width=130)
    torch.set_num_threads(args.threads)
    keep_freed_memory()
    rows, left_out = [], []
    with Progress(console=Console(stderr=True)) as bar:
        task = bar.add_task("timing", total=len(points) * args.repeats)
        # One model at a time, as large ones fill a card.
        for _, of_shape in groupby(points, key=lambda point: point[0]):
            for point, new, why in run_shape(console, bar, task, list(of_shape), args, started):
                rows += new
                if why is not None:
                    named = zip(("shape", "batch", "length", "overall_sparsity"), point, strict=True)
                    left_out.append(dict(named, why=why))
                if args.json:
                    save(args.json, rows, left_out)
    for (shape, length, why), of in groupby(left_out, key=lambda one: (one["shape"], one["length"], one["why"])):
        batches = ", ".join(map(str, sorted({one["batch"] for one in of})))
        console.print(f"{shape}, length {length}, batch {batches}: not measured ({why}).")
    if args.profile_pass:
        return
    print_targets(console, rows)
    console.print(
        f"Medians of {args.repeats} rounds in which the variants took turns, {args.threads} threads; bootstrap "
        "intervals. Ideal: the ratio of operations, those of the router left out. Searched: a fixed schedule whose two "
        f"outer blocks at both ends skip {OUTER_SHARES[0]:.0%} and {OUTER_SHARES[1]:.0%} of what the inner ones skip, "
        "or --schedule. Block removal: whole blocks, as many as come closest to that schedule's operations."
    )


if __name__ == "__main__":
    main()
