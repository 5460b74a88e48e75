"""Claim: wide trials cost little to keep, and no more as they become many. Our storage against Optuna's, in one run.

python benchmarks/storage.py [--quick] [--json PATH] [--trials N] [--backend sqlite|postgresql]

A trial has 32 float parameters and 2 objectives. The rows of PostgreSQL need its programs (tests/system-deps.sh); the
server is the benchmark's own, on this machine.
"""

import argparse
import json
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack
from datetime import UTC, datetime
from pathlib import Path

import optuna
from optuna.distributions import FloatDistribution
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from studies import StudyStorage, StudyStore, Trial, TrialState, front  # noqa: E402
from tests.conftest import find_program  # noqa: E402
from tests.studies.postgres import PostgresServer  # noqa: E402

WIDTH = 32
SPACE = {f"block_{index}": FloatDistribution(0.0, 1.0) for index in range(WIDTH)}
DIRECTIONS = ["minimize", "minimize"]
BLOCK = 1000


def finished(rng, n):
    return [
        optuna.trial.create_trial(
            params={name: rng.random() for name in SPACE},
            distributions=SPACE,
            values=[rng.random(), rng.random()],
        )
        for _ in range(n)
    ]


def record(rng, number):
    return Trial(
        number=number,
        schedule=tuple(rng.random() for _ in range(WIDTH)),
        values=(rng.random(), rng.random()),
        state=TrialState.FINISHED,
        fidelity=1.0,
        proposer="deap",
        seconds=0.1,
        finished_at=datetime.now(UTC),
        metrics={"kl": 0.5, "perplexity": 1.5},
    )


def new_study(storage):
    sampler = optuna.samplers.RandomSampler(seed=0)
    return optuna.create_study(storage=storage, directions=DIRECTIONS, sampler=sampler)


def added_per_second(storage, trials):
    """Finished trials a second through `optuna.Study.add_trial`, one transaction each."""
    study = new_study(storage)
    study.add_trial(trials[0])
    started = time.perf_counter()
    for trial in trials[1:]:
        study.add_trial(trial)
    return (len(trials) - 1) / (time.perf_counter() - started)


def ask_tell_ms(storage, repeats):
    """Median time of one ask with 32 parameters and one tell, in milliseconds."""
    study = new_study(storage)
    times = []
    for _ in range(repeats + 2):
        started = time.perf_counter()
        study.tell(study.ask(SPACE), [0.5, 0.5])
        times.append(time.perf_counter() - started)
    # The first ones also make the parameters known.
    return 1000 * statistics.median(times[2:])


def append_all(store, name, n, rng, advance):
    """Seconds of each of `n` appends through `StudyStore.trials.append`, one transaction each."""
    store.studies.create(name, {}, ("kl", "latency_ms"))
    times = []
    for number in range(n):
        trial = record(rng, number)
        started = time.perf_counter()
        store.trials.append(name, trial)
        times.append(time.perf_counter() - started)
        advance()
    return times


def appended_in_turn(store, n, other_url, rng):
    """Median microseconds of 1,000 more appends to a study of `n` trials, and of 1,000 to an empty one elsewhere.

    They take turns, because the machine's pace drifts by more than what is to be seen here.
    """
    with StudyStore(other_url) as other:
        other.studies.create("wide", {}, ("kl", "latency_ms"))
        times = ([], [])
        for turn in range(BLOCK):
            for place, number, own in ((store, n + turn, times[0]), (other, turn, times[1])):
                trial = record(rng, number)
                started = time.perf_counter()
                place.trials.append("wide", trial)
                own.append(time.perf_counter() - started)
    return [1e6 * statistics.median(own) for own in times]


LOAD = """
import json, sys, time
import optuna
optuna.logging.set_verbosity(optuna.logging.ERROR)
url, name, ours = sys.argv[1], sys.argv[2], sys.argv[3] == "ours"
from studies import StudyStorage
storage = StudyStorage(url, create=False) if ours else optuna.storages.RDBStorage(url)
started = time.perf_counter()
trials = optuna.load_study(study_name=name, storage=storage).get_trials(deepcopy=False)
seconds = time.perf_counter() - started
# Not ru_maxrss: that counts what the process was before it became this program.
[peak] = [line for line in open("/proc/self/status") if line.startswith("VmHWM")]
print(json.dumps([len(trials), seconds, 1024 * int(peak.split()[1])]))
"""


def load(url, name, side):
    """Trials, seconds and peak bytes of a fresh process that loads a study."""
    done = subprocess.run(
        [sys.executable, "-c", LOAD, url, name, side], cwd=ROOT, check=True, capture_output=True, text=True
    )
    return json.loads(done.stdout)


def measure(backend, new_url, args, advance):
    rng = random.Random(0)
    rows = []

    def row(claim, ours, theirs, unit, ratio=None, target=""):
        rows.append(
            {"backend": backend, "claim": claim, "ours": ours, "optuna": theirs, "unit": unit, "ratio": ratio}
            | {"target": target}
        )

    n_ours, n_theirs = (1500, 80) if args.quick else (5000, 400)
    ours, theirs_url = StudyStorage(new_url()), new_url()
    theirs = optuna.storages.RDBStorage(theirs_url)
    added = added_per_second(ours, finished(rng, n_ours))
    advance()
    optunas = added_per_second(theirs, finished(rng, n_theirs))
    advance()
    goal = 50 if backend == "sqlite" else None
    row("finished trials through Study.add_trial", added, optunas, "1/s", added / optunas, goal and f">= {goal}x")
    url = new_url()
    with StudyStore(url) as store:
        times = append_all(store, "wide", args.trials, rng, advance)
        rate = args.trials / sum(times)
        row("finished trials through StudyStore.trials.append", rate, optunas, "1/s", rate / optunas, ">= 100x")
        last, first = appended_in_turn(store, args.trials, new_url(), rng)
        row(
            f"an append to {args.trials} trials, against one to an empty study",
            last,
            None,
            "us",
            last / first,
            "<= 1.2x",
        )
        started = time.perf_counter()
        trials = store.trials.of("wide")
        row("StudyStore.trials.of", time.perf_counter() - started, None, "s")
        started = time.perf_counter()
        n_front = len(front(trials))
        row(f"front of {len(trials)} trials ({n_front} on it)", time.perf_counter() - started, None, "s", None, "< 1 s")
        del trials
    asked, optunas_asked = ask_tell_ms(ours, 60 if args.quick else 300), ask_tell_ms(theirs, 8 if args.quick else 40)
    row("ask and tell, RandomSampler", asked, optunas_asked, "ms", optunas_asked / asked, ">= 20x")
    advance()
    n, seconds, peak = load(url, "wide", "ours")
    n_other, other_seconds, other_peak = load(theirs_url, theirs.get_all_studies()[0].study_name, "optuna")
    per_trial = (other_seconds / n_other) / (seconds / n)
    row(f"load {n} trials (Optuna: {n_other}; ratio by trial)", seconds, other_seconds, "s", per_trial, "< 3 s")
    row("peak memory of the process that loads them", peak / 1e6, other_peak / 1e6, "MB", None, "< 400 MB")
    advance()
    return rows


def show(value):
    return "-" if value is None else f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer trials, at most 60 s on 2 cores")
    parser.add_argument("--json", type=Path, help="write the rows here too")
    parser.add_argument("--trials", type=int, help="size of the large study; default 100,000, or 10,000 with --quick")
    parser.add_argument("--backend", choices=["sqlite", "postgresql"], help="only this one")
    args = parser.parse_args()
    args.trials = args.trials or (10_000 if args.quick else 100_000)
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    console, rows = Console(width=120), []
    with ExitStack() as stack:
        folder = Path(tempfile.mkdtemp(prefix="ftp-storage-"))
        stack.callback(shutil.rmtree, folder)
        made = iter(range(100))
        backends = {"sqlite": lambda: f"sqlite:///{folder / f'{next(made)}.db'}"}
        initdb = find_program("initdb")
        if initdb is not None:
            server = PostgresServer(initdb.parent)
            stack.callback(server.remove)
            backends["postgresql"] = server.new_database
        else:
            console.print("PostgreSQL: not measured, its programs are not installed (tests/system-deps.sh)")
        wanted = [name for name in backends if args.backend in (None, name)]
        progress = stack.enter_context(Progress(console=Console(stderr=True)))
        for name in wanted:
            bar = progress.add_task(name, total=args.trials + 4)
            rows += measure(name, backends[name], args, lambda bar=bar: progress.advance(bar))
    table = Table(title=f"{WIDTH} parameters, 2 objectives a trial; optuna {optuna.__version__} RDBStorage")
    for heading in ("backend", "what", "ours", "Optuna", "unit", "ratio", "target"):
        table.add_column(heading, justify="left" if heading in ("backend", "what") else "right")
    for one in rows:
        ratio = "-" if one["ratio"] is None else f"{one['ratio']:.3g}x"
        cells = (one["backend"], one["claim"], show(one["ours"]), show(one["optuna"]), one["unit"], ratio)
        table.add_row(*cells, one["target"] or "")
    console.print(table)
    if args.json:
        args.json.write_text(json.dumps({"rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
