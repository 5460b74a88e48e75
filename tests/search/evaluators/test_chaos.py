"""A whole search whose workers are killed at random: nothing is lost, and nothing happens twice."""

from __future__ import annotations

import os
import random
import signal
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import pytest

from ftp_core.skipping.skipping_model import SkippingModel
from ftp_core.text.encoding import EncodedExample
from search.engine.engine import SearchEngine
from search.engine.portfolio import Portfolio
from search.engine.termination import Stopping
from search.evaluators import Evaluation, Evaluator, Task
from search.evaluators.local import LocalEvaluator, ModelSetup
from search.evaluators.ray_pool import RayPool
from search.problem.objectives import OBJECTIVES, Objectives
from search.problem.space import ScheduleSpace
from search.proposers.catalogue import make_proposers
from search.stages.sql_trial_store import SqlTrialStore
from studies import StudyStore, Trial, TrialState, front
from tests.ftp_core.tiny_models import N_BLOCKS, fresh_tiny

TRIALS = 250
EVERY = 40
FIDELITIES = (0.5, 1.0)
ITEMS = [EncodedExample(tuple(range(1 + i, 30 + i)), ((9, 8, 7, 6),), 0, False) for i in range(8)]


class KnownByPid(ModelSetup):
    """Workers that leave their process's number in a folder."""

    def __init__(self, folder: Path, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._folder = folder

    def start(self, device: str, halvings: int) -> LocalEvaluator:
        evaluator = super().start(device, 0)
        (self._folder / str(os.getpid())).touch()
        return evaluator


class Deadly:
    """An evaluator whose workers are killed at random: one after every few answers, however long these take."""

    def __init__(self, pool: RayPool, folder: Path, seed: int) -> None:
        self._pool, self._folder, self._rng = pool, folder, random.Random(seed)
        self._answers = 0
        self.kills: list[int] = []

    @property
    def capacity(self) -> int:
        return self._pool.capacity

    def submit(self, task: Task) -> None:
        self._pool.submit(task)

    def next_results(self, timeout_s: float | None = None) -> list[Evaluation]:
        results = self._pool.next_results(timeout_s)
        self._answers += len(results)
        if self._answers >= EVERY * (len(self.kills) + 1):
            self._kill()
        return results

    def close(self) -> None:
        self._pool.close()

    def _kill(self) -> None:
        """Kill a worker; there may be none while they start again, then the next answers will do."""
        for path in self._rng.sample(sorted(self._folder.iterdir()), len(list(self._folder.iterdir()))):
            # Whoever started a worker's process, or has its number today, is let alone.
            with suppress(OSError):
                if b"ray::" in Path(f"/proc/{path.name}/cmdline").read_bytes():
                    os.kill(int(path.name), signal.SIGKILL)
                    self.kills.append(int(path.name))
                    return


def search(store: StudyStore, name: str, evaluator: Evaluator) -> list[Trial]:
    space = ScheduleSpace(N_BLOCKS)
    store.studies.create(name, {}, OBJECTIVES)
    with store.runs.lease(name) as lease:
        engine = SearchEngine(
            space,
            Portfolio(make_proposers("portfolio", space, 0), 0, by_trial=True),
            evaluator,
            Objectives(lambda schedule: 100 * (1 - schedule.overall)),
            # Each study of a context of its own: the second one shall evaluate everything anew.
            SqlTrialStore(store, name, lease, name),
            deterministic=True,
            fidelities=FIDELITIES,
        )
        assert engine.run(Stopping(TRIALS)) == TRIALS
    return store.trials.of(name)


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_a_search_whose_workers_are_killed_finds_what_an_undisturbed_one_finds(tmp_path: Path) -> None:
    model = SkippingModel(fresh_tiny())
    (tmp_path / "pids").mkdir()
    with StudyStore(f"sqlite:///{tmp_path / 'studies.db'}") as store:
        with closing(LocalEvaluator(model, ITEMS, FIDELITIES)) as alone:
            expected = search(store, "calm", alone)
        setup = KnownByPid(tmp_path / "pids", model, ITEMS, fidelities=FIDELITIES, prefix_bytes=2**22)
        with closing(Deadly(RayPool(setup, 3, trial_timeout_s=120), tmp_path / "pids", 0)) as deadly:
            found = search(store, "killed", deadly)
    assert len(set(deadly.kills)) >= TRIALS // EVERY - 1
    assert [trial.number for trial in found] == list(range(TRIALS))
    assert len({trial.schedule for trial in found}) == TRIALS
    assert not [trial.error for trial in found if trial.state is TrialState.FAILED]

    def facts(trials: list[Trial]) -> list[tuple[object, ...]]:
        return [(trial.number, trial.schedule, trial.state, trial.fidelity, trial.proposer) for trial in trials]

    assert facts(found) == facts(expected)
    for one, other in zip(found, expected, strict=True):
        # Threads of torch may add up in another order.
        assert one.values == pytest.approx(other.values, rel=1e-4, abs=1e-6)
    assert [point.number for point in front(found)] == [point.number for point in front(expected)]
