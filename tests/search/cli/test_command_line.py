"""What every command has in common: `-h`, the version, completion, the database of the environment, and a log level."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from importlib.metadata import version
from pathlib import Path

import pytest

from search.cli.log_level import LOG_VARIABLE
from search.config.run_config import STORAGE_VARIABLE, RunConfig
from search.problem.objectives import OBJECTIVES
from studies import StudyStore
from tests.search.cli.test_help import commands
from tests.search.command import Result, run_here, run_process

Run = Callable[..., Result]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Run:
    return lambda *arguments: run_here(monkeypatch, capsys, tmp_path, *arguments)


def test_the_version_is_that_of_the_package(run: Run) -> None:
    assert run("--version").out == f"ftp-search {version('ftp-search')}\n"


@pytest.mark.parametrize("command", [name for name, _ in commands()])
def test_every_command_knows_h_and_help(run: Run, command: str) -> None:
    shown = run(*command.split(), "-h")
    assert shown.code == 0 and "-h, --help" in shown.out and shown.out == run(*command.split(), "--help").out


def test_every_command_with_a_database_takes_that_of_the_environment(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with_storage = []
    for name, command in commands():
        for parameter in command.params:
            if "--storage" in parameter.opts:
                with_storage.append(name)
                assert parameter.envvar == STORAGE_VARIABLE, name
    assert {
        "run",
        "resume",
        "sweep",
        "profile",
        "serve",
        "runner",
        "token add",
        "db upgrade",
        "studies",
        "studies export",
    } <= set(with_storage)
    url = f"sqlite:///{tmp_path / 'elsewhere.db'}"
    monkeypatch.setenv(STORAGE_VARIABLE, url)
    with StudyStore(url) as store:
        store.studies.create("mine", RunConfig(workers=1).model_dump(), OBJECTIVES)
    assert run("db", "check").code == 0
    assert [row["name"] for row in run("studies", "--json").json()] == ["mine"]
    assert run("token", "add", "ada", "--role", "reader").code == 0
    assert run("delete", "mine").out == "deleted mine\n"
    assert run("studies", "--storage", "sqlite:///other.db").code == 1
    assert [path.name for path in tmp_path.glob("*.db")] == ["elsewhere.db"]


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("ftp-search exp", "export"),
        ("ftp-search run --target-spa", "--target-sparsity"),
        ("ftp-search db up", "upgrade"),
    ],
)
def test_shells_complete_commands_and_options(tmp_path: Path, words: str, expected: str) -> None:
    place = str(len(words.split()) - 1)
    asked = {"_FTP_SEARCH_COMPLETE": "complete_bash", "COMP_WORDS": words, "COMP_CWORD": place}
    assert run_process(cwd=tmp_path, **asked).out.split() == [expected]


def test_a_shell_is_told_how_to_ask(tmp_path: Path) -> None:
    said = run_process(cwd=tmp_path, _FTP_SEARCH_COMPLETE="source_bash").out
    assert "complete -o default -F _ftp_search_completion ftp-search" in said


@pytest.fixture
def _levels() -> Iterator[None]:
    loggers = [logging.getLogger(name) for name in ("ftp_core", "studies", "search", "dashboards")]
    yield
    for logger in loggers:
        logger.setLevel(logging.NOTSET)


@pytest.mark.usefixtures("_levels")
@pytest.mark.parametrize(
    "arguments",
    [("--log-level", "info", "config"), ("config", "--log-level", "info"), ("config", "--log-level=INFO"), ("config",)],
    ids=" ".join,
)
def test_a_log_level_stands_anywhere_or_in_the_environment(
    run: Run, monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...]
) -> None:
    # Put back at the end, whatever a command makes of them.
    monkeypatch.setenv("TRANSFORMERS_VERBOSITY", "error")
    monkeypatch.setenv(LOG_VARIABLE, "info" if len(arguments) == 1 else "error")
    assert run(*arguments).code == 0
    assert logging.getLogger("search.engine.engine").getEffectiveLevel() == logging.INFO
    refused = run("config", "--log-level", "loud")
    assert refused.code == 2 and "expected one of debug, info, warning, error" in refused.err
