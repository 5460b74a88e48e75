"""What all tests share: no network, the same random numbers in every run, and who may skip when."""

from __future__ import annotations

import os

# Before anything imports torch, transformers or ray.
if "PYTEST_XDIST_WORKER" in os.environ:
    # Threads of several processes that wait for each other on the same cores cost most of the time there is.
    os.environ["OMP_NUM_THREADS"] = "1"
os.environ.update(
    HF_HUB_OFFLINE="1",
    TOKENIZERS_PARALLELISM="false",
    RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO="0",
    RAY_DEDUP_LOGS="0",
    RAY_USAGE_STATS_ENABLED="0",
)

import random
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import hypothesis
import numpy as np
import pytest
import torch

ROOT = Path(__file__).resolve().parent.parent
# Wherever the processes of a test run, what they run is this checkout.
os.environ["PYTHONPATH"] = str(ROOT)

# Tiny products gain nothing from threads, and lose much where they share cores with other processes.
torch.set_num_threads(1)

hypothesis.settings.register_profile("ftp", deadline=None, derandomize=True, max_examples=25)
# By pytest's --hypothesis-profile: more of them, others in every run.
hypothesis.settings.register_profile("thorough", deadline=None, max_examples=400)
hypothesis.settings.load_profile("ftp")

# Programs that go by several names.
ALIASES = {"chromium": ("chromium", "chromium-browser", "google-chrome")}


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Stress tests begin no later than FTP_STRESS_UNTIL, in seconds since the epoch: checks on slow machines end."""
    until = os.environ.get("FTP_STRESS_UNTIL")
    if until and item.get_closest_marker("slow") and time.time() > float(until):
        pytest.skip("no time was left for this stress test on this machine: run make slow")


@pytest.fixture(autouse=True)
def _seeds() -> None:
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def assets() -> Path:
    """The folder of real models and data (SOURCES.md there says which)."""
    folder = Path(os.environ.get("FTP_TEST_ASSETS") or ROOT.parent / "shared")
    if not (folder / "data").is_dir():
        pytest.skip(f"no real data at {folder}: set FTP_TEST_ASSETS to its folder")
    return folder.resolve()


def find_program(name: str) -> Path | None:
    """The program in PATH or where Debian keeps PostgreSQL's, the newest version of several."""
    debian = sorted(
        Path("/usr/lib/postgresql").glob("*/bin"),
        key=lambda folder: int(folder.parent.name) if folder.parent.name.isdigit() else 0,
        reverse=True,
    )
    path = os.pathsep.join([os.environ.get("PATH", os.defpath), *map(str, debian)])
    found = (shutil.which(candidate, path=path) for candidate in ALIASES.get(name, (name,)))
    return next((Path(program) for program in found if program), None)


@pytest.fixture(scope="session")
def require_system_dep() -> Callable[[str], Path]:
    """A function that gives the path of a program; without the program it skips the test, or fails it in CI."""

    def require(name: str) -> Path:
        program = find_program(name)
        if program is not None:
            return program
        message = f"{name} is not installed: run tests/system-deps.sh"
        if os.environ.get("FTP_REQUIRE_SYSTEM_DEPS") == "1":
            pytest.fail(message)
        pytest.skip(message)

    return require
