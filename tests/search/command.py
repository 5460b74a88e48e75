"""Runs `ftp-search` as a user would, in a process of its own or in this one."""

from __future__ import annotations

import json
import os
import signal
import sqlite3
import subprocess
import sys
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from ftp_core.cost import LatencyProfile
from search.cli import main

COMMAND = [sys.executable, "-m", "search"]


@dataclass(frozen=True)
class Result:
    """What a command left behind."""

    code: int
    out: str
    err: str

    def json(self) -> Any:
        return json.loads(self.out)


def heed_signals() -> None:
    """Undo, in a process that is about to start, that jobs in a shell's background ignore Ctrl-C."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def run_process(*arguments: str | Path, cwd: Path, timeout: float = 480, **environment: str) -> Result:
    done = subprocess.run(
        [*COMMAND, *map(str, arguments)],
        cwd=cwd,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )
    return Result(done.returncode, done.stdout, done.stderr)


def run_here(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], cwd: Path, *arguments: str | Path
) -> Result:
    monkeypatch.chdir(cwd)
    monkeypatch.setattr(sys, "argv", ["ftp-search", *map(str, arguments)])
    with pytest.raises(SystemExit) as exit_:
        main()
    captured = capsys.readouterr()
    return Result(int(exit_.value.code or 0), captured.out, captured.err)


def evaluate_here(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let searches of this process evaluate in it: what workers do is what `ModelSetup` starts there."""
    monkeypatch.setattr("search.evaluators.ray_pool.RayPool", lambda setup, *_, **__: setup.start("cpu", 0))


def rely_on_profile(folder: Path) -> tuple[Any, ...]:
    """Let studies of a database rely on its latency profile, however busy the machine was when it was measured.

    Later studies measure a doubtful profile anew, and have other latencies than those before.

    Returns:
        The row of the profile.
    """
    with closing(sqlite3.connect(folder / "ftp-studies.db")) as raw, raw:
        [row] = raw.execute("SELECT fingerprint, conditions, profile, created_at FROM latency_profile").fetchall()
        profile = LatencyProfile.from_json(json.loads(row[2]))
        certain = [
            replace(shape, waited=0.0, uncertainty=0.01, check_error=0.01, unsteady=()) for shape in profile.shapes
        ]
        text = json.dumps(replace(profile, shapes=tuple(certain)).to_json())
        raw.execute("UPDATE latency_profile SET profile = ?", (text,))
    return row[0], row[1], text, row[3]
