"""The Python client speaks with a real server, and waits for one that is away."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import uvicorn

import search
from search.client import Client, ServiceError
from search.service.http.app import create_app
from search.service.rules.settings import ServiceSettings
from search.service.serving import bound
from studies import StudyState
from studies.service.service_store import ServiceStore
from studies.service.tokens import Role
from tests.studies.records import trial


class Server:
    """A server in a thread, that can be started anew on its port."""

    def __init__(self, store: ServiceStore, settings: ServiceSettings) -> None:
        self._store, self._settings = store, settings
        self.port = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def start(self) -> None:
        listener = bound("127.0.0.1", self.port)
        self.port = listener.getsockname()[1]
        config = uvicorn.Config(
            create_app(self._store, self._settings), log_level="warning", timeout_graceful_shutdown=1
        )
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(target=self._server.run, kwargs={"sockets": [listener]})
        self._thread.start()

    def stop(self) -> None:
        self._server.should_exit = True
        self._thread.join()


@pytest.fixture
def server(store: ServiceStore, settings: ServiceSettings) -> Iterator[Server]:
    server = Server(store, settings)
    server.start()
    yield server
    server.stop()


def test_everything_that_the_api_does_the_client_does(store: ServiceStore, server: Server, tmp_path: Path) -> None:
    name = "a b/ü<".replace("/", "")
    with search.Client(server.url, store.tokens.add("ada", Role.EDITOR)) as client:
        made = client.create(name, trials=6, cost="flops", tags=["a"], note="b")
        assert made["state"] == "queued" and client.study(name) == made
        assert [study["name"] for study in client.studies(state="queued")] == [name]
        assert (made["tags"], made["note"]) == (["a"], "b")
        made = client.label(name, note="c")
        assert (made["tags"], made["note"]) == (["a"], "c") and client.label(name, tags=[])["tags"] == []
        assert list(client.studies(tag="a", sweep="none")) == []
        for number, values in enumerate([(0.5, 5.0), (0.1, 7.0), None]):
            store.trials.append(name, trial(number, values))
        assert [one["number"] for one in client.trials(name)] == [0, 1, 2]
        assert [one["number"] for one in client.trials(name, state="failed")] == [2]
        assert [one["number"] for one in client.trials(name, sort="kl")] == [1, 0, 2]
        assert client.trial(name, 1)["values"] == [0.1, 7.0] and client.schedule(name, 1)["trial"] == 1
        assert [one["number"] for one in client.front(name)] == [1, 0]
        assert len(client.hypervolume(name)["items"]) == 2 and client.routers(name) == []
        assert client.comparison(name) == []
        assert client.runners() == [] and client.measurements(name, split="test") == []
        assert client.stages(name)["progress"]["ahead"] == 0 and client.export(name, 1)["trial"] == 1
        with pytest.raises(ServiceError, match="text is ' ': expected a prompt of some words"):
            client.prompt(name, 1, " ", new_tokens=3)
        with pytest.raises(ServiceError, match="selected no trial yet"):
            client.selection(name)
        store.events.add(name, [("log", {"text": "hello"})])
        assert list(client.logs(name)) == ["hello"]
        assert client.stop(name)["state"] == "stopped" == client.wait(name, 10)["state"]
        assert [kind for kind, _ in client.events(name)] == ["log", "progress", "rest"]
        out = Path(made["config"]["out"])
        (out / "model").mkdir(parents=True)
        (out / "report.md").write_text("# Report")
        (out / "model" / "config.json").write_text("{}")
        assert client.download_report(name, tmp_path / "here") == []
        store.runs.begin_stage(name, "report")
        store.runs.end_stage(name, "report", StudyState.FINISHED)
        assert [path.read_text() for path in client.download_report(name, tmp_path / "here")] == ["# Report"]
        with pytest.raises(ServiceError, match="has not exported") as refused:
            client.download_model(name, tmp_path / "model.zip")
        assert refused.value.status == 409 and not list(tmp_path.glob("*model.zip"))
        store.runs.begin_stage(name, "export")
        store.runs.end_stage(name, "export", StudyState.FINISHED)
        assert client.download_model(name, tmp_path / "model.zip").stat().st_size > 0
        assert client.resume(name, trials=9)["state"] == "queued"
        client.stop(name)
        store.runs.set_state(name, StudyState.FINISHED)
        with pytest.raises(ServiceError, match="no method 'magic': expected some of"):
            client.compare(name, ["magic"], [0.2])
        for ask in (client.measure, client.select):
            assert ask(name, 1)["state"] == "queued"
            client.stop(name)
            store.runs.set_state(name, StudyState.FINISHED)
        client.delete(name)
        with pytest.raises(ServiceError, match="no such study"):
            client.study(name)


def test_refusals_say_why(store: ServiceStore, server: Server) -> None:
    with Client(server.url) as client:
        with pytest.raises(ServiceError, match="trials is 0: expected greater") as refused:
            client.create("one", trials=0)
        assert refused.value.status == 422
        store.tokens.add("ada", Role.EDITOR)
        with pytest.raises(ServiceError, match="A token is needed"):
            client.study("one")
    for url in ("", "box:8000", "ftp://box", "http://"):
        with pytest.raises(ServiceError, match="no address of a service"):
            Client(url)
    with Client("http://127.0.0.1:9") as client, pytest.raises(ServiceError, match="does not answer"):
        client.study("one")


def test_a_server_that_is_started_anew_is_waited_for_and_nothing_is_heard_twice(
    store: ServiceStore, server: Server
) -> None:
    heard: list[str] = []
    states: list[str] = []
    with Client(server.url) as client:
        client.create("one", trials=6)
        with store.runs.lease("one"):
            store.queue.claim("one", "w1")
            store.events.add("one", [("log", {"text": "a"})])

            def listen() -> None:
                heard.extend(content["text"] for kind, content in client.events("one") if kind == "log")

            waiting = [threading.Thread(target=listen)]
            waiting += [threading.Thread(target=lambda: states.append(client.wait("one")["state"]))]
            for thread in waiting:
                thread.start()
            store.events.add("one", [("log", {"text": "b"})])
            server.stop()
            store.events.add("one", [("log", {"text": "c"})])
            server.start()
            store.events.add("one", [("log", {"text": "d"})])
            store.runs.set_state("one", StudyState.FINISHED)
            store.queue.end("one", "w1")
        for thread in waiting:
            thread.join(timeout=60)
        assert heard == ["a", "b", "c", "d"] and states == ["finished"]
