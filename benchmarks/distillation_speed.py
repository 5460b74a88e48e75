"""Claim: where a distillation's time goes, and what it costs beside other programs if threads spin while they wait.

Trains a router as `ftp-search run` does, on random examples as long as paragraphs of WikiText (130 + 45 tokens), with a
Llama of 3 million random weights or the model that is named. Three processes take turns: in one, torch's threads wait
as OpenMP lets them by default, spinning for milliseconds, in one they spin for a fraction of one, as `ftp-search` has
it, and in one they sleep at once. Beside them as many programs are busy as there
are cores; with `--busy 0` none. CPU seconds are what the machine had to give; they differ less from run to run.

python benchmarks/distillation_speed.py [--quick] [--json PATH] [--model DIR] [--busy N] [--repeats N]
"""

import argparse
import json
import multiprocessing
import os
import random
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import fmean, median

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

STAGES = ("dense answers", "static decisions", "teacher", "evaluations", "steps", "all")
POLICIES = {"spinning": {}, "briefly": {"GOMP_SPINCOUNT": "10000"}, "asleep": {"OMP_WAIT_POLICY": "passive"}}


def train(args: argparse.Namespace) -> dict[str, tuple[float, float]]:
    """Seconds on the clock and of CPU that each stage takes."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from ftp_core.loading.allocator import keep_freed_memory
    from ftp_core.loading.models import load_model
    from ftp_core.quality.quality import QualitySet
    from ftp_core.routers import StaticRouter
    from ftp_core.schedule import SparsitySchedule
    from ftp_core.skipping.prefixes import PrefixStore
    from ftp_core.skipping.skipping_model import SkippingModel
    from ftp_core.text.encoding import EncodedExample
    from ftp_core.training.distillation import distill
    from ftp_core.training.distillation_config import DistillationConfig

    torch.manual_seed(0)
    if args.model is None:
        keep_freed_memory()
        sizes = {"hidden_size": 192, "intermediate_size": 512, "num_hidden_layers": 6, "num_attention_heads": 6}
        model = SkippingModel(LlamaForCausalLM(LlamaConfig(vocab_size=2048, initializer_range=0.08, **sizes)))
    else:
        model = load_model(args.model).skipping
    draw, vocabulary = random.Random(0), model.model.config.vocab_size

    def tokens(mean: float, deviation: float, most: int) -> tuple[int, ...]:
        length = min(most, max(8, round(draw.gauss(mean, deviation))))
        return tuple(draw.randrange(vocabulary) for _ in range(length))

    def examples(n: int) -> list[EncodedExample]:
        return [EncodedExample(tokens(130, 35, 250), (tokens(45, 12, 64),), 0, False) for _ in range(n)]

    def schedule() -> SparsitySchedule:
        # The first block of most models bears no skipping.
        return SparsitySchedule.from_grid_indices(
            [0, *(draw.choice((0, 0, 4, 8, 12)) for _ in range(model.n_blocks - 1))]
        )

    data, held_out, schedules = examples(args.items), examples(args.items // 2), [schedule() for _ in range(4)]
    spent = dict.fromkeys(STAGES, (0.0, 0.0))

    def now() -> tuple[float, float]:
        return time.perf_counter(), time.process_time()

    def add(stage: str, began: tuple[float, float]) -> None:
        spent[stage] = tuple(sum(part) for part in zip(spent[stage], now(), (-one for one in began), strict=True))

    class Timed(QualitySet):
        def evaluate(self, *arguments, **options):
            began = now()
            try:
                return super().evaluate(*arguments, **options)
            finally:
                add("evaluations", began)

    began = start = now()
    quality, prefixes = Timed(model, held_out), PrefixStore(2**30)
    add("dense answers", began)
    began = now()
    static_kl = fmean(QualitySet.evaluate(quality, one, StaticRouter(), prefixes=prefixes).kl for one in schedules)
    add("static decisions", began)
    began = now()

    def on_taught() -> None:
        nonlocal began
        add("teacher", began)
        began = now()

    config = DistillationConfig(steps=args.steps)
    distill(
        model,
        data,
        schedules,
        config,
        held_out=quality,
        static_kl=static_kl,
        prefixes=prefixes,
        on_taught=on_taught,
    )
    add("steps", began)
    spent["steps"] = tuple(one - other for one, other in zip(spent["steps"], spent["evaluations"], strict=True))
    add("all", start)
    return spent


@contextmanager
def busy(n: int) -> Iterator[None]:
    """Context in which programs keep cores busy."""
    programs = [multiprocessing.Process(target=_spin, daemon=True) for _ in range(n)]
    for program in programs:
        program.start()
    try:
        yield
    finally:
        for program in programs:
            program.kill()


def _spin() -> None:
    while True:
        pass


def measured(policy: str, args: argparse.Namespace) -> dict[str, tuple[float, float]]:
    """`train` in a process of its own, whose threads wait in one way or the other."""
    told = {name: value for name, value in os.environ.items() if name not in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")}
    command = [sys.executable, __file__, "--child", "--items", str(args.items), "--steps", str(args.steps)]
    command += [] if args.model is None else ["--model", args.model]
    done = subprocess.run(command, env=told | POLICIES[policy], stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="16 examples, 4 steps: about a minute")
    parser.add_argument("--json", type=Path, help="write the figures here")
    parser.add_argument("--model", help="a directory, a Hugging Face id, or demo")
    parser.add_argument("--items", type=int, default=256, help="examples to train on; half as many are held out")
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--busy", type=int, default=os.cpu_count(), help="programs beside it")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.quick:
        args.items, args.steps, args.repeats = 16, 4, 1
    if args.child:
        print(json.dumps(train(args)))
        return
    runs: dict[str, list[dict[str, tuple[float, float]]]] = {policy: [] for policy in POLICIES}
    with busy(args.busy):
        for _ in range(args.repeats):
            for policy, found in runs.items():
                found.append(measured(policy, args))
                wall, cpu = found[-1]["all"]
                print(f"{policy}: {wall:.1f} s, {cpu:.1f} s of CPU", file=sys.stderr)
    rows = {
        policy: {stage: [median(run[stage][i] for run in found) for i in (0, 1)] for stage in STAGES}
        for policy, found in runs.items()
    }
    show(rows, args.busy)
    if args.json:
        args.json.write_text(json.dumps({"rows": rows, "runs": runs}, indent=1) + "\n")


def show(rows: dict[str, dict[str, list[float]]], n_busy: int) -> None:
    """Print the table, and how many times as long threads take that wait otherwise."""
    from rich.console import Console
    from rich.table import Table

    table = Table(title=f"A distillation beside {n_busy} busy programs: seconds, medians")
    for heading in ("stage", *(f"{policy}, {kind}" for policy in rows for kind in ("wall", "CPU"))):
        table.add_column(heading, justify="left" if heading == "stage" else "right")
    for stage in STAGES:
        table.add_row(stage, *(f"{seconds:.1f}" for of_policy in rows.values() for seconds in of_policy[stage]))
    console = Console(width=120)
    console.print(table)
    for policy in ("spinning", "asleep"):
        ratios = [one / other for one, other in zip(rows[policy]["all"], rows["briefly"]["all"], strict=True)]
        console.print(
            f"Beside spinning briefly, {policy} takes {ratios[0]:.2f} times as long, {ratios[1]:.2f} the CPU."
        )


if __name__ == "__main__":
    main()
