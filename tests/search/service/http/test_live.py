"""Who follows a study hears everything once, in order, also across interruptions; logs and files come along."""

from __future__ import annotations

import io
import json
import zipfile
from pathlib import Path
from typing import Any

import anyio
import httpx
import pytest
from fastapi.testclient import TestClient

from search.config.run_config import RunConfig
from search.service.http.file_routes import zipped
from search.service.jobs.event_log import EventLog, console_of
from studies import StudyState
from studies.service.service_store import ServiceStore
from tests.search.service.conftest import HERE, MakeClient

STUDIES = "/api/v1/studies"


def _told(answer: httpx.Response) -> list[tuple[str | None, str, dict[str, Any]]]:
    """Id, kind and content of each event."""
    told = []
    for block in answer.text.strip().split("\n\n"):
        fields = dict(line.split(": ", 1) for line in block.split("\n") if not line.startswith(":"))
        if fields:
            told.append((fields.get("id"), fields["event"], json.loads(fields["data"])))
    return told


def _at_rest(store: ServiceStore, *texts: str) -> None:
    store.studies.create("one", {}, ("kl", "latency_ms"))
    store.queue.submit("one")
    store.queue.request_stop("one")
    store.events.add("one", [("log", {"text": text}) for text in texts])


def test_events_come_in_order_and_end_when_the_study_rests(client: TestClient, store: ServiceStore) -> None:
    _at_rest(store, "a", "b\nid: 7\n\nevent: forged", "<script>")
    answer = client.get(f"{STUDIES}/one/events")
    assert answer.headers["Content-Type"].startswith("text/event-stream")
    told = _told(answer)
    assert [kind for _, kind, _ in told] == ["log", "log", "log", "progress", "rest"]
    assert [content["text"] for _, kind, content in told if kind == "log"] == [
        "a",
        "b\nid: 7\n\nevent: forged",
        "<script>",
    ]
    assert told[-1][2] == {"state": "stopped"} and told[-2][2]["state"] == "stopped"


def test_who_comes_back_hears_only_what_is_new(client: TestClient, store: ServiceStore) -> None:
    _at_rest(store, "a", "b", "c")
    ids = [event_id for event_id, kind, _ in _told(client.get(f"{STUDIES}/one/events")) if kind == "log"]
    again = _told(client.get(f"{STUDIES}/one/events", headers={"Last-Event-ID": ids[0] or ""}))
    assert [event_id for event_id, kind, _ in again if kind == "log"] == ids[1:]
    # A browser stops asking then.
    assert client.get(f"{STUDIES}/one/events", headers={"Last-Event-ID": ids[-1] or ""}).status_code == 204
    # Another study of that name has other events.
    store.delete_study("one")
    _at_rest(store, "new")
    fresh = _told(client.get(f"{STUDIES}/one/events", headers={"Last-Event-ID": ids[-1] or ""}))
    assert [content["text"] for _, kind, content in fresh if kind == "log"] == ["new"]
    for odd in ("x", "1", "-", "9" * 50, "1-" + "9" * 30):
        assert client.get(f"{STUDIES}/one/events", headers={"Last-Event-ID": odd}).status_code == 200


def test_a_stream_ends_after_its_time_and_there_are_not_too_many(make_client: MakeClient, store: ServiceStore) -> None:
    store.studies.create("one", {}, ("kl", "latency_ms"))
    store.queue.submit("one")
    told = _told(make_client(stream_s=0.0).get(f"{STUDIES}/one/events"))
    assert [kind for _, kind, _ in told] == ["progress"] and told[0][2]["state"] == "queued"
    assert make_client(max_streams=0).get(f"{STUDIES}/one/events").status_code == 503


def test_of_many_that_ask_at_the_same_moment_no_more_than_there_is_room_for_are_served(
    make_client: MakeClient, store: ServiceStore
) -> None:
    store.studies.create("one", {}, ("kl", "latency_ms"))
    store.queue.submit("one")
    app = make_client(max_streams=2, stream_s=1.0).app
    statuses: list[int] = []

    async def ask(client: httpx.AsyncClient) -> None:
        statuses.append((await client.get(f"{STUDIES}/one/events")).status_code)

    async def ask_often() -> None:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url=HERE, timeout=60) as client:
            for _ in range(2):
                async with anyio.create_task_group() as tasks:
                    for _ in range(20):
                        tasks.start_soon(ask, client)

    anyio.run(ask_often)
    # Who has been served makes room for others.
    assert sorted(statuses) == [200] * 4 + [503] * 36


def test_one_token_does_not_take_all_streams(
    make_client: MakeClient, store: ServiceStore, reader: dict[str, str], editor: dict[str, str]
) -> None:
    store.studies.create("one", {}, ("kl", "latency_ms"))
    store.queue.submit("one")
    app = make_client(max_streams=3, max_streams_each=2, stream_s=1.0).app
    statuses: dict[str, list[int]] = {"bob": [], "ada": []}

    async def ask(client: httpx.AsyncClient, name: str, headers: dict[str, str]) -> None:
        statuses[name].append((await client.get(f"{STUDIES}/one/events", headers=headers)).status_code)

    async def ask_often() -> None:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url=HERE, timeout=60) as client:
            for _ in range(2):
                async with anyio.create_task_group() as tasks:
                    for _ in range(5):
                        tasks.start_soon(ask, client, "bob", reader)
                    tasks.start_soon(ask, client, "ada", editor)

    anyio.run(ask_often)
    assert sorted(statuses["bob"]) == [200] * 4 + [429] * 6 and statuses["ada"] == [200, 200]


def test_who_is_told_nothing_takes_no_room(make_client: MakeClient, store: ServiceStore) -> None:
    _at_rest(store, "a")
    client = make_client(max_streams=1)
    first = client.get(f"{STUDIES}/one/events")
    assert first.status_code == 200
    [last_id] = [event_id for event_id, kind, _ in _told(first) if kind == "log"]
    for _ in range(2):
        assert client.get(f"{STUDIES}/absent/events").status_code == 404
        assert client.get(f"{STUDIES}/one/events", headers={"Last-Event-ID": last_id or ""}).status_code == 204
    assert client.get(f"{STUDIES}/one/events").status_code == 200


def test_who_leaves_before_anything_is_sent_makes_room(make_client: MakeClient, store: ServiceStore) -> None:
    _at_rest(store, "a")
    client = make_client(max_streams=1)
    path = f"{STUDIES}/one/events"
    scope = {
        **{"type": "http", "method": "GET", "path": path, "raw_path": path.encode(), "query_string": b""},
        **{"headers": [(b"host", b"127.0.0.1")], "scheme": "http", "root_path": "", "asgi": {"spec_version": "2.1"}},
    }

    said = [{"type": "http.request", "body": b"", "more_body": False}]

    async def gone() -> dict[str, Any]:
        return said.pop() if said else {"type": "http.disconnect"}

    async def nobody_reads(_: object) -> None:
        await anyio.sleep_forever()

    async def ask() -> None:
        with anyio.fail_after(30):
            await client.app(scope, gone, nobody_reads)

    anyio.run(ask)
    assert client.get(path).status_code == 200


def test_more_events_than_are_read_at_once_all_come(client: TestClient, store: ServiceStore) -> None:
    _at_rest(store, *map(str, range(950)))
    told = _told(client.get(f"{STUDIES}/one/events"))
    assert [content["text"] for _, kind, content in told if kind == "log"] == [*map(str, range(950))]


def test_what_a_run_tells_is_kept_with_the_latest_figures(store: ServiceStore) -> None:
    store.studies.create("one", {}, ("kl", "latency_ms"))
    store.queue.submit("one")
    events = EventLog(store, "one")
    events.began("one", RunConfig(), ["search", "report"])
    events.stage_changed("search", StudyState.RUNNING)
    for step in range(1000):
        events.figures("search", step, {"trials": float(step)})
    events.figures("search", 1000, {"front": 3.0})
    events.stage_changed("search", StudyState.FINISHED)
    console_of(events, "one").print("half a line", end="")
    console_of(events, "one").print("[bold]a line[/bold]")
    events.ended(StudyState.FINISHED)
    events.close()
    kept = [(event.kind, event.content) for event in store.events.of("one")]
    kinds = [kind for kind, _ in kept]
    assert kinds[:2] == ["began", "stage"] and kinds[-3:] == ["stage", "log", "ended"] and len(kept) < 10
    figures = [content for kind, content in kept if kind == "figures"]
    assert figures[-1]["step"] == 1000 and figures[-1]["figures"]["front"] == 3.0
    assert kept[-2][1] == {"text": "[bold]a line[/bold]"}


def test_logs_are_read_from_where_one_was(client: TestClient, store: ServiceStore) -> None:
    _at_rest(store, "a", "b", "c")
    first = client.get(f"{STUDIES}/one/logs", params={"limit": 2}).json()
    assert [line["text"] for line in first["items"]] == ["a", "b"]
    second = client.get(f"{STUDIES}/one/logs", params={"after": first["next"]}).json()
    assert [line["text"] for line in second["items"]] == ["c"]
    assert client.get(f"{STUDIES}/one/logs", params={"after": second["next"]}).json() == {"items": [], "next": 3}


def _finish(store: ServiceStore, name: str, stage: str) -> None:
    store.runs.begin_stage(name, stage)
    store.runs.end_stage(name, stage, StudyState.FINISHED)


@pytest.fixture
def written(client: TestClient, store: ServiceStore) -> Path:
    """The folder of a study that has written a report and a model."""
    out = Path(client.post(STUDIES, json={"name": "one"}).json()["config"]["out"])
    (out / "model").mkdir(parents=True)
    (out / "report.html").write_text("<script>alert(1)</script>")
    (out / "rows.csv").write_text("a,b\n")
    (out / "notes.exe").write_text("")
    (out / ".hidden.html").write_text("")
    (out / "passwd.json").symlink_to("/etc/passwd")
    (out / "model" / "config.json").write_text("{}")
    (out / "model" / "model.safetensors").write_bytes(bytes(range(256)) * 4096)
    (out / "model" / "shadow").symlink_to("/etc/passwd")
    return out


def test_a_report_is_downloaded_and_never_opened_as_a_page_of_the_service(
    client: TestClient, store: ServiceStore, written: Path
) -> None:
    _finish(store, "one", "report")
    listed = client.get(f"{STUDIES}/one/report").json()["items"]
    assert [(file["name"], file["bytes"]) for file in listed] == [("report.html", 25), ("rows.csv", 4)]
    page = client.get(f"{STUDIES}/one/report/report.html")
    assert page.text == "<script>alert(1)</script>" and page.headers["Content-Disposition"].startswith("attachment")
    assert page.headers["Content-Security-Policy"].startswith("sandbox")
    for file in ("passwd.json", "notes.exe", ".hidden.html", "model", "absent.html", "..%2f..%2fetc%2fpasswd"):
        assert client.get(f"{STUDIES}/one/report/{file}").status_code == 404, file


def test_a_model_is_downloaded_once_it_is_whole(client: TestClient, store: ServiceStore, written: Path) -> None:
    assert client.get(f"{STUDIES}/one/model").status_code == 409
    _finish(store, "one", "export")
    answer = client.get(f"{STUDIES}/one/model")
    assert answer.headers["Content-Type"] == "application/zip"
    with zipfile.ZipFile(io.BytesIO(answer.content)) as archive:
        assert archive.testzip() is None
        assert archive.namelist() == ["one/config.json", "one/model.safetensors"]
        assert archive.read("one/model.safetensors") == (written / "model" / "model.safetensors").read_bytes()
    # What lies elsewhere was not written by the study.
    (written / "model").rename(written / "moved")
    (written / "model").symlink_to(written / "moved")
    assert client.get(f"{STUDIES}/one/model").status_code == 404


def test_files_of_a_deleted_study_are_not_those_of_the_next_one_of_its_name(
    client: TestClient, store: ServiceStore, written: Path
) -> None:
    _finish(store, "one", "report")
    _finish(store, "one", "export")
    assert client.get(f"{STUDIES}/one/report/report.html").status_code == 200
    assert client.delete(f"{STUDIES}/one").status_code == 204 and (written / "report.html").exists()
    assert client.post(STUDIES, json={"name": "one"}).json()["config"]["out"] == str(written)
    assert client.get(f"{STUDIES}/one/report").json()["items"] == []
    assert client.get(f"{STUDIES}/one/report/report.html").status_code == 404
    assert client.get(f"{STUDIES}/one/model").status_code == 409
    # Nor while it writes its own.
    store.runs.begin_stage("one", "report")
    assert client.get(f"{STUDIES}/one/report/report.html").status_code == 404


def test_an_archive_is_never_whole_in_memory(tmp_path: Path) -> None:
    file = tmp_path / "weights"
    with file.open("wb") as content:
        content.truncate(64 * 2**20)
    pieces = [len(piece) for piece in zipped([file], "m")]
    assert sum(pieces) > 64 * 2**20 and max(pieces) < 2**20
