"""The service's commands, and that whatever is killed, a submitted study comes to its end."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from search.client import Client, ServiceError
from search.config.run_config import STORAGE_VARIABLE
from search.service.jobs.children import PARENT_VARIABLE
from search.service.jobs.runner_processes import RunnerProcesses
from studies import StudyState
from studies.service.service_store import ServiceStore
from tests.search.command import Result, run_here
from tests.search.service.running import TINY, serving, until
from tests.studies.postgres import PostgresServer

Run = Callable[..., Result]


@pytest.fixture
def postgres_server(require_system_dep: Callable[[str], Path]) -> Iterator[PostgresServer]:
    server = PostgresServer(require_system_dep("initdb").parent)
    yield server
    server.remove()


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Run:
    return lambda *arguments: run_here(monkeypatch, capsys, tmp_path, *arguments)


def test_tokens_are_added_listed_and_removed(run: Run, tmp_path: Path) -> None:
    secret = run("token", "add", "ada", "--role", "editor").out.strip()
    with ServiceStore(f"sqlite:///{tmp_path / 'ftp-studies.db'}", create=False) as store:
        found = store.tokens.find(secret)
    assert found is not None and found.name == "ada"
    [listed] = run("token", "list", "--json").json()
    assert (listed["name"], listed["role"]) == ("ada", "editor") and secret not in str(listed)
    assert run("token", "add", "ada", "--role", "reader").code == 1
    assert run("token", "add", "bob", "--role", "admin").code == 2
    assert run("token", "remove", "ada").code == 0 and run("token", "list", "--json").json() == []


def test_serving_other_machines_demands_a_token(run: Run) -> None:
    refused = run("serve", "--host", "0.0.0.0", "--port", "0", "--runners", "0")
    assert refused.code == 2 and "ftp-search token add" in refused.err
    assert run("serve", "--root", "absent").code == 2


def test_a_service_says_soon_that_its_database_is_away_and_goes_on_when_it_is_back(
    tmp_path: Path, postgres_server: PostgresServer
) -> None:
    with serving(tmp_path, "--runners", "0", "--storage", postgres_server.new_database()) as (_, client):
        assert list(client.studies()) == []
        postgres_server.stop()
        try:
            began = time.monotonic()
            with pytest.raises(ServiceError, match="The database does not answer") as refused:
                list(client.studies())
            # A client that hears nothing gives up after 30 s.
            assert refused.value.status == 503 and time.monotonic() - began < 15
        finally:
            postgres_server.start()
        assert list(client.studies()) == []


def test_a_service_that_is_not_there_is_one_line(run: Run) -> None:
    for arguments in (("submit", "--name", "one"), ("status",), ("wait", "one", "--timeout", "0"), ("stop", "one")):
        result = run(*arguments, "--server", "http://127.0.0.1:9")
        assert result.code == 1 and "does not answer" in result.err and len(result.err.splitlines()) == 1


def test_runners_that_die_are_replaced_and_those_that_live_leave_with_the_service(tmp_path: Path) -> None:
    # Says who its parent is and which database it has, waits, and says when it is told to leave.
    program = (
        "import os, pathlib, signal, sys, time\n"
        "folder = pathlib.Path(sys.argv[1])\n"
        f"words = os.environ['{PARENT_VARIABLE}'] + ' ' + os.environ['{STORAGE_VARIABLE}']\n"
        "def leave(*_):\n"
        "    (folder / f'{os.getpid()}.left').touch()\n"
        "    sys.exit()\n"
        "signal.signal(signal.SIGTERM, leave)\n"
        "(folder / f'{os.getpid()}.began').write_text(words)\n"
        "time.sleep(60)\n"
    )
    with RunnerProcesses(2, [sys.executable, "-c", program, str(tmp_path)], "sqlite:///secret.db"):
        until(lambda: len(list(tmp_path.glob("*.began"))) == 2)
        first = int(next(tmp_path.glob("*.began")).stem)
        os.kill(first, signal.SIGKILL)
        until(lambda: len(list(tmp_path.glob("*.began"))) == 3)
    assert {path.read_text() for path in tmp_path.glob("*.began")} == {f"{os.getpid()} sqlite:///secret.db"}
    assert len(list(tmp_path.glob("*.left"))) == 2 and not (tmp_path / f"{first}.left").exists()


def _runner_of(client: Client, name: str) -> int | None:
    alive = [runner for runner in client.runners() if runner["is_alive"] and runner["study"] == name]
    return alive[0]["pid"] if alive else None


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_a_study_survives_the_death_of_its_runner_of_the_server_and_of_both(tmp_path: Path) -> None:
    with ServiceStore(f"sqlite:///{tmp_path / 'ftp-studies.db'}") as store:
        with serving(tmp_path) as (server, client):
            client.create("one", trials=60, export="full", **TINY)
            until(lambda: store.trials.n_ended("one") > 5)
            runner = _runner_of(client, "one")
            assert runner is not None
            os.kill(runner, signal.SIGKILL)
            # The service starts another runner, which goes on.
            until(lambda: _runner_of(client, "one") not in (None, runner))
            server.kill()
        # Its runner notices that it is alone, and leaves the study to the next one.
        until(lambda: not any(one.is_alive for one in store.runners.all()))
        assert store.queue.waiting() == ["one"] or store.studies.get("one").state is StudyState.FINISHED
        with serving(tmp_path) as (_, client):
            assert client.wait("one", 600)["state"] == "finished"
            assert sum(1 for _ in client.trials("one")) == 60
            assert client.download_model("one", tmp_path / "model.zip").stat().st_size > 2**20
            assert {path.name for path in client.download_report("one", tmp_path / "report")} >= {"report.html"}
            assert any("search" in line for line in client.logs("one"))
        # Whoever leaves in good order is known to have left.
        assert store.runners.all() == [] or not any(one.is_alive for one in store.runners.all())


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_a_study_is_stopped_from_elsewhere_and_goes_on_with_more_trials(tmp_path: Path) -> None:
    with serving(tmp_path) as (_, client), ServiceStore(f"sqlite:///{tmp_path / 'ftp-studies.db'}") as store:
        client.create("one", trials=5000, **TINY)
        client.create("broken", warm_start="one", **TINY)
        until(lambda: store.trials.n_ended("one") > 5)
        client.stop("one")
        assert client.wait("one", 120)["state"] == "stopped"
        # The runner goes on with the next one, which cannot be run: its search set is that of another study.
        kept = store.trials.n_ended("one")
        assert 5 < kept < 5000
        client.wait("broken", 240)
        client.resume("one", trials=kept + 10)
        assert client.wait("one", 600)["state"] == "finished"
        assert store.trials.n_ended("one") == kept + 10
        kinds = [kind for kind, _ in client.events("one")]
        assert kinds.count("ended") == 2 and kinds[-1] == "rest"
