"""What a service's study wrote is fetched whole or not at all, and where it stands is said."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from search.cli.service_client import TOKEN_VARIABLE
from search.client import Client
from search.service.rules.settings import ServiceSettings
from studies import StudyState
from studies.service.service_store import ServiceStore
from studies.service.tokens import Role
from tests.search.command import Result, run_here
from tests.search.service.test_client import Server
from tests.studies.records import trial

Run = Callable[..., Result]


@pytest.fixture
def server(store: ServiceStore, settings: ServiceSettings, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setenv(TOKEN_VARIABLE, store.tokens.add("ada", Role.EDITOR))
    server = Server(store, settings)
    server.start()
    monkeypatch.setenv("FTP_SEARCH_SERVER", server.url)
    yield server
    server.stop()


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Run:
    return lambda *arguments: run_here(monkeypatch, capsys, tmp_path, *arguments)


def _finish(store: ServiceStore, name: str, *stages: str) -> None:
    for stage in stages:
        store.runs.begin_stage(name, stage)
        store.runs.end_stage(name, stage, StudyState.FINISHED)


@pytest.fixture
def out(store: ServiceStore, server: Server, run: Run) -> Path:
    """The folder of a study that is submitted, with a report and a model in it that no stage has written yet."""
    made = run("submit", "--name", "mine", "--trials", "7", "--refine-trials", "5", "--json").json()
    folder = Path(made["config"]["out"])
    (folder / "model").mkdir(parents=True)
    (folder / "report.html").write_text("<p>report")
    (folder / "report.md").write_text("# Report")
    (folder / "model/config.json").write_text("{}")
    (folder / "model/model.safetensors").write_bytes(bytes(range(256)) * 5000)
    return folder


def test_report_and_model_are_fetched_as_they_are(run: Run, store: ServiceStore, out: Path, tmp_path: Path) -> None:
    _finish(store, "mine", "export", "report")
    fetched = run("fetch", "mine", "new/here")
    assert fetched.code == 0, fetched.err
    here = tmp_path / "new/here"
    for name in ("report.html", "report.md", "model/config.json", "model/model.safetensors"):
        assert (here / name).read_bytes() == (out / name).read_bytes()
        assert f"wrote new/here/{name}" in fetched.out
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["here"]
    (tmp_path / "empty").mkdir()
    said = run("fetch", "mine", "empty", "--json").json()
    assert len(said["written"]) == 4 and said["without_model"] is None


def test_what_is_there_is_not_overwritten(run: Run, store: ServiceStore, out: Path, tmp_path: Path) -> None:
    _finish(store, "mine", "export", "report")
    (tmp_path / "full").mkdir()
    (tmp_path / "full/mine.txt").write_text("mine")
    (tmp_path / "file").write_text("mine")
    for place in ("full", "file", "file/deeper"):
        refused = run("fetch", "mine", place)
        assert refused.code in (1, 2) and refused.err.count("\n") == 1 and "Traceback" not in refused.err
    assert (tmp_path / "full/mine.txt").read_text() == "mine" == (tmp_path / "file").read_text()
    assert not list(tmp_path.rglob(".partial*"))


def test_a_report_without_a_model_is_fetched_and_a_study_without_a_report_is_not(
    run: Run, store: ServiceStore, out: Path, tmp_path: Path
) -> None:
    early = run("fetch", "mine", "here")
    assert (
        early.code == 1 and "has no report to fetch: it is queued" in early.err and "ftp-search wait mine" in early.err
    )
    assert not (tmp_path / "here").exists() and not list(tmp_path.glob(".partial*"))
    _finish(store, "mine", "report")
    without = run("fetch", "mine", "here")
    assert without.code == 0 and "No model: The study has not exported its model" in without.err
    assert {path.name for path in (tmp_path / "here").iterdir()} == {"report.html", "report.md"}
    assert run("fetch", "nobody", "there").code == 1


def test_status_says_the_stage_and_how_many_trials_there_are_to_be(run: Run, store: ServiceStore, out: Path) -> None:
    assert run("status", "mine").out == "mine: queued, 0 of 7 trials\n"
    store.runs.begin_stage("mine", "search")
    store.trials.append("mine", trial(0, (0.5, 5.0)))
    assert run("status", "mine").out == "mine: queued, search, 1 of 7 trials\n"
    _finish(store, "mine", "search")
    store.runs.begin_stage("mine", "distill-1")
    assert run("status", "mine").out == "mine: queued, distill-1, 1 trials\n"
    _finish(store, "mine", "distill-1")
    store.runs.begin_stage("mine", "refine-1")
    assert run("status", "mine").out == run("status").out.replace("queued,", "queued, refine-1,").replace(
        "1 trials", "1 of 12 trials"
    )


def test_wait_says_each_stage_while_it_waits(run: Run, store: ServiceStore, server: Server, out: Path) -> None:
    began, is_said = threading.Event(), threading.Event()
    look = Client.study

    def study(client: Client, name: str) -> dict[str, object]:
        found = look(client, name)
        (is_said if began.is_set() else threading.Event()).set()
        return found

    def happen() -> None:
        store.runs.begin_stage("mine", "search")
        began.set()
        is_said.wait(60)
        store.queue.request_stop("mine")

    thread = threading.Thread(target=happen)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Client, "study", study)
        thread.start()
        waited = run("wait", "mine")
        thread.join()
    assert waited.code == 1 and "mine: queued, search, 0 of 7 trials\n" in waited.err
    assert waited.out.startswith("mine: stopped")
    quiet = run("wait", "mine", "--quiet", "--json")
    assert quiet.err == "" and json.loads(quiet.out)["state"] == "stopped"
