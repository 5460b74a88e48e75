"""Schedules of 30 to 80 blocks at a target: what proposers find after few evaluations; `search_quality.py` calls it.

A model is a formula of any depth (`tests/search/deep_objective.py`), whose search sets differ from the truth as 32
items do; or a real one, judged on items that no search saw. The figure is the KL of the schedule that is best on the
search set after so many evaluations, as a share of the KL of the shortened prompt at the same target, which is the
uniform schedule. The least that annealing found on the truth of 30 synthetic blocks is 0.45 at 25 %, and 0.61 at 40 %,
where blocks skip as a whole, without their keys and values. With halves, and keys and values kept, schedules are
compared at equal FLOPs saved.
"""

import math
import sys
import time
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from rich.table import Table

from ftp_core.quality.quality import QualitySet
from ftp_core.routers import StaticRouter
from ftp_core.schedule import MAX_SPARSITY, SparsitySchedule
from ftp_core.skipping.substitutes import give_substitutes
from ftp_core.training.substitution import fit_substitutes
from search.engine.ablations import plan_ablations, plan_design
from search.engine.engine import SearchEngine
from search.engine.portfolio import Portfolio
from search.engine.termination import Stopping
from search.evaluators import Evaluation
from search.evaluators.local import LocalEvaluator
from search.inputs.data import load_workload
from search.problem.cost_limit import CostLimit
from search.problem.costs import Costs
from search.problem.genes import FIRST_WITH_KEYS_KEPT
from search.problem.objectives import Objectives
from search.problem.space import ScheduleSpace
from search.proposers.catalogue import PORTFOLIO_NAME, learn_from_ablations, make_proposers
from tests.search.deep_objective import DeepObjective
from tests.search.synthetic import Notebook

NAMES = "random;tpe;nsga2;evopress;deap;cmaes;additive;portfolio"
BUDGETS = (30, 60, 100, 200)
TARGETS = (0.25, 0.4)
SHORTENED, PLATEAU = "shortened prompt", "plateau by hand"
PLATEAU_START = 0.57
# Calibration items, by default of a run; the first of them are searched on.
CALIBRATION_ITEMS, SEARCH_ITEMS, HELD_OUT_ITEMS = 96, 32, 64
# Share of the search set that ablations are evaluated on, as by default.
ABLATION_FIDELITY = 0.25
# What an evaluation of a small real model takes: proposers are credited per second.
EVALUATION_S = 1.0
# Most KL, as a share of the shortened prompt's, that the portfolio may leave, by granularity, target and evaluations.
LIMITS = {
    ("block", 0.25, 60): 0.6,
    ("block", 0.25, 200): 0.5,
    ("half", 0.25, 100): 0.3,
    ("half", 0.4, 100): 0.35,
}
# Parts of a block's FLOPs in SmolLM2-135M: its MLP, and the projections of keys and values.
MLP_SHARE, KV_SHARE = 0.75, 0.06
# Differences of shares below this are none.
TOLERANCE = 0.01


class SyntheticModel:
    """A formula."""

    def __init__(self, n_blocks, seed):
        self.n_blocks = n_blocks
        self._truth = DeepObjective(n_blocks)
        # The whole search set, and its first items, which ablations are evaluated on.
        self._drawn = [DeepObjective(n_blocks, seed, share) for share in (1.0, ABLATION_FIDELITY)]
        self._waiting = []

    capacity = 1

    def submit(self, task):
        self._waiting.append(task)

    def next_results(self, timeout_s=None):
        tasks, self._waiting = self._waiting, []
        return [Evaluation(task, {"kl": self._drawn[task.part](task.schedule)}, seconds=EVALUATION_S) for task in tasks]

    def close(self):
        self._waiting.clear()

    def evaluator(self):
        return self

    def held_out(self, schedule):
        return self._truth(schedule)

    def flops(self, schedule):
        """In those of a block."""
        of_queries = 1 - MLP_SHARE - KV_SHARE
        return sum(
            MLP_SHARE * (1 - mlp) + of_queries * (1 - attention) + KV_SHARE * (1 if keeps_kv else 1 - attention)
            for attention, mlp, keeps_kv in schedule.blocks
        )


class RealModel:
    """A model in this process, with the states behind equal beginnings of schedules."""

    def __init__(self, name, data, dtype, seed, rank):
        sizes = {"calibration": CALIBRATION_ITEMS, "validation": HELD_OUT_ITEMS, "test": 3}
        self._workload = load_workload(name, data, seed, sizes, dtype=dtype)
        self._skipping = self._workload.model.skipping
        self.n_blocks = self._skipping.n_blocks
        calibration = self._workload.splits["calibration"]
        if rank:
            maps = fit_substitutes(self._skipping, calibration, rank)
            give_substitutes(self._skipping.model, maps, self._skipping.blocks)
        self._evaluator = LocalEvaluator(
            self._skipping,
            calibration[:SEARCH_ITEMS],
            ablation_fidelity=ABLATION_FIDELITY,
            prefix_bytes=2**29,
        )
        self._known = {}

    def evaluator(self):
        return self._evaluator

    def held_out(self, schedule):
        if schedule not in self._known:
            self._known[schedule] = self._held_out.evaluate(schedule, StaticRouter()).kl
        return self._known[schedule]

    def flops(self, schedule):
        return self._flops(schedule)

    @cached_property
    def _flops(self):
        return Costs(self._skipping, 4, 256).function("flops")

    @cached_property
    def _held_out(self):
        return QualitySet(self._skipping, self._workload.splits["validation"])


@dataclass(frozen=True)
class Job:
    """The searches of one seed at one target, of a model of so many blocks or of a name."""

    model: int | str
    names: tuple[str, ...]
    target: float
    seed: int
    budgets: tuple[int, ...]
    granularity: str = "block"
    data: str = ""
    dtype: str = "bfloat16"
    threads: int = 1
    rank: int = 0


def plateau(n_blocks, target):
    """Blocks from 57 % of depth on, all alike."""
    first = round(PLATEAU_START * n_blocks)
    height = min(MAX_SPARSITY, target * n_blocks / (n_blocks - first))
    return SparsitySchedule([height * (block >= first) for block in range(n_blocks)])


def space_of(model, job):
    """Whole blocks without their keys and values at an overall sparsity, or halves with them at as many FLOPs saved."""
    if job.granularity == "block":
        return ScheduleSpace(model.n_blocks, job.target)
    dense = model.flops(SparsitySchedule.uniform(0.0, model.n_blocks))
    shortened = model.flops(SparsitySchedule.uniform(job.target, model.n_blocks))
    limit = CostLimit("target_flops_saved", 1 - shortened / dense, model.flops, dense)
    return ScheduleSpace(model.n_blocks, limits=(limit,), granularity="half", kv="keep", first=FIRST_WITH_KEYS_KEPT)


def search(space, names, model, trials, seed):
    """The trials of one search, as a user's of so many begins."""
    book, portfolio = Notebook(), Portfolio(make_proposers(names, space, seed), seed)
    ablations = plan_ablations(space, trials, names, ABLATION_FIDELITY)[0]
    judge = Objectives(model.flops)
    engine = SearchEngine(
        space,
        portfolio,
        model.evaluator(),
        judge,
        book,
        seed=seed,
        ablations=ablations,
        ablation_fidelity=ABLATION_FIDELITY,
        design=plan_design(space, trials),
    )
    engine.run(Stopping(trials))
    return book.trials()


def best_at(trials, budgets):
    """The schedule that is best on the search set after each budget, in whole evaluations; None if there is none."""
    best, spent, found = (math.inf, None), 0.0, {}
    for trial in trials:
        spent += trial.evaluations
        for budget in budgets:
            if spent > budget + 1e-9:
                found.setdefault(budget, best[1])
        if trial.total_violation == 0 and trial.fidelity == 1 and trial.values[0] < best[0]:
            best = (trial.values[0], trial.schedule)
    return [found.get(budget, best[1]) for budget in budgets]


def run(job):
    """KL of what each proposer found, as shares of the shortened prompt's, at each budget."""
    torch.set_num_threads(job.threads)
    if isinstance(job.model, int):
        model = SyntheticModel(job.model, job.seed)
    else:
        model = RealModel(job.model, job.data, job.dtype, job.seed, job.rank)
    space = space_of(model, job)
    whole = model.held_out(SparsitySchedule.uniform(job.target, model.n_blocks))
    shares = {PLATEAU: [model.held_out(plateau(model.n_blocks, job.target)) / whole] * len(job.budgets)}
    seconds = {}
    for names in job.names:
        began, found = time.monotonic(), []
        # What a search begins with depends on its length, where it makes ablations.
        together = not learn_from_ablations(names)
        for budgets in [job.budgets] if together else [(budget,) for budget in job.budgets]:
            found += best_at(search(space, names, model, budgets[-1], job.seed), budgets)
        shares[names] = [model.held_out(SparsitySchedule.of(one)) / whole for one in found]
        seconds[names] = time.monotonic() - began
        if isinstance(job.model, str):
            figures = " ".join(f"{share:.3f}" for share in shares[names])
            print(f"seed {job.seed}, {job.target:.0%}: {names} {figures}, {seconds[names]:.0f} s", file=sys.stderr)
    return job, {"shortened_kl": whole, "shares": shares, "seconds": seconds}


def jobs_of(models, args, names):
    # Formulas are of a model where nothing stands in for what tokens skip, and whole blocks have nothing that does.
    rank = args.substitute if args.model and args.granularity == "half" else 0
    return [
        Job(model, names, target, seed, args.budgets, args.granularity, args.data, args.dtype, args.threads, rank)
        for model in models
        for target in args.targets
        for seed in range(args.seeds)
    ]


def show(console, results):
    """One table for each model and target, and then which claims hold."""
    checks = []
    for model, target in dict.fromkeys((job.model, job.target) for job, _ in results):
        own = [found for job, found in results if (job.model, job.target) == (model, target)]
        job = results[0][0]
        budgets, skips = job.budgets, "halves, keys and values kept" if job.granularity == "half" else "whole blocks"
        skips += f", substitutes of rank {job.rank}" if job.rank else ""
        name = f"{model} synthetic blocks" if isinstance(model, int) else str(model).rstrip("/").rpartition("/")[2]
        kl, setting = np.mean([found["shortened_kl"] for found in own]), f"{name}, {skips}, {target:.0%}"
        shown = Table(
            title=f"{setting}: KL as a share of the shortened prompt's ({kl:.3f}), mean and range of {len(own)} seeds"
        )
        for heading in ("proposer", *(f"{budget} evaluations" for budget in budgets)):
            shown.add_column(heading, justify="left" if heading == "proposer" else "right")
        shares = {names: np.array([found["shares"][names] for found in own]) for names in own[0]["shares"]}
        for names, by_seed in shares.items():
            cells = zip(by_seed.mean(0), by_seed.min(0), by_seed.max(0), strict=True)
            shown.add_row(names, *(f"{mean:.3f} [{low:.3f}, {high:.3f}]" for mean, low, high in cells))
        console.print(shown)
        if PORTFOLIO_NAME in shares:
            shares[SHORTENED] = np.ones((len(own), len(budgets)))
            checks += claims(setting, (job.granularity, target), budgets, shares)
    for check in checks:
        console.print(f"{check['claim']}: {'holds' if check['holds'] else 'does not hold'} ({check['measured']})")
    console.print(f"{sum(check['holds'] for check in checks)} of {len(checks)} claims hold.")
    return checks


def claims(name, setting, budgets, shares):
    """Whether the portfolio keeps the limits, and is nowhere behind another."""
    own, found = shares[PORTFOLIO_NAME].mean(0), []
    for place, budget in enumerate(budgets):
        if (limit := LIMITS.get((*setting, budget))) is not None:
            claim = f"{name}: at most {limit:.2f} after {budget}"
            found.append({"claim": claim, "measured": f"{own[place]:.3f}", "holds": bool(own[place] <= limit)})
    for place, budget in enumerate(budgets):
        best, other = min((values.mean(0)[place], names) for names, values in shares.items() if names != PORTFOLIO_NAME)
        measured = f"{own[place]:.3f} against {best:.3f} of {other}"
        claim = f"{name}: never behind after {budget}"
        found.append({"claim": claim, "measured": measured, "holds": bool(own[place] <= best + TOLERANCE)})
    return found
