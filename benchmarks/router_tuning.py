"""Claim: how much tuned weights gain over the stored defaults, and whether equal weights (1, 1, 1) hurt.

The defaults of `DistillationConfig` are held against it, and stay if nothing else is better on other data; what came of
it is in docs/tuning.md. Schedules of the demo model are searched with the static router at each overall sparsity; Ray
Tune then tunes the router's hyperparameters for the best of them at once, on items that nothing below sees. Then, for
every seed, with data, searched schedules, initial weights and order of training of its own, routers are trained with
the stored defaults, with the three losses weighted equally, and with what was tuned, and compared on a test set that
neither search, training nor tuning saw. "KL" is that of what a user gets: the trained router, or the static one where
training found none that is better on held-out items. "KL, trained" is that of the trained router in any case: the best
on held-out items of those that its training came by, its start included.

python benchmarks/router_tuning.py [--quick] [--json PATH] [--trials 48] [--seeds 5] [--workers 2] [--folder DIR]
"""

import argparse
import json
import multiprocessing
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import router_ablation
import router_setting
import torch
from rich.console import Console
from rich.table import Table

from ftp_core.loading.models import load_model
from ftp_core.quality.quality import QualitySet
from ftp_core.routers import Router, StaticRouter
from ftp_core.training.distillation import distill
from ftp_core.training.distillation_config import DistillationConfig
from search.tuning.router_hyperparameters import TUNED

# Of the data that is tuned on; those that are compared on have other ones.
TUNING_SEED = 1000
# The best schedules of each search that are tuned for at once.
SCHEDULES = 2
STATIC, STORED, RANDOM_START, STATIC_START, TUNED_ROW = (
    "static",
    "stored defaults",
    "equal weights, random start",
    "equal weights, static start",
    "tuned",
)
EQUAL = {"w_guide": 1.0, "w_sparsity": 1.0, "w_distill": 1.0}
CLAIMS = (
    (TUNED_ROW, STORED),
    (TUNED_ROW, STATIC),
    (STORED, STATIC),
    (STORED, RANDOM_START),
    (STORED, STATIC_START),
)


@dataclass(frozen=True)
class Job:
    """What one process compares."""

    seed: int
    level: float
    sizes: router_setting.Sizes
    tuned: DistillationConfig
    base: DistillationConfig


def searched(level: float, seed: int, sizes: router_setting.Sizes):
    """The model, its examples by split, and its schedules at an overall sparsity, best first."""
    loaded = load_model("demo")
    parts = router_setting.splits(loaded, "demo", seed, sizes)
    items = parts["calibration"][: router_setting.SEARCH_ITEMS]
    ranked, _ = router_setting.search(loaded.skipping, items, level, sizes.trials, seed, StaticRouter())
    return loaded.skipping, parts, ranked


def tune(folder: Path, levels: list[float], base: DistillationConfig, args: argparse.Namespace, sizes):
    """What Ray Tune finds for the best schedules at all levels."""
    from search.tuning.router_tuning import tune_router

    began, schedules = time.monotonic(), []
    for level in levels:
        model, parts, ranked = searched(level, TUNING_SEED, sizes)
        schedules += ranked[:SCHEDULES]

    def say(ended: int, kl: float) -> None:
        print(f"tuning: {ended} trials, best KL {kl:.4f} after {time.monotonic() - began:.0f} s", file=sys.stderr)

    return tune_router(
        model,
        parts["calibration"],
        parts["validation"],
        schedules,
        base,
        trials=args.trials,
        seed=TUNING_SEED,
        workers=args.workers,
        address=None,
        deterministic=args.deterministic,
        folder=folder,
        on_result=say,
    )


def compare(job: Job) -> list[dict[str, Any]]:
    """All rows of one seed at one overall sparsity."""
    torch.set_num_threads(1)
    began = time.monotonic()
    model, parts, ranked = searched(job.level, job.seed, job.sizes)
    schedule = ranked[0]
    held_out, test = QualitySet(model, parts["validation"]), QualitySet(model, parts["test"])
    static_kl = held_out.evaluate(schedule, StaticRouter()).kl
    rows = []

    def add(row: str, router: Router, held_out_kl: float) -> None:
        alone = test.evaluate(schedule, router, choices=True)
        is_better = held_out_kl < static_kl
        kept = alone if is_better else test.evaluate(schedule, StaticRouter(), choices=True)
        rows.append(
            {
                "seed": job.seed,
                "overall_sparsity": job.level,
                "row": row,
                "kl": kept.kl,
                "accuracy": kept.accuracy,
                "kl_trained": alone.kl,
                "held_out_kl": held_out_kl,
                "is_better": is_better,
                "schedule": list(schedule),
            }
        )
        spent = time.monotonic() - began
        print(f"seed {job.seed}, {job.level:.0%}, {row}: KL {kept.kl:.4f} after {spent:.0f} s", file=sys.stderr)

    def train(row: str, config: DistillationConfig) -> None:
        # Not to hide what training comes to; whether the static router is better is looked at above.
        config = replace(config, seed=job.seed, consider_static=False)
        found = distill(model, parts["calibration"], schedule, config, held_out=held_out)
        add(row, found.router, min(found.curves["held_out_kl"]))

    add(STATIC, StaticRouter(), static_kl)
    train(STORED, job.base)
    train(RANDOM_START, replace(job.base, **EQUAL, start="random"))
    train(STATIC_START, replace(job.base, **EQUAL, start="static"))
    train(TUNED_ROW, job.tuned)
    return rows


def summary(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Every row of the table: means and standard deviations over seeds."""
    groups: dict[tuple[float, str], list[dict[str, Any]]] = {}
    for row in rows:
        groups.setdefault((row["overall_sparsity"], row["row"]), []).append(row)
    lines = []
    for (level, name), group in groups.items():
        line = {"overall_sparsity": level, "row": name, "seeds": len(group)}
        line["seeds_better_than_static"] = sum(row["is_better"] for row in group)
        for figure in ("kl", "accuracy", "kl_trained"):
            line[figure], line[f"{figure}_sd"] = router_ablation.spread([row[figure] for row in group])
        lines.append(line)
    return sorted(lines, key=lambda line: line["overall_sparsity"])


def claims(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Pairs of rows of which the first should have the lower KL, seed by seed."""
    found = []
    for figure in ("kl", "kl_trained"):
        for level in sorted({row["overall_sparsity"] for row in rows}):
            values = {(row["row"], row["seed"]): row[figure] for row in rows if row["overall_sparsity"] == level}
            seeds = sorted({seed for _, seed in values})
            for better, worse in CLAIMS:
                both = [(values[better, seed], values[worse, seed]) for seed in seeds]
                ratio = sum(one for one, _ in both) / sum(other for _, other in both)
                found.append(
                    {
                        "overall_sparsity": level,
                        "figure": figure,
                        "claim": f"KL of {better} is below that of {worse}",
                        "ratio": ratio,
                        "seeds_better": sum(one < other for one, other in both),
                        "seeds_equal": sum(one == other for one, other in both),
                        "seeds": len(seeds),
                        "holds": ratio < 1,
                    }
                )
    return found


def show(result: dict[str, Any], n_tests: int) -> None:
    """Print both tables and the claims."""
    console = Console(width=130)
    tuned = Table(title="Tuning: trials by held-out KL after the steps done; trial 0 has the stored defaults")
    for heading in ("trial", *TUNED, "done", "KL"):
        tuned.add_column(heading, justify="right", overflow="fold")
    trials = list(enumerate(result["tuning"]["trials"]))
    ranked = sorted(trials, key=lambda pair: (pair[1]["held_out_kl"], pair[0]))[:8]
    for number, trial in ranked + [pair for pair in trials[:1] if pair not in ranked]:
        values = (trial["config"][name] for name in TUNED)
        figures = (f"{value:.3g}" if isinstance(value, float) else str(value) for value in values)
        tuned.add_row(str(number), *figures, str(trial["steps"]), f"{trial['held_out_kl']:.4f}")
    console.print(tuned)
    table = Table(title=f"Routers, demo, {result['means'][0]['seeds']} seeds, {n_tests} test items each")
    for heading in ("sparsity", "router", "KL", "accuracy", "KL, trained", "beats static held out"):
        table.add_column(heading, justify="left" if heading == "router" else "right")
    for line in result["means"]:
        table.add_row(
            f"{line['overall_sparsity']:.0%}",
            line["row"],
            f"{line['kl']:.4f} ± {line['kl_sd']:.4f}",
            f"{line['accuracy']:.1%} ± {line['accuracy_sd']:.1%}",
            f"{line['kl_trained']:.4f} ± {line['kl_trained_sd']:.4f}",
            "-" if line["row"] == STATIC else f"{line['seeds_better_than_static']} of {line['seeds']} seeds",
        )
    console.print(table)
    for one in result["claims"]:
        kind = "" if one["figure"] == "kl" else ", trained"
        console.print(
            f"{one['overall_sparsity']:.0%}{kind}: {one['claim']}: {'holds' if one['holds'] else 'does not hold'} "
            f"(ratio of means {one['ratio']:.3f}, lower in {one['seeds_better']} and equal in {one['seeds_equal']} of "
            f"{one['seeds']} seeds)"
        )
    changes = ", ".join(f"{name}={result['tuning']['best'][name]!r}" for name in TUNED)
    console.print(f"Tuned: DistillationConfig({changes})")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="three trials, one seed, little training: at most 60 s")
    parser.add_argument("--json", type=Path, help="write tuning, rows, means and claims here, as they come")
    parser.add_argument("--trials", type=int, default=48, help="hyperparameters to try, the stored ones included")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--levels", default="0.3,0.5", help="overall sparsities")
    parser.add_argument("--workers", type=int, default=2, help="trials, and then comparisons, at a time")
    parser.add_argument("--folder", type=Path, help="keep the tuning there, and go on with what is there")
    parser.add_argument("--deterministic", action="store_true", help="tune without stopping trials early")
    args = parser.parse_args()
    levels = [float(level) for level in args.levels.split(",")]
    sizes, base = router_setting.Sizes(), DistillationConfig()
    if args.quick:
        sizes = router_setting.Sizes(calibration=16, validation=8, test=16, trials=4)
        base, levels = replace(base, steps=4, evaluate_every=2), levels[-1:]
        args.seeds, args.trials = 1, 3
    with nullcontext(args.folder) if args.folder else tempfile.TemporaryDirectory() as folder:
        tuning = tune(Path(folder), levels, base, args, sizes)
    trials = [
        {"config": dict(one.config), "held_out_kl": one.held_out_kl, "steps": one.steps, "seconds": one.seconds}
        for one in tuning.trials
    ]
    best = {name: getattr(tuning.best, name) for name in TUNED}
    result: dict[str, Any] = {"tuning": {"best": best, "trials": trials, "seconds": tuning.seconds}, "rows": []}
    jobs = [Job(seed, level, sizes, tuning.best, base) for seed in range(args.seeds) for level in levels]
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(min(args.workers, len(jobs)), mp_context=spawn) as pool:
        for done in as_completed([pool.submit(compare, one) for one in jobs]):
            rows = sorted([*result["rows"], *done.result()], key=lambda row: (row["overall_sparsity"], row["seed"]))
            result |= {"rows": rows, "means": summary(rows), "claims": claims(rows)}
            if args.json:
                args.json.write_text(json.dumps(result, indent=1) + "\n")
    show(result, sizes.test)


if __name__ == "__main__":
    main()
