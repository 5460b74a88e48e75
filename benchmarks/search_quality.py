"""Claim: the portfolio finds the front of a known space in few evaluations, and is no worse than its best member.

First a space of 4,096 schedules of the demo model, all of which were evaluated once (benchmarks/enumerated.py): the
hypervolume that each proposer reaches, as a share of the true front's, after 1, 2.5, 5 and 10 % of the space. Then
the whole space of the demo model, 12 blocks in steps of 0.05, where every schedule is really evaluated: hypervolume
after equal evaluations, as a share of what all runs of all proposers found together. Then that space at two overall
sparsities, `--part target`: the lowest KL after equal evaluations. Last, `--part short`, searches of few trials: what
their ablations are worth, with as many as the trials suffice for, and without.

With `--synthetic` or `--model`, instead: deep models at a target, see `benchmarks/deep_search.py`.

python benchmarks/search_quality.py [--quick] [--json PATH] [--seeds 10] [--part known|whole|target|short|all]
                                    [--proposers "NAMES;NAMES"]
python benchmarks/search_quality.py --synthetic 30,48,80 [--seeds 10] [--targets 0.25,0.4] [--budgets 30,60,100,200]
                                    [--granularity block|half] [--proposers "NAMES;NAMES"] [--json PATH]
python benchmarks/search_quality.py --model smollm2 --data "SOURCE + SOURCE" [--seeds 3] [--threads 2]
                                    [--substitute 32] [...]
"""

import argparse
import json
import math
import multiprocessing
import sys
import time
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path

import moocore
import numpy as np
import torch
from rich.console import Console
from rich.table import Table

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import deep_search  # noqa: E402
import enumerated  # noqa: E402

from search.config.groups import DEFAULT_RANK  # noqa: E402
from search.engine.ablations import plan_ablations  # noqa: E402
from search.engine.engine import SearchEngine  # noqa: E402
from search.engine.portfolio import Portfolio  # noqa: E402
from search.engine.termination import Stopping  # noqa: E402
from search.evaluators import Evaluation  # noqa: E402
from search.evaluators.local import LocalEvaluator  # noqa: E402
from search.inputs.data import load_workload  # noqa: E402
from search.problem.initial_design import ablations, initial_design  # noqa: E402
from search.problem.objectives import Objectives  # noqa: E402
from search.problem.space import ScheduleSpace  # noqa: E402
from search.proposers.catalogue import learn_from_ablations, make_proposers  # noqa: E402
from studies.pareto import non_dominated, reference_point  # noqa: E402
from tests.search.synthetic import Notebook  # noqa: E402

# Without gp, which takes seconds for a proposal: name it to see it.
KNOWN = "portfolio,deap,evopress,additive,tpe,nsga2,nsga3,cmaes,qmc,random,grid"
WHOLE = "portfolio,random,tpe,nsga2,evopress"
SHARES = (0.01, 0.025, 0.05, 0.1)
# What an evaluation of the demo model takes: proposers are credited per second, so their own time counts against it.
EVALUATION_S = 0.3
WHOLE_TRIALS, WHOLE_SEEDS, STEPS = 200, 3, 4
TARGET = "portfolio;deap,evopress,tpe,cmaes"
TARGETS, TARGET_TRIALS, TARGET_SEEDS = (0.3, 0.5), 100, 5
SHORT_TARGETS, SHORT_TRIALS, SHORT_SEEDS = (0.3, None), (16, 24, 40), 3


@dataclass(frozen=True)
class Job:
    """One search."""

    part: str
    names: str
    seed: int
    trials: int
    target: float | None = None
    ablates: bool = True


class TableEvaluator:
    """Looks figures up."""

    capacity = 1

    def __init__(self, table):
        self._table = table
        self._waiting = []

    def submit(self, task):
        self._waiting.append(task)

    def next_results(self, timeout_s=None):
        tasks, self._waiting = self._waiting, []
        metrics = self._table.metrics
        return [
            Evaluation(task, metrics[task.schedule.grid_indices(enumerated.SPACE.step)], seconds=EVALUATION_S)
            for task in tasks
        ]

    def close(self):
        self._waiting.clear()


def search(job, space, evaluator, predict_ms):
    """The outcomes of one search in the order of its trials, and what proposing took."""
    book, portfolio = Notebook(), Portfolio(make_proposers(job.names, space, job.seed), job.seed)
    planned = ablations(space) if learn_from_ablations(job.names) else ()
    if job.part == "short":
        planned = plan_ablations(space, job.trials, job.names)[0] if job.ablates else ()
    engine = SearchEngine(space, portfolio, evaluator, Objectives(predict_ms), book, seed=job.seed, ablations=planned)
    engine.run(Stopping(job.trials))
    return book.trials(), sum(own.seconds for own in portfolio.statistics.values())


def run(job):
    """What one search reached at each budget."""
    torch.set_num_threads(1)
    if job.part == "known":
        table = enumerated.load()
        outcomes, seconds = search(job, enumerated.SPACE, TableEvaluator(table), enumerated.predict_ms)
        budgets = [round(share * len(table.values)) for share in SHARES if share * len(table.values) <= job.trials]
        found = [
            table.share([enumerated.SPACE.grid_indices(outcome.schedule) for outcome in outcomes[:budget]])
            for budget in budgets
        ]
        return job, {"shares": found, "ms_per_proposal": 1000 * seconds / job.trials}
    # At a target every seed has data of its own: it is luck which schedules are good by chance on few items.
    data_seed = job.seed if job.part in ("target", "short") else 0
    workload = load_workload("demo", "demo", data_seed, {"calibration": enumerated.N_ITEMS, "validation": 1, "test": 1})
    evaluator = LocalEvaluator(workload.model.skipping, workload.splits["calibration"], prefix_bytes=2**29)
    outcomes, seconds = search(job, ScheduleSpace(12, job.target), evaluator, enumerated.predict_ms)
    # Ablations off the target are trials like others, and no finds.
    values = [outcome.values if outcome.total_violation == 0 else (math.inf, math.inf) for outcome in outcomes]
    found = {"values": values, "ms_per_proposal": 1000 * seconds / job.trials}
    if job.part == "short":
        found |= against_shortened_prompt(outcomes, ScheduleSpace(12, job.target))
    return job, found


def against_shortened_prompt(outcomes, space):
    """The lowest KL at no higher cost than shortened prompts of 10 to 50 %, as shares of theirs."""
    legal = [outcome for outcome in outcomes if outcome.total_violation == 0]
    shortened = {space.schedule(levels) for levels in initial_design(space)}
    uniform = [one.values for one in legal if one.schedule in shortened and 0 < one.overall_sparsity <= 0.5]
    best = [min(kl for kl, cost in (one.values for one in legal) if cost <= 1.01 * most) for _, most in uniform]
    return {"ratios": [kl / whole for kl, (whole, _) in zip(best, uniform, strict=True)]}


def quartiles(values):
    return "/".join(f"{value:.4f}" for value in np.quantile(values, [0.25, 0.5, 0.75]))


def show_known(console, results, seeds):
    table = enumerated.load()
    names = list(dict.fromkeys(job.names for job, _ in results))
    shown = Table(title=f"Share of the true front's hypervolume, quartiles of {seeds} seeds, 4,096 schedules")
    n_budgets = max(len(found["shares"]) for _, found in results)
    for heading in ("proposer", *(f"{share:.1%} of the space" for share in SHARES[:n_budgets]), "ms a proposal"):
        shown.add_column(heading, justify="left" if heading == "proposer" else "right")
    medians = {}
    for name in names:
        own = [found for job, found in results if job.names == name]
        by_budget = list(zip(*(found["shares"] for found in own), strict=True))
        medians[name] = [float(np.median(values)) for values in by_budget]
        cost = np.median([found["ms_per_proposal"] for found in own])
        shown.add_row(name, *(quartiles(values) for values in by_budget), f"{cost:.1f}")
    console.print(shown)
    console.print(f"The true front has {front_size(table)} schedules.")
    checks = []
    if "portfolio" in medians and len(names) > 1:
        for place, own in enumerate(medians["portfolio"]):
            best = max((medians[name][place], name) for name in names if name != "portfolio")
            checks.append(
                {
                    "claim": f"at {SHARES[place]:.1%} the portfolio is at most 0.005 below the best single proposer",
                    "measured": f"{own:.4f} against {best[0]:.4f} of {best[1]}",
                    "holds": own >= best[0] - 0.005,
                }
            )
        if n_budgets >= 3:
            own = medians["portfolio"][2]
            claim = "the portfolio reaches 0.99 at 5 % of the space"
            checks.append({"claim": claim, "measured": f"{own:.4f}", "holds": own >= 0.99})
    for check in checks:
        verdict = "holds" if check["holds"] else "does not hold"
        console.print(f"{check['claim']}: {verdict} ({check['measured']})")
    return checks


def front_size(table):
    return int(non_dominated(list(table.values.values())).sum())


def show_whole(console, results, trials):
    everything = np.concatenate([found["values"] for _, found in results])
    front = everything[non_dominated(everything)]
    reference = reference_point(front)
    volume = moocore.hypervolume(front, ref=reference)
    budgets = [trials * (step + 1) // STEPS for step in range(STEPS)]
    names = list(dict.fromkeys(job.names for job, _ in results))
    n_seeds = len(results) // len(names)
    shown = Table(title=f"12 blocks in steps of 0.05: share of all that was found, median and range of {n_seeds} seeds")
    for heading in ("proposer", *(f"{budget} evaluations" for budget in budgets)):
        shown.add_column(heading, justify="left" if heading == "proposer" else "right")
    lines = []
    for name in names:
        shares = np.array(
            [
                [moocore.hypervolume(np.array(found["values"][:budget]), ref=reference) / volume for budget in budgets]
                for job, found in results
                if job.names == name
            ]
        )
        low, median, high = shares.min(0), np.median(shares, 0), shares.max(0)
        cells = [f"{m:.4f} [{a:.4f}, {b:.4f}]" for m, a, b in zip(median, low, high, strict=True)]
        shown.add_row(name, *cells)
        lines.append({"proposer": name, "budgets": budgets, "shares": shares.tolist()})
    console.print(shown)
    return lines


def show_target(console, results, trials):
    budgets = [trials * (step + 1) // STEPS for step in range(STEPS)]
    shown = Table(
        title=f"Lowest KL of 12 blocks at a target, median and range of {len({j.seed for j, _ in results})} seeds"
    )
    for heading in ("target", "proposer", *(f"{budget} evaluations" for budget in budgets)):
        shown.add_column(heading, justify="left" if heading == "proposer" else "right")
    lines = []
    for target, name in dict.fromkeys((job.target, job.names) for job, _ in results):
        own = [found["values"] for job, found in results if (job.target, job.names) == (target, name)]
        best = np.array([[min(kl for kl, _ in values[:budget]) for budget in budgets] for values in own])
        cells = [
            f"{m:.4f} [{a:.4f}, {b:.4f}]" for m, a, b in zip(np.median(best, 0), best.min(0), best.max(0), strict=True)
        ]
        shown.add_row(f"{target:.0%}", name, *cells)
        lines.append({"target": target, "proposer": name, "budgets": budgets, "kl": best.tolist()})
    console.print(shown)
    return lines


def show_short(console, results, _):
    shown = Table(title="KL in searches of few trials, as a share of a shortened prompt's, geometric mean and range")
    for heading in ("target", "trials", "ablations", "KL at equal cost"):
        shown.add_column(heading, justify="right")
    lines = []
    for key in dict.fromkeys((job.target, job.trials, job.ablates) for job, _ in results):
        own = [found["ratios"] for job, found in results if (job.target, job.trials, job.ablates) == key]
        means = np.exp(np.log(np.maximum(own, 1e-6)).mean(1))
        mean = float(np.exp(np.log(means).mean()))
        target, trials, ablates = key
        cell = f"{mean:.3f} [{means.min():.3f}, {means.max():.3f}]"
        n = plan_ablations(ScheduleSpace(12, target), trials, "portfolio")[1].schedules if ablates else 0
        shown.add_row("any" if target is None else f"{target:.0%}", str(trials), str(n), cell)
        lines.append({"target": target, "trials": trials, "ablations": n, "ratios": own})
    console.print(shown)
    return lines


def numbers(kind):
    """What reads numbers with commas between."""
    return lambda text: tuple(map(kind, text.split(",")))


def all_results(function, jobs, workers):
    """What a function makes of each job, in their order, from several processes."""
    results, began = [], time.monotonic()
    with ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn")) as pool:
        for number, done in enumerate(as_completed([pool.submit(function, job) for job in jobs]), 1):
            results.append(done.result())
            if number % 10 == 0 or number == len(jobs):
                print(f"{number} of {len(jobs)} searches after {time.monotonic() - began:.0f} s", file=sys.stderr)
    return sorted(results, key=lambda result: jobs.index(result[0]))


def run_deep(args):
    models = args.synthetic or (args.model,)
    if args.quick:
        args.seeds, args.targets, args.budgets = 2, args.targets[:1], args.budgets[:2]
    names = tuple((args.proposers or deep_search.NAMES).split(";"))
    results = all_results(deep_search.run, deep_search.jobs_of(models, args, names), args.workers)
    checks = deep_search.show(Console(width=150), results)
    if args.json:
        runs = [{"model": job.model, "target": job.target, "seed": job.seed, **found} for job, found in results]
        args.json.write_text(json.dumps({"budgets": args.budgets, "runs": runs, "claims": checks}, indent=1) + "\n")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="two seeds, fewer proposers and budgets: at most 60 s")
    parser.add_argument("--json", type=Path, help="write all figures here")
    parser.add_argument("--seeds", type=int, help="10; 3 with --model")
    parser.add_argument("--part", choices=("known", "whole", "target", "short", "all"), default="all")
    parser.add_argument("--proposers", help="names with semicolons between them, each a list as for --sampler")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--synthetic", type=numbers(int), default=(), help="blocks of synthetic models")
    parser.add_argument("--model", help="a real model instead: smollm2, or a directory")
    parser.add_argument("--data", default="", help="its data, as for `ftp-search run`")
    parser.add_argument("--dtype", default="bfloat16", help="its precision")
    parser.add_argument("--threads", type=int, default=1, help="threads of each worker with --model")
    parser.add_argument(
        "--granularity", choices=("block", "half"), default="block", help="halves with their keys and values, or blocks"
    )
    parser.add_argument(
        "--substitute", type=int, default=DEFAULT_RANK, help="their rank with --model and halves; 0: none"
    )
    parser.add_argument("--targets", type=numbers(float), default=deep_search.TARGETS)
    parser.add_argument("--budgets", type=numbers(int), default=deep_search.BUDGETS)
    args = parser.parse_args()
    args.seeds = args.seeds or (3 if args.model else 10)
    if args.synthetic or args.model:
        run_deep(args)
        return
    known, whole, target = KNOWN.split(","), WHOLE.split(","), TARGET.split(";")
    seeds, trials, whole_seeds, whole_trials = args.seeds, round(SHARES[-1] * 4096), WHOLE_SEEDS, WHOLE_TRIALS
    target_seeds, target_trials = TARGET_SEEDS, TARGET_TRIALS
    if args.proposers:
        known = whole = target = args.proposers.split(";")
    if args.quick:
        known, whole, seeds, trials, whole_seeds, whole_trials = known[:4], ["portfolio", "random"], 2, 102, 1, 20
        target, target_seeds, target_trials = target[:1], 1, 20
    jobs = []
    if args.part in ("known", "all"):
        jobs += [Job("known", names, seed, trials) for names in known for seed in range(seeds)]
    if args.part in ("whole", "all"):
        jobs += [Job("whole", names, seed, whole_trials) for seed in range(whole_seeds) for names in whole]
    if args.part in ("target", "all"):
        jobs += [
            Job("target", names, seed, target_trials, level)
            for level in TARGETS
            for seed in range(target_seeds)
            for names in target
        ]
    if args.part in ("short", "all"):
        short_seeds, short_trials = (1, SHORT_TRIALS[:1]) if args.quick else (SHORT_SEEDS, SHORT_TRIALS)
        jobs += [
            Job("short", "portfolio", seed, trials, level, ablates)
            for level in SHORT_TARGETS
            for trials in short_trials
            for ablates in (False, True)
            for seed in range(short_seeds)
        ]
    results = all_results(run, jobs, args.workers)
    console, written = Console(width=150), {}
    parts = (
        *(("known", show_known, seeds), ("whole", show_whole, whole_trials)),
        *(("target", show_target, target_trials), ("short", show_short, None)),
    )
    for part, show, argument in parts:
        own = [result for result in results if result[0].part == part]
        if own:
            written[part] = {
                "runs": [{"proposer": job.names, "seed": job.seed, **found} for job, found in own],
                "summary": show(console, own, argument),
            }
    if args.json:
        args.json.write_text(json.dumps(written, indent=1) + "\n")


if __name__ == "__main__":
    main()
