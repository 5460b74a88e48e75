"""A pipeline that is killed in the middle of every stage, and resumed, exports what an uninterrupted one exports."""

from __future__ import annotations

import json
import os
import re
import signal
import sqlite3
import subprocess
import sys
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import pytest

from studies import StudyStore
from tests.search.command import rely_on_profile, run_process

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]

SIZES = (
    *("--deterministic", "--workers", "1", "--trials", "24"),
    *("--search-items", "8", "--calibration-items", "24", "--validation-items", "12", "--test-items", "12"),
    *("--measured-points", "4", "--timed-runs", "2"),
)
# Operations as the cost and a target: what is selected depends on no clock.
SMALL = (
    *SIZES,
    *("--cost", "flops", "--target-sparsity", "0.4", "--router-schedules", "1"),
    *("--rounds", "1", "--refine-trials", "20", "--router-trials", "2", "--router-steps", "12"),
)
# A training keeps its state at so many steps.
KEPT = 10


def deaths(steps: int) -> list[tuple[str, int]]:
    """Where to die: the stage, and after how many signs of life, one for each of so many steps of a training.

    In `distill-1` a step behind the kept state of the second router's training: the first one's is the tuning's, and
    has ended with that.
    """
    assert steps > KEPT + 1, "the tuned training is too short to die in it behind its kept state"
    return [
        *(("search", 1), ("tune", 1), ("distill-1", KEPT + 1), ("refine-1", 1), ("measure", 3), ("select", 0)),
        *(("test", 3), ("time", 0), ("export", 0), ("report", 0)),
    ]


def die(stage: str, n: int, folder: Path, *arguments: str) -> None:
    running = subprocess.Popen(
        [sys.executable, "-m", "tests.search.dying", stage, str(n), *arguments],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        _, err = running.communicate(timeout=600)
        assert running.returncode == -signal.SIGKILL, err
    finally:
        with suppress(ProcessLookupError):
            os.killpg(running.pid, signal.SIGKILL)


def _exported(folder: Path) -> dict[str, Any]:
    """The files that an exported model is made of, without the moment at which its study began and what was timed."""
    files: dict[str, Any] = {path.name: path.read_bytes() for path in (folder / "ftp-out/one/model").iterdir()}
    origin = json.loads(files["schedule.json"])
    assert origin.pop("study_created_at")
    card = re.sub(rb"\| [\d.]+ \[[\d.]+, [\d.]+\] \|$", b"", files["README.md"], flags=re.MULTILINE)
    assert len(files["README.md"].splitlines()) == len(card.splitlines()) and card != files["README.md"]
    return files | {"schedule.json": origin, "README.md": card}


def _trials(store: StudyStore) -> list[tuple[object, ...]]:
    return [(t.number, t.schedule, t.values, t.proposer, t.round, t.router) for t in store.trials.of("one")]


def test_a_pipeline_that_is_killed_in_every_stage_exports_what_an_uninterrupted_one_does(tmp_path: Path) -> None:
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    for folder in (whole, killed):
        folder.mkdir()
    result = run_process("run", "--name", "one", *SMALL, cwd=whole, timeout=600)
    assert result.code == 0, result.err
    url = "sqlite:///{}/ftp-studies.db"
    with StudyStore(url.format(whole), create=False) as store:
        steps = store.routers.of("one")[0].config["steps"]
    for stage, n in deaths(steps):
        begun = ("resume", "one") if (killed / "ftp-studies.db").exists() else ("run", "--name", "one", *SMALL)
        die(stage, n, killed, *begun)
        with StudyStore(url.format(killed), create=False) as store:
            states = {one.name: one.state for one in store.runs.stages("one")}
            work = store.trials.n_ended("one"), len(store.routers.of("one"))
        assert states.pop(stage) == "stopped" and set(states.values()) <= {"finished"}
        if stage == "search":
            assert 0 < work[0] < 24
        elif stage == "refine-1":
            assert 24 < work[0] < 44
        elif stage in ("tune", "distill-1"):
            # Died in the middle of a training, at last of the second router: what it found is still unfinished work.
            assert work == (24, int(stage == "distill-1")) and any(
                (killed / "ftp-studies.db-artifacts/unfinished").iterdir()
            )
    resumed = run_process("resume", "one", cwd=killed, timeout=600)
    assert resumed.code == 0, resumed.err
    with (
        StudyStore(url.format(whole), create=False) as expected,
        StudyStore(url.format(killed), create=False) as found,
    ):
        assert _trials(found) == _trials(expected)
        assert [run.sha256 for run in found.routers.of("one")] == [run.sha256 for run in expected.routers.of("one")]
    assert _exported(killed) == _exported(whole)
    # Nothing of unfinished work stays behind.
    assert not any((killed / "ftp-studies.db-artifacts/unfinished").iterdir())
    with closing(sqlite3.connect(killed / "ftp-studies.db")) as raw:
        assert raw.execute("SELECT count(*) FROM trial WHERE state IN (0, 4)").fetchone() == (0,)


def test_what_is_selected_by_predicted_latency_survives_kills_too(tmp_path: Path) -> None:
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    for folder in (whole, killed):
        folder.mkdir()
    options = (*SIZES, "--rounds", "0", "--router-trials", "0", "--latency-length", "256")
    shape = ("--batch", "8", "--length", "256", "--profile-seconds", "10")
    result = run_process("profile", *shape, cwd=whole, timeout=600)
    assert result.code == 0, result.err
    profile = rely_on_profile(whole)
    result = run_process("run", "--name", "one", *options, cwd=whole, timeout=600)
    assert result.code == 0, result.err
    url = "sqlite:///{}/ftp-studies.db"
    # A profile is measured once on a machine: both runs go by the same one.
    StudyStore(url.format(killed)).close()
    with closing(sqlite3.connect(killed / "ftp-studies.db")) as raw:
        raw.execute(
            "INSERT INTO latency_profile (fingerprint, conditions, profile, created_at) VALUES (?, ?, ?, ?)", profile
        )
        raw.commit()
    die("measure", 3, killed, "run", "--name", "one", *options)
    die("select", 0, killed, "resume", "one")
    resumed = run_process("resume", "one", cwd=killed, timeout=600)
    assert resumed.code == 0, resumed.err
    with (
        StudyStore(url.format(whole), create=False) as expected,
        StudyStore(url.format(killed), create=False) as found,
    ):
        assert _trials(found) == _trials(expected)
        selected = [store.studies.get("one").facts.selection for store in (expected, found)]
    assert selected[0] == selected[1] and selected[0] is not None and selected[0].rule == "knee"
    assert "is predicted to take" in selected[0].reason
    assert _exported(killed) == _exported(whole)
