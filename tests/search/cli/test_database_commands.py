"""The commands about databases, and what a second process is told about a study at work."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import optuna
import pytest

from search.config.run_config import RunConfig
from search.problem.objectives import OBJECTIVES
from studies import StudyStore
from studies.sql.schema import HEAD as SCHEMA_HEAD
from tests.search.command import Result, run_here
from tests.studies.records import trial
from tests.studies.sql.test_migration import of_revision

Run = Callable[..., Result]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Run:
    return lambda *arguments: run_here(monkeypatch, capsys, tmp_path, *arguments)


@pytest.fixture
def store(tmp_path: Path) -> StudyStore:
    store = StudyStore(f"sqlite:///{tmp_path / 'ftp-studies.db'}")
    store.studies.create("mine", RunConfig(workers=1).model_dump(), OBJECTIVES)
    store.trials.append("mine", trial(0, (0.5, 2.0), (0.25,) * 12))
    return store


@pytest.mark.parametrize("command", [("db", "upgrade"), ("db", "check"), ("studies", "import"), ("studies", "export")])
def test_help_has_an_example(run: Run, command: tuple[str, ...]) -> None:
    result = run(*command, "--help")
    assert result.code == 0 and f"Example: ftp-search {' '.join(command)}" in result.out


def test_an_old_database_is_refused_with_the_command_that_upgrades_it(run: Run, tmp_path: Path) -> None:
    of_revision(tmp_path / "ftp-studies.db", "0000")
    refused = run("show", "small")
    assert refused.code == 1 and "ftp-search db upgrade --storage sqlite:///ftp-studies.db" in refused.err
    assert run("db", "check").code == 1
    assert run("db", "current", "--json").json() == {"current": "0000", "head": SCHEMA_HEAD}
    of_revision(tmp_path / "ftp-studies.db", SCHEMA_HEAD)
    assert "already" in run("db", "upgrade").out
    assert run("db", "check").code == 0


def test_studies_go_to_an_optuna_database_and_back(run: Run, store: StudyStore, tmp_path: Path) -> None:
    theirs = f"sqlite:///{tmp_path / 'optuna.db'}"
    assert run("studies", "export", "--optuna", theirs, "--json").json() == {"copied": {"mine": 1}}
    study = optuna.load_study(study_name="mine", storage=theirs)
    assert study.trials[0].params == {f"block_{index}": 0.25 for index in range(12)}
    again = run("studies", "export", "--optuna", theirs)
    assert again.code == 1 and "there already" in again.err
    other = f"sqlite:///{tmp_path / 'other.db'}"
    assert "copied mine: 1 trials" in run("studies", "import", "--optuna", theirs, "--storage", other).out
    missing = run("studies", "import", "--optuna", theirs, "--storage", other, "--name", "none")
    assert missing.code == 1 and "there are 'mine'" in missing.err


@pytest.mark.parametrize("url", ["nonsense", "sqlite:////no/such/folder/x.db", "mysql://root:secret@localhost/x"])
def test_an_optuna_database_that_cannot_be_opened_is_one_line(run: Run, store: StudyStore, url: str) -> None:
    result = run("studies", "export", "--optuna", url)
    assert result.code == 1 and result.err.count("\n") == 1
    assert "secret" not in result.err and "defect" not in result.err


@pytest.mark.parametrize("command", [("resume", "mine"), ("distill", "mine"), ("delete", "mine")])
def test_a_study_at_work_is_refused_with_who_works_on_it(run: Run, store: StudyStore, command: tuple[str, ...]) -> None:
    with store.runs.lease("mine"):
        result = run(*command)
    assert result.code == 1 and f"is being worked on by process {os.getpid()} on" in result.err
    assert store.trials.n_ended("mine") == 1
