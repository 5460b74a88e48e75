"""Runs the service and its runners as processes, with studies small enough for tests."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

from search.client import Client
from search.config.run_config import STORAGE_VARIABLE
from tests.search.command import COMMAND

REPOSITORY = Path(__file__).parents[3]
# Settings of a study of which every stage is as short as it can be.
TINY: dict[str, Any] = {
    **{"cost": "flops", "rounds": 0, "router_trials": 0, "router_steps": 2, "deterministic": True},
    **{"calibration_items": 8, "search_items": 4, "validation_items": 8, "test_items": 8, "latency_batch": 1},
    **{"timed_runs": 2, "measured_points": 2, "workers": 1},
}


def until(condition: Callable[[], object], most_s: float = 240.0) -> None:
    """Wait until a condition holds."""
    ends = time.monotonic() + most_s
    while not condition():
        assert time.monotonic() < ends, "it does not come"
        time.sleep(0.1)


@contextmanager
def serving(folder: Path, *arguments: str | Path) -> Iterator[tuple[subprocess.Popen[str], Client]]:
    """A service in a process of its own, with its client."""
    with _process(folder, "serve", "--port", "0", *arguments, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        line = process.stdout.readline()
        address = re.search(r"http://\S+", line)
        assert address is not None, line
        with Client(address[0]) as client:
            yield process, client


@contextmanager
def working(folder: Path, storage: str, *arguments: str | Path) -> Iterator[tuple[subprocess.Popen[str], Path]]:
    """A runner in a process of its own, with the file of what it says."""
    said = folder / f"runner-{time.monotonic_ns()}.log"
    with said.open("w") as stderr, _process(folder, "runner", *arguments, storage=storage, stderr=stderr) as process:
        yield process, said


@contextmanager
def _process(
    folder: Path, *arguments: str | Path, storage: str | None = None, **streams: int | IO[str]
) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen(
        [*COMMAND, *map(str, arguments)],
        cwd=folder,
        env={
            **os.environ,
            **{"PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"},
            **({} if storage is None else {STORAGE_VARIABLE: storage}),
        },
        text=True,
        start_new_session=True,
        **streams,  # type: ignore[call-overload]
    )
    try:
        yield process
    finally:
        with suppress(ProcessLookupError):
            os.kill(process.pid, signal.SIGTERM)
        process.wait(60)
        if process.stdout is not None:
            process.stdout.close()
