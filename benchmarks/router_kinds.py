"""What routers add on a pretrained model: KL to the dense model and time of a prefill, all at one schedule.

"static" keeps the first token and the most recent ones, "random" draws, "attention received" keeps both ends of a
prompt and the tokens that got most attention. The others are distilled on calibration items, each from its usual start:
"dynamic" is the paper's, "hidden" reads hidden states before every decision, "one-pass" once, before the first. The
best of each on validation items is compared on test items, in KL (with the ratio to the static router's, and an
interval over items drawn again), and on the clock, where all take turns.

The schedule is that of a stored study's selected trial or of another, or is given (one share per block, or the numbers
of attention, of MLPs and of keys and values that are kept), or by default one that saves a share of the FLOPs: whole
blocks but the first two, or halves with kept keys; there "late" skips both halves of the last 43 % of the blocks, as
searches find it, and "half" all MLPs but two, and the later half's attention. With `--substitute`, low-rank maps stand
in for skipped halves, fitted before any router learns.

python benchmarks/router_kinds.py --model DIR --data "FOLDER/arc_easy.jsonl + ..." [--study NAME [--trial N]
    [--storage URL]] [--schedule 0,0,0.3,...] [--kind block|half|late] [--saved 0.3] [--substitute 32]
    [--routers LIST] [--quick] [--json PATH]
"""

import argparse
import json
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from ftp_core.cost.flops import FlopsCounter
from ftp_core.cost.speedup import paired_speedup
from ftp_core.cost.timing import measure_latency, timing_batch
from ftp_core.quality.quality import QualitySet
from ftp_core.routers import (
    FEATURES,
    FEATURES_OF_HALVES,
    DynamicRouter,
    HiddenRouter,
    OnePassRouter,
    RandomRouter,
    ScoringRouter,
    StaticRouter,
)
from ftp_core.schedule import DEFAULT_STEP, MAX_SPARSITY, SparsitySchedule
from ftp_core.skipping.substitutes import give_substitutes
from ftp_core.training.distillation import distill
from ftp_core.training.distillation_config import DistillationConfig
from ftp_core.training.substitution import fit_substitutes
from search.config.run_config import DEFAULT_STORAGE
from search.inputs.data import load_workload
from studies import StudyStore

ROUTERS = ("static", "random", "attention received", "dynamic", "hidden", "one-pass")
TRAINED = ("dynamic", "hidden", "one-pass")
# Blocks that the default schedule spares, and where its late ones begin.
N_SPARED, LATE = 2, 17 / 30
SIZES = {"calibration": 96, "validation": 64, "test": 160}
QUICK_SIZES = {"calibration": 24, "validation": 16, "test": 32}
STEPS, QUICK_STEPS = 80, 12
# Steps between evaluations on validation items.
EVERY, QUICK_EVERY = 10, 4
REPEATS, QUICK_REPEATS = 15, 7
# A router that cannot start as the static one gets the paper's guide to it, as in a run.
GUIDE = 0.3
N_RESAMPLED = 2000
# Longer than prompts are: positive for one of their ends alone.
LONGEST = 10_000.0


def by_attention():
    """Keeps the first token, the last one, and those that received most attention."""
    router = DynamicRouter(features=("position", "attention"))
    first, last = router.mlp[0], router.mlp[2]
    with torch.no_grad():
        for parameter in router.parameters():
            parameter.zero_()
        first.weight[0, 1], last.weight[0, 0] = 1.0, 1.0
        first.weight[1, 0], first.bias[1], last.weight[0, 1] = -LONGEST, 1.0, 2.0
        first.weight[2, 0], first.bias[2], last.weight[0, 2] = LONGEST, 1.0 - LONGEST, 2.0
    return router


def fresh(kind, model, schedule, seed):
    """A router before it learns."""
    torch.manual_seed(seed)
    width, has_halves = model.model.config.hidden_size, not schedule.is_plain
    if kind == "hidden":
        return HiddenRouter(width, has_halves)
    router = DynamicRouter(features=FEATURES_OF_HALVES if has_halves else FEATURES)
    if kind == "one-pass":
        router = OnePassRouter(width, model.n_blocks, has_halves)
    router.start_as_static()
    return router


def default_schedule(model, kind, saved, batch, length):
    """Equal shares in all blocks but the first ones, as many as come closest to the FLOPs to save."""
    counter, n_blocks = FlopsCounter(model), model.n_blocks
    dense = counter.count(SparsitySchedule.uniform(0.0, n_blocks), batch, length).total

    def at(share):
        spared = [share * (block >= N_SPARED) for block in range(n_blocks)]
        if kind == "block":
            return SparsitySchedule(spared)
        if kind == "late":
            last = [share * (block >= round(LATE * n_blocks)) for block in range(n_blocks)]
            return SparsitySchedule.of_halves(last, last, keeps_kv=True)
        # Attention of early blocks is dear.
        late = [share * (block >= n_blocks // 2) for block in range(n_blocks)]
        return SparsitySchedule.of_halves(late, spared, keeps_kv=True)

    levels = [at(DEFAULT_STEP * level) for level in range(1, round(MAX_SPARSITY / DEFAULT_STEP) + 1)]
    return min(levels, key=lambda one: abs(1 - counter.count(one, batch, length).total / dense - saved))


def schedule_of(args, model):
    """The schedule to compare at."""
    if args.study is not None:
        with StudyStore(args.storage) as store:
            number = store.studies.get(args.study).chosen_trial if args.trial is None else args.trial
            if number is None:
                raise SystemExit(f"Study {args.study} has selected no trial yet: name one with --trial.")
            return model.checked(store.trials.get(args.study, number).schedule)
    if args.schedule is not None:
        return model.checked([float(share) for share in args.schedule.split(",")])
    return default_schedule(model, args.kind, args.saved, args.batch, args.length)


def router_of(kind, model, schedule, parts, held_out, static_kl, args, on_progress):
    """A router, trained if it is one that learns, and the seconds that this took."""
    if kind not in TRAINED:
        return {"static": StaticRouter, "random": RandomRouter, "attention received": by_attention}[kind](), 0.0
    every = min(args.steps, QUICK_EVERY if args.quick else EVERY)
    config = DistillationConfig(steps=args.steps, batch_size=args.train_batch, evaluate_every=every, seed=args.seed)
    if kind == "hidden":
        config = replace(config, w_guide=GUIDE)
    distilled = distill(
        model,
        parts["calibration"],
        schedule,
        config,
        held_out=held_out,
        router=fresh(kind, model, schedule, args.seed),
        static_kl=static_kl,
        on_progress=on_progress,
    )
    return distilled.router, distilled.seconds


def kl_ratio(own, static, seed):
    """KL as a multiple of the static router's, with a 95 % interval over items drawn again."""
    weights = np.array([item.n_tokens for item in static], dtype=float)
    kl = [np.array([item.kl for item in items]) * weights for items in (own, static)]
    drawn = np.random.default_rng(seed).integers(0, len(weights), (N_RESAMPLED, len(weights)))
    ratios = kl[0][drawn].sum(1) / kl[1][drawn].sum(1)
    return kl[0].sum() / kl[1].sum(), *np.quantile(ratios, [0.025, 0.975]).tolist()


def show(console, rows, title):
    table = Table(title=title)
    for heading in ("router", "parameters", "KL", "of static's", "95 %", "FLOPs saved", "ms", "speed-up", "95 %", "s"):
        table.add_column(heading, justify="left" if heading == "router" else "right", no_wrap=True)
    for row in rows:
        low, high = row["speedup_low"], row["speedup_high"]
        table.add_row(
            row["router"],
            str(row["parameters"] or "-"),
            f"{row['kl']:.4f}",
            f"{row['kl_ratio']:.2f}",
            f"{row['kl_ratio_low']:.2f} – {row['kl_ratio_high']:.2f}",
            f"{row['flops_saved']:.1%}",
            f"{row['prefill_ms']:.1f}",
            f"{row['speedup']:.2f}x",
            "-" if low is None else f"{low:.2f} – {high:.2f}",
            f"{row['training_seconds']:.0f}",
        )
    console.print(table)


def parsed():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--data", required=True, help="sources with + between them, as for `ftp-search run`")
    parser.add_argument("--study", help="stored study whose schedule is taken")
    parser.add_argument("--trial", type=int, help="its trial (default: the one that it selected)")
    parser.add_argument("--storage", default=DEFAULT_STORAGE)
    parser.add_argument("--schedule", help="numbers with commas between them")
    parser.add_argument("--kind", choices=("block", "half", "late"), default="block", help="of the default schedule")
    parser.add_argument("--saved", type=float, default=0.3, help="share of FLOPs that the default schedule saves")
    parser.add_argument("--substitute", type=int, default=0, metavar="RANK", help="rank of maps for skipped halves")
    parser.add_argument("--routers", default=",".join(ROUTERS))
    parser.add_argument("--quick", action="store_true", help="few items, steps and turns")
    parser.add_argument("--items", help="items to train on, to choose by and to test on, with commas between them")
    parser.add_argument("--steps", type=int, help="steps of each training")
    parser.add_argument("--train-batch", type=int, default=8, help="items in a step")
    parser.add_argument("--batch", type=int, default=4, help="rows of the timed prefill")
    parser.add_argument("--length", type=int, default=256, help="tokens of each of them")
    parser.add_argument("--repeats", type=int, help="turns on the clock")
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    args.routers = list(dict.fromkeys(["static", *args.routers.split(",")]))
    if unknown := [name for name in args.routers if name not in ROUTERS]:
        parser.error(f"there is no router {', '.join(unknown)}: choose of {','.join(ROUTERS)}")
    args.sizes = QUICK_SIZES if args.quick else SIZES
    if args.items:
        args.sizes = dict(zip(SIZES, map(int, args.items.split(",")), strict=True))
    args.steps = args.steps or (QUICK_STEPS if args.quick else STEPS)
    args.repeats = args.repeats or (QUICK_REPEATS if args.quick else REPEATS)
    return args


def main():
    args = parsed()
    torch.set_num_threads(args.threads)
    began, console = time.monotonic(), Console(width=130)
    workload = load_workload(args.model, args.data, args.seed, args.sizes, dtype=args.dtype)
    model, parts = workload.model.skipping, workload.splits
    schedule, dense = schedule_of(args, model), SparsitySchedule.uniform(0.0, model.n_blocks)
    console.print(f"schedule: {schedule}")
    if args.substitute:
        maps = fit_substitutes(model, parts["calibration"], args.substitute)
        give_substitutes(model.model, maps, model.blocks)
    held_out, test = QualitySet(model, parts["validation"], 16), QualitySet(model, parts["test"], 16)
    static_kl = held_out.evaluate(schedule, StaticRouter()).kl
    found, qualities = {}, {}
    with Progress(console=Console(stderr=True), transient=True) as bar:
        for kind in args.routers:
            task = bar.add_task(kind, total=1.0)
            found[kind] = router_of(
                kind,
                model,
                schedule,
                parts,
                held_out,
                static_kl,
                args,
                lambda share, task=task: bar.update(task, completed=share),
            )
            qualities[kind] = test.per_item(schedule, found[kind][0], choices=False)
            bar.update(task, completed=1.0)
    prompts = timing_batch([one.prompt for one in parts["calibration"]], args.batch, args.length).to(model.device)
    timed = [(dense, StaticRouter()), *((schedule, router) for router, _ in found.values())]
    times = [one.times_ms for one in measure_latency(model, prompts, timed, args.repeats)]
    counter, rows = FlopsCounter(model), []
    dense_flops = counter.count(dense, args.batch, args.length).total
    for (kind, (router, seconds)), times_ms in zip(found.items(), times[1:], strict=True):
        flops = counter.count(schedule, args.batch, args.length, router=router)
        speedup = paired_speedup(times[0], times_ms)
        ratio, low, high = kl_ratio(qualities[kind], qualities["static"], args.seed)
        n_tokens = sum(item.n_tokens for item in qualities[kind])
        is_trained = kind in TRAINED and isinstance(router, ScoringRouter)
        rows.append(
            {
                "router": kind,
                "parameters": sum(one.numel() for one in router.parameters()) if is_trained else 0,
                "kl": sum(item.kl * item.n_tokens for item in qualities[kind]) / n_tokens,
                "kl_ratio": ratio,
                "kl_ratio_low": low,
                "kl_ratio_high": high,
                "flops_saved": 1 - flops.total / dense_flops,
                "prefill_ms": float(np.median(times_ms)),
                "speedup": speedup.ratio,
                "speedup_low": speedup.low,
                "speedup_high": speedup.high,
                "training_seconds": seconds,
            }
        )
    title = f"{len(parts['test'])} test items, {args.steps} steps, prefill of {args.batch} x {args.length} tokens"
    show(console, rows, title)
    console.print(f"Dense prefill {np.median(times[0]):.1f} ms; {time.monotonic() - began:.0f} s in all.")
    if args.json is not None:
        facts = {"schedule": schedule.to_json(), "sizes": args.sizes, "steps": args.steps, "seed": args.seed}
        args.json.write_text(json.dumps(facts | {"rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
