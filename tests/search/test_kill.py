"""Whatever kills a search, and however often: nothing that was reported is lost, and nothing is done twice."""

from __future__ import annotations

import os
import random
import signal
import sqlite3
import subprocess
import time
from contextlib import closing, suppress
from pathlib import Path

import pytest

from studies import StudyStore, Trial, front
from studies.records.study_facts import StudyFacts
from tests.search.command import COMMAND, run_process

KILLS = 8
SMALL = (
    *("--trials", "200", "--workers", "1", "--rounds", "0", "--deterministic"),
    *("--search-items", "16", "--calibration-items", "16", "--validation-items", "8", "--test-items", "8"),
)


def _results(trials: list[Trial]) -> list[tuple[object, ...]]:
    return [(trial.number, trial.schedule, trial.values, trial.proposer) for trial in trials]


def _run_until_killed(arguments: tuple[str, ...], folder: Path, store: StudyStore, after_s: float) -> list[Trial]:
    """Start a search, kill it some time after its first result, and give what it had reported by then."""
    before = store.trials.n_ended("killed")
    running = subprocess.Popen(
        [*COMMAND, *arguments],
        cwd=folder,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        while running.poll() is None and store.trials.n_ended("killed") == before:
            time.sleep(0.02)
        time.sleep(after_s)
        reported = store.trials.of("killed")
        assert running.poll() is None, running.communicate()[1]
    finally:
        running.kill()
        running.wait()
        if running.stderr is not None:
            running.stderr.close()
        # Ray's own processes notice by themselves that their driver is gone, but later than the next one starts.
        with suppress(ProcessLookupError):
            os.killpg(running.pid, signal.SIGKILL)
    return reported


@pytest.mark.slow
@pytest.mark.timeout(2400)
def test_a_search_that_is_killed_again_and_again_finds_what_an_uninterrupted_one_finds(tmp_path: Path) -> None:
    whole = run_process("search", "--name", "whole", *SMALL, cwd=tmp_path, timeout=600)
    assert whole.code == 0, whole.err
    rng = random.Random(0)
    with StudyStore(f"sqlite:///{tmp_path / 'ftp-studies.db'}", create=False) as store:
        expected = store.trials.of("whole")
        # The second study predicts from the first one's latency profile: what both predict is the same.
        config = store.studies.get("whole").config | {"out": str(tmp_path / "ftp-out" / "killed")}
        store.studies.create("killed", config, store.studies.get("whole").objectives)
        profile = store.studies.get("whole").facts.latency_profile
        store.studies.update_facts("killed", StudyFacts(latency_profile=profile))
        # But not its evaluations: those it shall make itself.
        with closing(sqlite3.connect(tmp_path / "ftp-studies.db")) as raw, raw:
            raw.execute("DELETE FROM evaluation")
        for _ in range(KILLS):
            reported = _run_until_killed(("resume", "killed"), tmp_path, store, rng.uniform(0, 0.15))
            kept = store.trials.of("killed")
            assert {*_results(reported)} <= {*_results(kept)}
            assert len({trial.number for trial in kept}) == len({trial.schedule for trial in kept}) == len(kept)
        assert len(kept) < 200
        resumed = run_process("resume", "killed", cwd=tmp_path, timeout=600)
        assert resumed.code == 0, resumed.err
        trials = store.trials.of("killed")
        assert _results(trials) == _results(expected)
        assert _results(front(trials)) == _results(front(expected))
