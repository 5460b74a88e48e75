"""Claim: what a router knows, and how it is trained, decides how much skipping costs.

For every seed, schedules are searched with the static router at each overall sparsity; then all routers are compared
at the schedule that was found, on a test set that neither search nor training saw. Seeds draw data, search, initial
weights and order of training. The table gives means and standard deviations over seeds, and says which claims of the
FTP paper (arXiv 2412.11494) hold here.

python benchmarks/router_ablation.py [--quick] [--json PATH] [--model demo] [--data demo] [--seeds 5] [--workers 2]
python benchmarks/router_ablation.py --model DIR --data sampled --rows kinds   # texts that the model itself writes
"""

import argparse
import json
import multiprocessing
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from router_setting import SEARCH_ITEMS, Sizes, search, splits

from ftp_core.loading.models import load_model
from ftp_core.quality.quality import QualitySet
from ftp_core.routers import (
    FEATURES,
    DynamicRouter,
    HiddenRouter,
    LocalRouter,
    OnePassRouter,
    RandomRouter,
    RecurrentRouter,
    Router,
    ScoringRouter,
    StaticRouter,
)
from ftp_core.schedule import SparsitySchedule
from ftp_core.skipping.skipping_model import SkippingModel
from ftp_core.text.encoding import EncodedExample, prompt_batch
from ftp_core.training.calibration import calibrate_thresholds
from ftp_core.training.distillation import distill
from ftp_core.training.distillation_config import DistillationConfig
from search.proposers.catalogue import PORTFOLIO_NAME

# As the paper trains: from random weights, with the guide loss.
PAPER, PAPER_CONFIG = "dynamic, as the paper trains", {"w_guide": 0.3, "consider_static": False}
# From the static router's decisions, as `distill` does by itself; and whichever of both is better on held-out items.
STARTED, DYNAMIC = "dynamic, starts as static", "dynamic"
# The best schedules of a search, the chosen one among them, that one router is trained on at once, in twice the steps.
MANY, MANY_SCHEDULES = 4, "dynamic, many schedules"
# Both routers get the same second search, around what the first one found; the held-out set chooses among its best.
AGAIN, FINALISTS = "searched again", 5
# Which rows each choice adds to those of fixed routers.
FEATURE_ROWS = tuple(f"- without {feature}" for feature in FEATURES)
LOSS_ROWS = ("- no guide loss", "- no sparsity loss", "- no distillation loss")
ONE_PASS, ONE_PASS_STARTED = "one-pass", "one-pass, starts as static"
OTHER_ROWS = ("per block (local)", "recurrent", "hidden states", ONE_PASS, ONE_PASS_STARTED)
ROWS = {
    "uniform": (),
    "kinds": (DYNAMIC,),
    "again": (DYNAMIC, AGAIN),
    "main": (DYNAMIC, AGAIN, MANY_SCHEDULES, "hidden states", ONE_PASS_STARTED),
    "parts": (DYNAMIC, *FEATURE_ROWS, *LOSS_ROWS, *OTHER_ROWS),
    "all": (DYNAMIC, AGAIN, MANY_SCHEDULES, *OTHER_ROWS[::-1], *FEATURE_ROWS, *LOSS_ROWS),
}


@dataclass(frozen=True)
class Job:
    """What one process does."""

    model: str
    data: str
    seed: int
    level: float
    sizes: Sizes
    trains: tuple[str, ...]
    proposers: str


def trained_routers(model: SkippingModel) -> dict[str, tuple[Callable[[], ScoringRouter], dict[str, Any]]]:
    """How each trained row makes its router, and what it changes in the training."""
    width, n_blocks = model.model.config.hidden_size, model.n_blocks
    without = {name: tuple(feature for feature in FEATURES if feature != name) for name in FEATURES}
    return {
        STARTED: (started(DynamicRouter), {}),
        PAPER: (DynamicRouter, PAPER_CONFIG),
        **{
            row: (lambda f=without[name]: DynamicRouter(features=f), PAPER_CONFIG)
            for row, name in zip(FEATURE_ROWS, FEATURES, strict=True)
        },
        "- no guide loss": (DynamicRouter, PAPER_CONFIG | {"w_guide": 0.0}),
        "- no sparsity loss": (DynamicRouter, PAPER_CONFIG | {"w_sparsity": 0.0}),
        "- no distillation loss": (DynamicRouter, PAPER_CONFIG | {"w_distill": 0.0}),
        "per block (local)": (lambda: LocalRouter(n_blocks), PAPER_CONFIG),
        "recurrent": (RecurrentRouter, PAPER_CONFIG),
        "hidden states": (lambda: HiddenRouter(width), PAPER_CONFIG),
        ONE_PASS: (lambda: OnePassRouter(width, n_blocks), PAPER_CONFIG),
        ONE_PASS_STARTED: (started(lambda: OnePassRouter(width, n_blocks)), {}),
    }


def started(make: Callable[[], ScoringRouter]) -> Callable[[], ScoringRouter]:
    """Makes routers that decide as the static one before they learn, if they see the position."""

    def make_started() -> ScoringRouter:
        router = make()
        router.start_as_static()
        return router

    return make_started


def run(job: Job) -> list[dict[str, Any]]:
    """All rows of one seed at one overall sparsity."""
    torch.set_num_threads(1)
    loaded, sizes = load_model(job.model), job.sizes
    model = loaded.skipping
    parts = splits(loaded, job.data, job.seed, sizes)
    searched = parts["calibration"][:SEARCH_ITEMS]
    held_out, test = QualitySet(model, parts["validation"]), QualitySet(model, parts["test"])
    began, level, rows = time.monotonic(), job.level, []

    def add(row: str, schedule: SparsitySchedule, router: Router, skipped: float | None = None) -> None:
        quality = test.evaluate(schedule, router, choices=True)
        parameters = sum(p.numel() for p in router.parameters()) if isinstance(router, ScoringRouter) else 0
        rows.append(
            {
                "seed": job.seed,
                "overall_sparsity": level,
                "skipped": schedule.overall if skipped is None else skipped,
                "row": row,
                "parameters": parameters,
                "kl": quality.kl,
                "perplexity": quality.perplexity,
                "accuracy": quality.accuracy,
                "schedule": list(schedule),
            }
        )
        print(
            f"seed {job.seed}, {level:.0%}, {row}: KL {quality.kl:.4f} after {time.monotonic() - began:.0f} s",
            file=sys.stderr,
            flush=True,
        )

    def train(row: str, schedules: Sequence[SparsitySchedule], steps: int = sizes.steps) -> tuple[ScoringRouter, float]:
        torch.manual_seed(job.seed)
        make, changes = makers[row]
        every = sizes.evaluate_every * steps // sizes.steps
        config = replace(DistillationConfig(steps=steps, evaluate_every=every, seed=job.seed), **changes)
        distilled = distill(model, parts["calibration"], schedules, config, held_out=held_out, router=make())
        return distilled.router, min(distilled.curves["held_out_kl"])

    def best(found: Sequence[SparsitySchedule], router: Router) -> SparsitySchedule:
        return min(found[:FINALISTS], key=lambda schedule: held_out.evaluate(schedule, router).kl)

    def search_again(row: str, router: Router) -> None:
        found, _ = search(model, searched, level, sizes.trials_again, job.seed + 1000, router, outcomes, job.proposers)
        add(row, best(found, router), router)

    makers = trained_routers(model)
    uniform = SparsitySchedule.uniform(level, model.n_blocks)
    add("dense", SparsitySchedule.uniform(0.0, model.n_blocks), StaticRouter())
    add("uniform, static", uniform, StaticRouter())
    if not job.trains:
        add("uniform, dynamic", uniform, min((train(row, [uniform]) for row in (STARTED, PAPER)), key=_held_out_kl)[0])
        return rows
    ranked, outcomes = search(model, searched, level, sizes.trials, job.seed, StaticRouter(), proposers=job.proposers)
    chosen = best(ranked, StaticRouter())
    add("random", chosen, RandomRouter(job.seed))
    add("static", chosen, StaticRouter())
    dynamic: tuple[ScoringRouter, float] | None = None
    for row in job.trains:
        if row == DYNAMIC:
            both = {start: train(start, [chosen]) for start in (STARTED, PAPER)}
            for start, (router, _) in both.items():
                add(start, chosen, router)
            dynamic = min(both.values(), key=_held_out_kl)
            add(DYNAMIC, chosen, dynamic[0])
            continue
        if row == AGAIN:
            assert dynamic is not None
            search_again(f"static, {AGAIN}", StaticRouter())
            search_again(f"dynamic, {AGAIN}", dynamic[0])
            calibrated = calibrate_thresholds(model, dynamic[0], prompt_batch(parts["calibration"][:64]), chosen)
            add("dynamic, thresholds", chosen, calibrated, skipped(model, parts["test"], chosen, calibrated))
            continue
        if row == MANY_SCHEDULES:
            several = list(dict.fromkeys([chosen, *ranked]))[:MANY]
            tried = (train(start, several, 2 * sizes.steps) for start in (STARTED, PAPER))
            add(row, chosen, min(tried, key=_held_out_kl)[0])
            continue
        add(row, chosen, train(row, [chosen])[0])
    return rows


def _held_out_kl(trained: tuple[ScoringRouter, float]) -> float:
    return trained[1]


def skipped(model: SkippingModel, examples: list[EncodedExample], schedule: SparsitySchedule, router: Router) -> float:
    """The overall sparsity that a router comes to on prompts."""
    n_kept = n_all = 0
    for start in range(0, len(examples), 16):
        prompts = prompt_batch(examples[start : start + 16])
        kept = model.prefill(prompts, schedule, router).kept
        n_kept += sum(int(keep.sum()) for keep in kept)
        n_all += int(prompts.lengths.sum()) * len(kept)
    return 1 - n_kept / n_all


def spread(values: list[float]) -> tuple[float, float]:
    """Mean and standard deviation."""
    return statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else 0.0


def summary(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Every row of the table: means and standard deviations over seeds."""
    groups: dict[tuple[float, str], list[dict[str, Any]]] = {}
    for row in rows:
        groups.setdefault((row["overall_sparsity"], row["row"]), []).append(row)
    lines = []
    for (level, name), group in groups.items():
        line = {"overall_sparsity": level, "row": name, "parameters": group[0]["parameters"], "seeds": len(group)}
        for figure in ("skipped", "kl", "perplexity", "accuracy"):
            values = [row[figure] for row in group if row[figure] is not None]
            line[figure], line[f"{figure}_sd"] = spread(values) if values else (None, None)
        lines.append(line)
    return sorted(lines, key=lambda line: line["overall_sparsity"])


def claims(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Pairs of rows of which the first should have the lower KL, seed by seed."""
    pairs = [
        ("uniform, dynamic", "uniform, static"),
        ("dynamic", "static"),
        (f"dynamic, {AGAIN}", f"static, {AGAIN}"),
        (f"dynamic, {AGAIN}", "static"),
        ("static", "random"),
        ("static", "uniform, static"),
        (PAPER, "static"),
        ("hidden states", "static"),
        (ONE_PASS_STARTED, "static"),
        *[(PAPER, row) for row in dict.fromkeys(row["row"] for row in rows) if row.startswith("- ")],
    ]
    found = []
    for level in sorted({row["overall_sparsity"] for row in rows}):
        kl = {(row["row"], row["seed"]): row["kl"] for row in rows if row["overall_sparsity"] == level}
        seeds = sorted({seed for _, seed in kl})
        for better, worse in pairs:
            both = [
                (kl[better, seed], kl[worse, seed]) for seed in seeds if {(better, seed), (worse, seed)} <= kl.keys()
            ]
            if both:
                ratio = sum(one for one, _ in both) / sum(other for _, other in both)
                found.append(
                    {
                        "overall_sparsity": level,
                        "claim": f"KL of {better} is below that of {worse}",
                        "ratio": ratio,
                        "seeds_better": sum(one < other for one, other in both),
                        "seeds": len(both),
                        "holds": ratio < 1,
                    }
                )
        both = [(kl.get((MANY_SCHEDULES, seed)), kl.get(("dynamic", seed))) for seed in seeds]
        both = [pair for pair in both if None not in pair]
        if both:
            ratio = sum(one for one, _ in both) / sum(other for _, other in both)
            found.append(
                {
                    "overall_sparsity": level,
                    "claim": "KL of one router for many schedules is within 5 % of one for a single schedule",
                    "ratio": ratio,
                    "seeds_better": sum(one <= 1.05 * other for one, other in both),
                    "seeds": len(both),
                    "holds": ratio <= 1.05,
                }
            )
    return found


def show(lines: list[dict[str, Any]], checked: list[dict[str, Any]], title: str) -> None:
    """Print the table and the claims."""
    console = Console(width=130)
    table = Table(title=title)
    for heading in ("sparsity", "router", "seeds", "parameters", "skipped", "KL", "perplexity", "accuracy"):
        table.add_column(heading, justify="left" if heading == "router" else "right")
    for line in lines:

        def figure(name: str, form: str, line: dict[str, Any] = line) -> str:
            return "-" if line[name] is None else f"{line[name]:{form}} ± {line[f'{name}_sd']:{form}}"

        table.add_row(
            f"{line['overall_sparsity']:.0%}",
            line["row"],
            str(line["seeds"]),
            str(line["parameters"] or "-"),
            f"{line['skipped']:.1%}",
            figure("kl", ".4f"),
            figure("perplexity", ".3f"),
            figure("accuracy", ".1%"),
        )
    console.print(table)
    for one in checked:
        console.print(
            f"{one['overall_sparsity']:.0%}: {one['claim']}: {'holds' if one['holds'] else 'does not hold'} "
            f"(ratio of means {one['ratio']:.3f}, {one['seeds_better']} of {one['seeds']} seeds)"
        )


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one seed, one sparsity, little training: at most 60 s")
    parser.add_argument(
        "--json", type=Path, help="write rows, means and claims here; seeds that it has are not run again"
    )
    parser.add_argument("--model", default="demo", help="demo, a directory, or a Hugging Face id")
    parser.add_argument("--data", choices=("demo", "sampled"), default="demo", help="the demo's task, or own texts")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--trials", type=int, default=Sizes.trials, help="schedules of each first search")
    parser.add_argument("--scale", type=float, default=1.0, help="share of the items, and of the training's steps")
    parser.add_argument("--proposers", default=PORTFOLIO_NAME, help="who proposes them")
    parser.add_argument("--levels", default="0.3,0.5", help="overall sparsities")
    parser.add_argument("--workers", type=int, default=2, help="processes; each does one seed at one level at a time")
    parser.add_argument(
        "--rows", choices=tuple(ROWS), default="all", help="which routers: kinds compares static and dynamic alone"
    )
    args = parser.parse_args()
    levels = [float(level) for level in args.levels.split(",")]
    job = Job(
        args.model, args.data, 0, 0.0, Sizes(trials=args.trials).scaled(args.scale), ROWS[args.rows], args.proposers
    )
    if args.quick:
        sizes = Sizes(calibration=32, validation=16, test=40, trials=16, trials_again=8, steps=8, evaluate_every=4)
        job, args.seeds, levels = replace(job, sizes=sizes, trains=(DYNAMIC, AGAIN)), 1, levels[-1:]
    rows: list[dict[str, Any]] = []
    if args.json and args.json.exists():
        rows = json.loads(args.json.read_text())["rows"]
    known = {(row["seed"], row["overall_sparsity"]) for row in rows}
    wanted = [(seed, level) for seed in range(args.seeds) for level in levels if (seed, level) not in known]
    jobs = [replace(job, seed=seed, level=level) for seed, level in wanted]
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(max(1, min(args.workers, len(jobs))), mp_context=spawn) as pool:
        for done in as_completed([pool.submit(run, one) for one in jobs]):
            rows += done.result()
            rows.sort(key=lambda row: (row["overall_sparsity"], row["seed"]))
            if args.json:
                result = {"rows": rows, "means": summary(rows), "claims": claims(rows)}
                args.json.write_text(json.dumps(result, indent=1) + "\n")
    n_tests = job.sizes.test
    show(summary(rows), claims(rows), f"Routers, {args.model}, {n_tests} test items a seed")


if __name__ == "__main__":
    main()
