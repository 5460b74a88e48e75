"""Files of a user with the names of our packages or of libraries: no process takes them for the real ones."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from search.module_path import leading_folders
from studies import StudyState, StudyStore
from studies.service.service_store import ServiceStore
from tests.conftest import ROOT
from tests.search.command import Result
from tests.search.service.running import TINY, until

# The program as it is installed does not search the working directory, other than `python -m search`.
PROGRAM = [sys.executable, "-P", "-m", "search"]
BROKEN = "raise SystemExit('a file of the user was executed')\n"
MY_SETUP = """
from search.evaluators import Evaluation

class MySetup:
    def start(self, device, halvings):
        return self

    def evaluate(self, task):
        return Evaluation(task, error="mine")
"""
MY_SCRIPT = """
from my_setup import MySetup
from ftp_core.schedule import SparsitySchedule
from search.evaluators import Task
from search.evaluators.ray_pool import RayPool

pool = RayPool(MySetup(), 1)
pool.submit(Task(SparsitySchedule((0.0, 0.5))))
print(pool.next_results()[0].error)
pool.close()
"""
SMALL = (
    *("--cost", "flops", "--trials", "6", "--workers", "1", "--search-items", "4"),
    *("--calibration-items", "8", "--validation-items", "8", "--test-items", "8"),
)

# Workers load torch first; under load that takes its time.
pytestmark = pytest.mark.timeout(1200)


@pytest.fixture
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A working directory with such files; packages of Python, or, on demand, folders that hold whatever they hold."""
    for name in ("search", "ftp_core", "torch", "random"):
        (tmp_path / f"{name}.py").write_text(BROKEN)
    for name in ("studies", "dashboards"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "errors.py").write_text(BROKEN)
        (tmp_path / name / "notes.txt").write_text("mine")
        if getattr(request, "param", "packages") == "packages":
            (tmp_path / name / "__init__.py").write_text(BROKEN)
    return tmp_path


def _run(folder: Path, *arguments: str) -> Result:
    done = subprocess.run([*PROGRAM, *arguments], cwd=folder, capture_output=True, text=True, timeout=900, check=False)
    return Result(done.returncode, done.stdout, done.stderr)


@pytest.mark.parametrize("folder", ["packages", pytest.param("folders", marks=pytest.mark.slow)], indirect=True)
def test_a_search_runs_beside_them(folder: Path) -> None:
    done = _run(folder, "search", "--name", "mine", *SMALL)
    assert done.code == 0, done.err
    with StudyStore(f"sqlite:///{folder / 'ftp-studies.db'}", create=False) as store:
        assert store.trials.n_ended("mine") == 6


@pytest.mark.slow
def test_a_run_that_tunes_a_router_goes_all_the_way_beside_them(folder: Path) -> None:
    tuned = ("--router", "dynamic", "--router-trials", "2", "--router-steps", "2", "--router-schedules", "1")
    short = ("--rounds", "1", "--refine-trials", "2", "--measured-points", "2", "--timed-runs", "2")
    done = _run(folder, "run", "--name", "mine", *SMALL, *tuned, *short)
    assert done.code == 0, done.err
    with StudyStore(f"sqlite:///{folder / 'ftp-studies.db'}", create=False) as store:
        assert store.studies.get("mine").state is StudyState.FINISHED and store.routers.of("mine")


@pytest.mark.slow
def test_a_runner_that_the_service_starts_runs_a_study_beside_them(folder: Path) -> None:
    command = [*PROGRAM, "serve", "--port", "0"]
    with (
        ServiceStore(f"sqlite:///{folder / 'ftp-studies.db'}") as store,
        subprocess.Popen(command, cwd=folder, stdout=subprocess.PIPE, text=True) as service,
    ):
        try:
            assert service.stdout is not None
            address = service.stdout.readline().split()[-1]
            settings = [f"--{key.replace('_', '-')}={value}" for key, value in TINY.items() if value is not True]
            submitted = _run(folder, "submit", "--name", "mine", "--server", address, "--trials=6", *settings)
            assert submitted.code == 0, submitted.err
            until(lambda: store.studies.get("mine").state in (StudyState.FINISHED, StudyState.FAILED), 600)
            assert store.studies.get("mine").state is StudyState.FINISHED, store.studies.get("mine")
        finally:
            service.terminate()


def test_workers_find_the_modules_beside_a_users_script(folder: Path) -> None:
    scripts = folder / "scripts"
    scripts.mkdir()
    (scripts / "my_setup.py").write_text(MY_SETUP)
    (scripts / "script.py").write_text(MY_SCRIPT)
    done = subprocess.run(
        [sys.executable, "scripts/script.py"], cwd=folder, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.stdout.strip() == "mine", done.stderr


def test_children_search_what_a_process_searches_first_and_never_the_working_directory_for_it(folder: Path) -> None:
    say = "import sys; sys.path.append('/late'); from search.module_path import leading_folders as f; print(*f())"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), "/absent"])}

    def said(*command: str) -> list[str]:
        done = subprocess.run(
            [sys.executable, *command], cwd=folder, env=environment, capture_output=True, text=True, check=True
        )
        return done.stdout.split()

    assert said("-P", "-c", say) == [str(ROOT)]
    script = folder / "scripts" / "mine.py"
    script.parent.mkdir()
    script.write_text(say)
    assert said(str(script)) == [str(script.parent), str(ROOT)]
    assert all(os.path.isabs(one) for one in leading_folders()) and str(ROOT) in leading_folders()
