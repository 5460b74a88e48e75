"""Claim: one engine keeps hundreds of workers busy, where waiting for generations leaves most of them idle.

Workers are simulated: an evaluation sleeps for 0.2 to 2 s, heavy-tailed, in real time; everything else (proposing, SQL
in a file, telling) is the engine's real work. A worker holds two tasks, as those of the Ray pool do. Utilisation is
the share of all workers' time in which they slept, up to when the last task was handed out: what follows is the same
for everybody.

python benchmarks/engine_scale.py [--quick] [--json PATH] [--sampler deap]
"""

import argparse
import heapq
import json
import random
import sys
import tempfile
import time
from collections import deque
from pathlib import Path

from rich.console import Console
from rich.table import Table

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from search.engine.engine import SearchEngine  # noqa: E402
from search.engine.portfolio import Portfolio  # noqa: E402
from search.engine.termination import Stopping  # noqa: E402
from search.evaluators import Evaluation  # noqa: E402
from search.problem.objectives import OBJECTIVES, Objectives  # noqa: E402
from search.problem.space import ScheduleSpace  # noqa: E402
from search.proposers.catalogue import make_proposers  # noqa: E402
from search.stages.sql_trial_store import SqlTrialStore  # noqa: E402
from studies import StudyStore  # noqa: E402

N_BLOCKS = 12
SHORTEST_S, LONGEST_S, TAIL = 0.2, 2.0, 1.2
IN_ACTOR = 2


class SleepingWorkers:
    """Workers that sleep, as a queue of moments at which they wake up; all in one thread, in real time.

    `utilisation` is set when the last of all tasks is submitted: what follows is the same for everybody.
    """

    def __init__(self, n_workers, seed, n_tasks):
        self.n_workers = n_workers
        self.capacity = 3 * n_workers
        self.utilisation = None
        self._n_left = n_tasks
        self._asleep_s = 0.0
        self._rng = random.Random(seed)
        self._waking = []
        self._held = [deque() for _ in range(n_workers)]
        self._backlog = deque()
        # Workers with room, those with nothing to do first.
        self._room = deque(list(range(n_workers)) * IN_ACTOR)
        self._began = time.perf_counter()

    def submit(self, task):
        now = time.perf_counter()
        self._backlog.append(task)
        self._feed(now)
        self._n_left -= 1
        if self._n_left == 0:
            still = sum(max(0.0, moment - now) for moment, *_ in self._waking)
            self.utilisation = (self._asleep_s - still) / (self.n_workers * (now - self._began))

    def next_results(self, timeout_s=None):
        if not self._waking:
            return []
        pause = self._waking[0][0] - time.perf_counter()
        if pause > 0:
            time.sleep(pause if timeout_s is None else min(pause, timeout_s))
        results = []
        while self._waking and self._waking[0][0] <= time.perf_counter():
            moment, worker, task, slept = heapq.heappop(self._waking)
            kl = sum(s * s / (1 + block) for block, s in enumerate(task.schedule))
            results.append(Evaluation(task, {"kl": kl, "perplexity": 1.0}, seconds=slept))
            self._held[worker].popleft()
            # The worker went on by itself, at the moment at which it woke up.
            if self._held[worker]:
                self._sleep(worker, moment)
            self._room.append(worker)
        self._feed(time.perf_counter())
        return results

    def close(self):
        self._backlog.clear()

    def _feed(self, now):
        while self._backlog and self._room:
            worker = self._room.popleft()
            self._held[worker].append(self._backlog.popleft())
            if len(self._held[worker]) == 1:
                self._sleep(worker, now)

    def _sleep(self, worker, moment):
        seconds = min(LONGEST_S, SHORTEST_S * (1.0 - self._rng.random()) ** (-1 / TAIL))
        self._asleep_s += seconds
        task = self._held[worker][0]
        heapq.heappush(self._waking, (moment + seconds, worker, task, seconds))


def run(n_workers, generation, trials, sampler):
    space, objectives = ScheduleSpace(N_BLOCKS), Objectives(lambda schedule: 100.0 * (1 - schedule.overall))
    with tempfile.TemporaryDirectory() as folder, StudyStore(f"sqlite:///{folder}/studies.db") as store:
        store.studies.create("bench", {}, OBJECTIVES)
        with store.runs.lease("bench") as lease:
            workers = SleepingWorkers(n_workers, 0, trials)
            portfolio = Portfolio(make_proposers(sampler, space, 0), 0)
            trial_store = SqlTrialStore(store, "bench", lease, "bench")
            engine = SearchEngine(space, portfolio, workers, objectives, trial_store, generation=generation)
            began = time.perf_counter()
            assert engine.run(Stopping(trials)) == trials
            seconds = time.perf_counter() - began
    return {
        "workers": n_workers,
        "mode": "asynchronous" if generation is None else f"generations of {generation}",
        "sampler": sampler,
        "trials": trials,
        "utilisation": workers.utilisation,
        "per_second": trials / seconds,
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer workers and trials: at most 60 s")
    parser.add_argument("--json", type=Path, help="write all figures here")
    parser.add_argument("--sampler", default="deap", help="who proposes")
    args = parser.parse_args()
    sizes, each = ((64, 256), 8) if args.quick else ((4, 16, 64, 256), 40)
    rows = []
    for n_workers in sizes:
        for generation in (None, n_workers):
            rows.append(run(n_workers, generation, each * n_workers, args.sampler))
    table = Table(title=f"Evaluations of {SHORTEST_S:g} to {LONGEST_S:g} s, proposals of {args.sampler}")
    for heading in ("workers", "mode", "trials", "utilisation", "evaluations/s"):
        table.add_column(heading, justify="left" if heading == "mode" else "right")
    for row in rows:
        table.add_row(
            str(row["workers"]),
            row["mode"],
            str(row["trials"]),
            f"{row['utilisation']:.1%}",
            f"{row['per_second']:.0f}",
        )
    console = Console(width=120)
    console.print(table)
    own = next(row for row in rows if row["workers"] == 256 and row["mode"] == "asynchronous")["utilisation"]
    console.print(f"At least 95 % of 256 workers: {'holds' if own >= 0.95 else 'does not hold'} ({own:.1%})")
    if args.json:
        args.json.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
