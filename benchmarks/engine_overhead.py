"""Claim: the whole engine (propose, Ray, tell, SQL) handles hundreds of evaluations a second; others handle tens.

The evaluation does nothing, so that what is measured is what stands around it: 12 parameters, 2 objectives, SQLite in a
file, two Ray workers. Beside it, in the same run: Ray Tune with reused actors, and `study.optimize` on Optuna's
RDBStorage.

python benchmarks/engine_overhead.py [--quick] [--json PATH] [--trials 3000]
"""

import argparse
import json
import logging
import os
import sys
import tempfile
import time
import warnings
from contextlib import closing
from pathlib import Path

os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")

import optuna
import ray
from ray import tune
from rich.console import Console
from rich.table import Table

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from search.engine.engine import SearchEngine  # noqa: E402
from search.engine.portfolio import Portfolio  # noqa: E402
from search.engine.termination import Stopping  # noqa: E402
from search.evaluators import Evaluation  # noqa: E402
from search.evaluators.ray_pool import RayPool  # noqa: E402
from search.problem.objectives import OBJECTIVES, Objectives  # noqa: E402
from search.problem.space import ScheduleSpace  # noqa: E402
from search.proposers.catalogue import make_proposers  # noqa: E402
from search.stages.sql_trial_store import SqlTrialStore  # noqa: E402
from studies import StudyStore  # noqa: E402

N_BLOCKS, WORKERS = 12, 2
WARM_UP = 64


def harm(schedule):
    return sum(s * s / (1 + block) for block, s in enumerate(schedule))


class NoWork:
    """A worker that has the answer at once."""

    def start(self, device, halvings):
        return self

    def evaluate(self, task):
        return Evaluation(task, {"kl": harm(task.schedule), "perplexity": 1.0})


def ours(folder, sampler, trials):
    space = ScheduleSpace(N_BLOCKS)
    objectives = Objectives(lambda schedule: 100.0 * (1 - schedule.overall))
    with StudyStore(f"sqlite:///{folder}/{sampler.replace(',', '-')}.db") as store:
        store.studies.create("bench", {}, OBJECTIVES)
        with store.runs.lease("bench") as lease, closing(RayPool(NoWork(), WORKERS)) as pool:
            portfolio = Portfolio(make_proposers(sampler, space, 0), 0)
            engine = SearchEngine(space, portfolio, pool, objectives, SqlTrialStore(store, "bench", lease, "bench"))
            engine.run(Stopping(WARM_UP))
            began = time.perf_counter()
            assert engine.run(Stopping(trials)) == trials
            seconds = time.perf_counter() - began
        assert store.trials.n_ended("bench") == trials + WARM_UP
    return trials / seconds


def ray_tune(folder, trials):
    class Trainable(tune.Trainable):
        def setup(self, config):
            pass

        def step(self):
            return {"kl": harm(self.config.values()), "done": True}

        def reset_config(self, new_config):
            return True

        def save_checkpoint(self, checkpoint_dir):
            return {}

        def load_checkpoint(self, checkpoint):
            pass

    ray.init(address="local", num_cpus=WORKERS, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    tuner = tune.Tuner(
        Trainable,
        param_space={f"s_{index}": tune.uniform(0.0, 0.95) for index in range(N_BLOCKS)},
        tune_config=tune.TuneConfig(num_samples=trials, metric="kl", mode="min", reuse_actors=True),
        run_config=tune.RunConfig(storage_path=str(folder), name="tune", verbose=0),
    )
    began = time.perf_counter()
    results = tuner.fit()
    assert len(results) == trials
    assert results.num_errors == 0
    seconds = time.perf_counter() - began
    ray.shutdown()
    return trials / seconds


def optuna_storage(folder, trials):
    def objective(trial):
        schedule = [trial.suggest_float(f"s_{index}", 0.0, 0.95, step=0.05) for index in range(N_BLOCKS)]
        return harm(schedule), 1 - sum(schedule)

    study = optuna.create_study(
        storage=f"sqlite:///{folder}/optuna.db",
        directions=["minimize"] * 2,
        sampler=optuna.samplers.NSGAIISampler(seed=0),
    )
    began = time.perf_counter()
    study.optimize(objective, n_trials=trials)
    return trials / (time.perf_counter() - began)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer trials: at most 60 s")
    parser.add_argument("--json", type=Path, help="write all figures here")
    parser.add_argument("--trials", type=int, default=3000)
    args = parser.parse_args()
    trials, others = (400, 60) if args.quick else (args.trials, 200)
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    logging.getLogger("ray").setLevel(logging.ERROR)
    warnings.simplefilter("ignore")
    with tempfile.TemporaryDirectory() as folder:
        rows = [
            ("this engine, deap", trials, ours(folder, "deap", trials)),
            ("this engine, evopress", trials, ours(folder, "evopress", trials)),
            ("this engine, portfolio", trials, ours(folder, "portfolio", trials)),
            ("Ray Tune, reused actors", others, ray_tune(folder, others)),
            ("study.optimize, RDBStorage", others, optuna_storage(folder, others)),
        ]
    table = Table(title=f"Evaluations that do nothing, {N_BLOCKS} parameters, {WORKERS} workers, SQLite")
    for heading in ("", "trials", "evaluations/s", "deap's engine is faster by"):
        table.add_column(heading, justify="right" if heading else "left")
    first = rows[0][2]
    for name, n, rate in rows:
        table.add_row(name, str(n), f"{rate:.0f}", f"{first / rate:.1f}x")
    console = Console(width=120)
    console.print(table)
    console.print(f"At least 300 evaluations/s: {'holds' if first >= 300 else 'does not hold'} ({first:.0f})")
    if args.json:
        args.json.write_text(
            json.dumps([{"row": name, "trials": n, "per_second": rate} for name, n, rate in rows], indent=1) + "\n"
        )


if __name__ == "__main__":
    main()
