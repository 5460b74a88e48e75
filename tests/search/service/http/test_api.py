"""The API: studies are created, listed, looked at, stopped, resumed and deleted; errors say what to do."""

from __future__ import annotations

import hashlib
import json
import math
import re
import sqlite3
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import anyio
import optuna
import pytest
import sqlalchemy as sa
from fastapi.testclient import TestClient

from ftp_core.schedule import SparsitySchedule
from search.config.run_config import SUBMITTABLE, RunConfig
from search.service.dashboard import dashboard
from search.service.rules.settings import ServiceSettings
from studies import RouterRun, StorageError, StudyState, Trial, TrialState
from studies.records.halves import stored
from studies.records.labels import Labels
from studies.records.trial import WorkSpan
from studies.service.service_store import ServiceStore
from studies.sql.database import Database
from studies.store.lease import Lease
from tests.dashboards import records
from tests.dashboards.report.test_methods import ROWS as COMPARED_ROWS
from tests.search.service.conftest import MakeClient
from tests.search.service.test_dashboard import filled
from tests.studies.records import said, trial

STUDIES = "/api/v1/studies"
# What a name may hold, and pages must not.
ODD = "a b <script>alert(1)</script>".replace("/", "") + " ü'\"%&;"


def test_a_study_is_created_and_waits_for_a_runner(client: TestClient, store: ServiceStore, tmp_path: Path) -> None:
    made = client.post(STUDIES, json={"name": ODD, "trials": 6, "cost": "flops", "fidelities": [0.5, 1]})
    assert made.status_code == 201
    study = made.json()
    assert study["name"] == ODD and study["state"] == "queued" and study["objectives"] == ["kl", "flops"]
    assert study["config"]["out"] == str(tmp_path / "out" / ODD)
    # How many workers there are depends on the machine that runs it.
    assert study["config"]["trials"] == 6 and "workers" not in study["config"]
    assert client.get(made.headers["Location"]).json() == study
    assert store.queue.waiting() == [ODD]
    assert RunConfig.stored(store.studies.get(ODD).config).fidelities == (0.5, 1.0)
    assert client.post(STUDIES, json={"name": ODD}).status_code == 409


def test_a_study_that_cannot_be_handed_to_the_runners_is_not_created(client: TestClient, store: ServiceStore) -> None:
    def full(connection: object, cursor: object, statement: str, *_: object) -> None:
        if statement.startswith("INSERT INTO submission"):
            raise sqlite3.OperationalError("database or disk is full")

    sa.event.listen(sa.engine.Engine, "before_cursor_execute", full)
    try:
        assert client.post(STUDIES, json={"name": "one"}).status_code == 503
    finally:
        sa.event.remove(sa.engine.Engine, "before_cursor_execute", full)
    assert client.get(STUDIES).json()["total"] == 0
    assert client.post(STUDIES, json={"name": "one"}).status_code == 201 and store.queue.waiting() == ["one"]


def test_every_setting_can_be_submitted_but_the_cluster_the_version_and_trials(client: TestClient) -> None:
    of_trials = {"also_measure", "select_trial"}
    assert set(RunConfig.model_fields) - set(SUBMITTABLE) == {"version", "ray_address", *of_trials}
    for field in (*of_trials, "ray_address", "version", "storage", "trust_remote_code"):
        refused = client.post(STUDIES, json={"name": "one", field: "x"})
        assert refused.status_code == 422 and refused.json()["detail"] == f"{field} is unknown."


@pytest.mark.parametrize(
    ("body", "detail"),
    [
        ({"trials": 6}, "name is missing."),
        ({"name": "../up"}, "name is '../up': expected a name without slashes."),
        ({"name": ".."}, "name is '..': expected a name."),
        ({"name": "-x"}, "name is '-x': expected a name that does not begin with a dash."),
        ({"name": "a\u0000b"}, "expected a name of printable characters"),
        ({"name": "ü" * 150}, "at most 200 characters, of which those beyond English letters count as two"),
        ({"name": " one"}, "name is ' one': expected a name without blanks at its ends."),
        ({"name": 5}, "name is 5: expected text."),
        ({"name": "one", "trials": "many"}, "trials is 'many': expected a whole number."),
        ({"name": "one", "dense_blocks": 1}, "dense_blocks is 1: expected a list."),
        ({"name": "one", "deterministic": "so"}, "deterministic is 'so': expected true or false."),
        ({"name": "x" * 201}, "at most 200 characters"),
        ({"name": "one", "trials": 0}, "trials is 0: expected greater than or equal to 1."),
        ({"name": "one", "trials": True}, "trials is True: expected a number or text."),
        ({"name": "one", "trials": 10**9}, "expected less than or equal to 1000000"),
        ({"name": "one", "sampler": "magic"}, "magic"),
        ({"name": "one", "sampler": "tpe, antigravity:Sampler"}, "No proposer is called 'antigravity:Sampler'"),
        ({"name": "one", "deterministic": True, "pruner": "asha"}, "pruner asha decides by what has ended"),
        ({"name": "one", "warm_start": "absent"}, "there is no such study"),
        ({"name": "one", "dense_blocks": list(range(2000))}, "at most 1000 items"),
    ],
)
def test_what_is_wrong_with_a_study_is_said(client: TestClient, body: dict[str, object], detail: str) -> None:
    refused = client.post(STUDIES, json=body)
    assert refused.status_code == 422 and refused.headers["Content-Type"] == "application/problem+json"
    problem = refused.json()
    assert detail in problem["detail"] and problem["status"] == 422 and problem["title"]
    assert "--" not in problem["detail"]
    assert client.get(STUDIES).json()["total"] == 0


def test_texts_speak_of_fields_and_not_of_what_checks_them(client: TestClient) -> None:
    for field in SUBMITTABLE:
        for value in ({}, [None], "x", -1.5, "x" * 5000):
            refused = client.post(STUDIES, json={"name": "one", field: value})
            if refused.status_code == 422:
                detail = refused.json()["detail"]
                assert "Pydantic" not in detail and "parse" not in detail and "factory" not in detail
                assert not re.search(r"\b(tuple|string|boolean|dictionary|valid)\b", detail), detail
            else:
                client.post(f"{STUDIES}/one/stop")
                client.delete(f"{STUDIES}/one")
    for content in (b"[]", b"1", b"{", b"\xff"):
        for kind in ("application/json", "text/plain"):
            refused = client.post(STUDIES, content=content, headers={"Content-Type": kind})
            assert refused.status_code == 422 and refused.json()["detail"].startswith("The body is no JSON object")


def test_names_that_look_the_same_are_the_same(client: TestClient, store: ServiceStore) -> None:
    composed, apart = "m\u00fcller", "mu\u0308ller"
    made = client.post(STUDIES, json={"name": apart})
    assert made.status_code == 201 and made.json()["name"] == composed
    assert store.queue.waiting() == [composed]
    assert client.post(STUDIES, json={"name": composed}).status_code == 409
    assert client.get(f"{STUDIES}/{apart}").json() == client.get(f"{STUDIES}/{composed}").json()


def test_parameters_that_an_operation_lacks_are_refused_with_a_hint(client: TestClient) -> None:
    client.post(STUDIES, json={"name": "one"})
    for path, hint in (
        (f"{STUDIES}?limt=3", "did you mean limit?"),
        (f"{STUDIES}?limit=3&after=2", "expected state or tag or sweep or offset or limit."),
        (f"{STUDIES}/one?limit=3", "expected none."),
        ("/api/v1/health?x=", "expected none."),
    ):
        refused = client.get(path)
        assert refused.status_code == 422 and "is unknown: " in refused.json()["detail"]
        assert refused.json()["detail"].endswith(hint)
    assert client.post(f"{STUDIES}/one/stop?now=1").status_code == 422
    assert client.get(f"{STUDIES}/one").json()["state"] == "queued"


def test_heads_are_those_of_what_would_be_got(
    make_client: MakeClient, settings: ServiceSettings, store: ServiceStore
) -> None:
    client = make_client(dashboard=dashboard(settings))
    client.post(STUDIES, json={"name": "one"})
    paths = ["/", "/new", "/login", "/metrics", "/assets/dashboard.js", "/nowhere", f"{STUDIES}/absent"]
    paths += ["/_dash-component-suites/plotly/package_data/plotly.min.js", "/export/one/study.json"]
    paths += [path.format(name="one", number=0, file="x") for path in _got(client)]
    for path in paths:
        if not path.endswith("/events"):
            head, got = client.head(path), client.get(path)
            assert head.status_code == got.status_code and head.content == b"", path
            assert head.headers.get("content-type") == got.headers.get("content-type"), path
    # A stream ends with its head, long before its study rests.
    assert make_client(stream_s=600.0).head(f"{STUDIES}/one/events").status_code == 200


def _got(client: TestClient) -> list[str]:
    paths = client.get("/api/v1/openapi.json").json()["paths"]
    return [path for path, operations in paths.items() if "get" in operations]


def test_what_a_client_has_already_is_not_sent_again(client: TestClient, store: ServiceStore) -> None:
    _trials(store)
    for path in (STUDIES, f"{STUDIES}/one", f"{STUDIES}/one/trials", f"{STUDIES}/one/front", "/api/v1/openapi.json"):
        first = client.get(path)
        tag = first.headers["ETag"]
        # Caches keep nothing: a program that compares has it in its memory.
        assert first.headers["Cache-Control"] == "no-store"
        for known in (tag, f'"other", {tag}', tag.removeprefix("W/"), "*"):
            again = client.get(path, headers={"If-None-Match": known})
            assert (again.status_code, again.content, again.headers["ETag"]) == (304, b"", tag), path
            assert again.headers["Vary"] == "Accept-Encoding" and "Content-Type" not in again.headers
        assert client.get(path, headers={"If-None-Match": 'W/"other"'}).content == first.content
        assert client.head(path, headers={"If-None-Match": tag}).status_code == 304
    tag = client.get(f"{STUDIES}/one").headers["ETag"]
    store.trials.append("one", trial(5, (0.05, 9.0)))
    changed = client.get(f"{STUDIES}/one", headers={"If-None-Match": tag})
    assert changed.status_code == 200 and changed.json()["n_trials"] == 6 and changed.headers["ETag"] != tag
    for answer in (client.get(f"{STUDIES}/absent"), client.post(STUDIES, json={"name": "two"})):
        assert "ETag" not in answer.headers


def test_answers_are_compressed_but_for_streams(
    make_client: MakeClient, settings: ServiceSettings, store: ServiceStore
) -> None:
    client = make_client(dashboard=dashboard(settings))
    for number in range(20):
        store.studies.create(f"study {number}", {"model": "m"}, ("kl", "latency_ms"))
    page = {"id": "url", "property": "pathname", "value": "/"}
    state = [{"id": "url", "property": "search", "value": ""}]
    body = {"output": "page.children", "inputs": [page], "outputs": {"id": "page", "property": "children"}}
    for method, path, sent in (("GET", STUDIES, None), ("POST", "/_dash-update-component", {**body, "state": state})):
        plain, packed = (
            client.request(method, path, json=sent, headers={"Accept-Encoding": encoding})
            for encoding in ("identity", "gzip")
        )
        assert plain.status_code == 200 and "content-encoding" not in plain.headers
        assert packed.headers["content-encoding"] == "gzip" and packed.json() == plain.json()
        assert int(packed.headers["content-length"]) < len(plain.content) / 3
    # A piece that waits in a compressor would be late.
    stream = client.get(f"{STUDIES}/study 0/events", headers={"Accept-Encoding": "gzip"})
    assert stream.headers["content-type"].startswith("text/event-stream") and "content-encoding" not in stream.headers
    assert "event: rest" in stream.text


def test_allow_names_every_method_of_an_address(make_client: MakeClient, settings: ServiceSettings) -> None:
    client = make_client(dashboard=dashboard(settings))
    for path, methods in (
        (STUDIES, "GET, HEAD, POST"),
        (f"{STUDIES}/one", "GET, HEAD, DELETE"),
        (f"{STUDIES}/one/stop", "POST"),
        ("/api/v1/session", "GET, HEAD, POST, DELETE"),
        *(("/login", "GET, HEAD, POST"), ("/", "GET, HEAD"), ("/study/one", "GET, HEAD"), ("/metrics", "GET, HEAD")),
        *(("/assets/dashboard.js", "GET, HEAD"), ("/_dash-update-component", "POST")),
    ):
        for method in ("PUT", "OPTIONS"):
            refused = client.request(method, path)
            assert (refused.status_code, refused.headers["Allow"]) == (405, methods), path


def test_bodies_that_are_no_json_or_too_long_are_refused(make_client: MakeClient) -> None:
    client = make_client(max_body_bytes=1000)
    headers = {"Content-Type": "application/json"}
    for content in (b"{", b"\xff", b"[]", b"1", b"null", b'{"name": "\\ud800"}', b"[" * 900):
        assert client.post(STUDIES, content=content, headers=headers).status_code == 422, content
    assert client.post(STUDIES, content=b"x" * 1001, headers=headers).status_code == 413

    def pieces() -> object:
        yield from (b"x" * 100 for _ in range(11))

    # Without a length.
    assert client.post(STUDIES, content=pieces(), headers=headers).status_code == 413  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("method", "path"),
    [
        *(("POST", "/login"), ("POST", "/api/v1/session"), ("POST", "/_dash-update-component"), ("POST", "/nowhere")),
        *(("POST", f"{STUDIES}/one/stop"), ("DELETE", f"{STUDIES}/one"), ("GET", STUDIES), ("GET", "/")),
    ],
)
def test_bodies_without_a_length_are_too_long_everywhere(
    make_client: MakeClient, settings: ServiceSettings, method: str, path: str
) -> None:
    client = make_client(dashboard=dashboard(settings), max_body_bytes=1000)
    headers = {"Content-Type": "application/json"}
    for content in ((b"x" * 100 for _ in range(11)), b"x" * 1001):
        refused = client.request(method, path, content=content, headers=headers)
        assert refused.status_code == 413 and refused.headers["Connection"] == "close"
        assert refused.headers["Content-Type"] == "application/problem+json"


@pytest.mark.parametrize("ends", ["never", "disconnected"])
@pytest.mark.parametrize("path", ["/login", "/api/v1/session", "/_dash-update-component", STUDIES])
def test_bodies_that_are_half_sent_are_not_waited_for(
    make_client: MakeClient,
    settings: ServiceSettings,
    caplog: pytest.LogCaptureFixture,
    path: str,
    ends: str,
) -> None:
    client = make_client(dashboard=dashboard(settings), body_s=0.0)
    headers = [(b"host", b"127.0.0.1"), (b"content-length", b"100"), (b"content-type", b"application/json")]
    scope = {
        **{"type": "http", "method": "POST", "path": path, "raw_path": path.encode(), "query_string": b""},
        **{"headers": headers, "scheme": "http", "root_path": "", "asgi": {"spec_version": "2.1"}},
    }
    pieces, sent = [b'{"token": ', b'"'], []

    async def half() -> dict[str, Any]:
        if pieces:
            return {"type": "http.request", "body": pieces.pop(0), "more_body": True}
        if ends == "never":
            await anyio.sleep_forever()
        return {"type": "http.disconnect"}

    async def send(message: Any) -> None:
        sent.append(message)

    async def ask() -> None:
        with anyio.fail_after(30):
            await client.app(scope, half, send)

    anyio.run(ask)
    assert [one["status"] for one in sent if "status" in one] == ([408] if ends == "never" else [])
    assert caplog.text == ""


def test_a_study_is_labelled_by_editors_whatever_it_does(
    client: TestClient, store: ServiceStore, editor: dict[str, str], reader: dict[str, str]
) -> None:
    made = client.post(STUDIES, json={"name": "a", "tags": ["mu\u0308ller", "x", "x"], "note": " n "}, headers=editor)
    assert (made.json()["tags"], made.json()["note"], made.json()["sweep"]) == (["m\u00fcller", "x"], "n", None)
    store.studies.create("b", {}, ("kl", "latency_ms"), labels=Labels(("x",), sweep="grid"))
    labels = f"{STUDIES}/a/labels"
    assert client.patch(labels, json={"tags": []}, headers=reader).status_code == 403
    with store.runs.lease("a"):
        changed = client.patch(labels, json={"tags": ["y"]}, headers=editor).json()
    assert (changed["tags"], changed["note"], changed["config"]) == (["y"], "n", made.json()["config"])
    assert client.patch(labels, json={"note": ""}, headers=editor).json()["tags"] == ["y"]
    for body, detail in (
        ({"tags": ["a,b"]}, "tags have 'a,b': expected text without commas"),
        ({"tags": None}, "tags is None: expected a list."),
        ({"note": "\u0000"}, "note has the character"),
        ({"tags": ["\ud800"]}, "expected text."),
        ({"sweep": "mine"}, "sweep is unknown."),
    ):
        refused = client.patch(labels, content=json.dumps(body), headers={"Content-Type": "application/json", **editor})
        assert refused.status_code == 422 and detail in refused.json()["detail"], refused.text
    assert client.post(STUDIES, json={"name": "c", "tags": [" "]}, headers=editor).status_code == 422
    assert client.patch(f"{STUDIES}/none/labels", json={}, headers=editor).status_code == 404

    def names(**asked: str) -> list[str]:
        return [one["name"] for one in client.get(STUDIES, params=asked, headers=reader).json()["items"]]

    assert (names(tag="y"), names(tag="x"), names(sweep="grid"), names(tag="n")) == (["a"], ["b"], ["b"], [])


def test_studies_are_listed_in_pages_and_by_state(client: TestClient, store: ServiceStore) -> None:
    for name in ("a", "b", "c"):
        client.post(STUDIES, json={"name": name})
    client.post(f"{STUDIES}/b/stop")
    store.studies.create("begun elsewhere", {"model": "m"}, ("kl", "latency_ms"))
    assert [(one["name"], one["state"]) for one in client.get(STUDIES).json()["items"]] == [
        ("a", "queued"),
        ("b", "stopped"),
        ("c", "queued"),
        ("begun elsewhere", "created"),
    ]
    page = client.get(STUDIES, params={"offset": 1, "limit": 2}).json()
    assert [one["name"] for one in page["items"]] == ["b", "c"] and page["total"] == 4
    assert client.get(STUDIES, params={"state": "stopped"}).json()["total"] == 1
    assert client.get(STUDIES, params={"limit": 0}).status_code == 422


def test_a_study_goes_from_queued_over_running_to_stopped_and_on(client: TestClient, store: ServiceStore) -> None:
    client.post(STUDIES, json={"name": "one", "trials": 6})

    def state() -> str:
        found: str = client.get(f"{STUDIES}/one").json()["state"]
        return found

    with store.runs.lease("one"):
        store.queue.claim("one", "w1")
        assert state() == "running"
        run = client.get(f"{STUDIES}/one").json()["run"]
        assert run["runner"] == "w1" and run["pid"]
        assert client.delete(f"{STUDIES}/one").status_code == 409
        assert client.post(f"{STUDIES}/one/resume").status_code == 409
        assert client.post(f"{STUDIES}/one/stop").status_code == 202 and state() == "stopping"
        store.runs.set_state("one", StudyState.STOPPED)
        store.queue.end("one", "w1")
    assert state() == "stopped" and client.post(f"{STUDIES}/one/stop").status_code == 409
    assert client.post(f"{STUDIES}/one/resume", json={"trials": 12}).json()["state"] == "queued"
    submission = store.queue.get("one")
    assert submission is not None and submission.changes == {"trials": 12}
    assert client.delete(f"{STUDIES}/one").status_code == 204
    assert client.get(f"{STUDIES}/one").status_code == 404


def test_of_two_that_delete_a_study_at_the_same_moment_one_finds_none(
    client: TestClient, store: ServiceStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    client.post(STUDIES, json={"name": "one"})

    def lease(database: Database, study_id: int, name: str) -> Lease:
        monkeypatch.undo()
        store.delete_study(name)
        return Lease(database, study_id, name)

    monkeypatch.setattr("studies.store.store.Lease", lease)
    assert client.delete(f"{STUDIES}/one").status_code == 404


def test_only_what_may_change_changes_when_a_study_is_resumed(client: TestClient, store: ServiceStore) -> None:
    client.post(STUDIES, json={"name": "one"})
    store.queue.request_stop("one")
    store.trials.append("one", trial(0, (0.1, 5.0)))
    store.trials.append("one", trial(1, (0.2, 4.0)))
    unknown = ({"select_trial": 2}, {"also_measure": [0, 7]}, {"select_trial": -1}, {"select_trial": "best"})
    for body in ({"model": "/etc"}, {"seed": 3}, {"trials": 1}, {"trials": 0}, {"out": "/etc"}, *unknown):
        assert client.post(f"{STUDIES}/one/resume", json=body).status_code == 422, body
    assert client.get(f"{STUDIES}/one").json()["state"] == "stopped"
    asked = {"trials": 2, "workers": 4, "also_measure": [0], "select_trial": 1}
    assert client.post(f"{STUDIES}/one/resume", json=asked).status_code == 202
    submission = store.queue.get("one")
    assert submission is not None and submission.changes == asked


def _trials(store: ServiceStore) -> None:
    store.studies.create("one", {}, ("kl", "latency_ms"))
    for number, values in enumerate([(0.5, 5.0), (0.6, 6.0), (0.2, 7.0), None, (0.1, 4.0)]):
        record = trial(number, values)
        changes = {"round": int(number > 2), "metrics": {"perplexity": float("nan")}}
        store.trials.append("one", Trial(**{**record.__dict__, **changes}))


def test_trials_are_listed_in_pages_and_filtered(client: TestClient, store: ServiceStore) -> None:
    _trials(store)

    def numbers(**wanted: object) -> list[int]:
        page = client.get(f"{STUDIES}/one/trials", params=wanted).json()  # type: ignore[arg-type]
        return [one["number"] for one in page["items"]]

    first = client.get(f"{STUDIES}/one/trials", params={"limit": 2}).json()
    assert [one["number"] for one in first["items"]] == [0, 1] and first["next"] == 1
    assert numbers(limit=2, after=1) == [2, 3] and numbers(limit=2, after=3) == [4]
    assert numbers(state="failed") == [3] and numbers(round=1) == [3, 4] and numbers(proposer="tpe") == []
    one = client.get(f"{STUDIES}/one/trials/0").json()
    assert (
        one["values"] == [0.5, 5.0] and one["metrics"] == {"perplexity": None} and one["state"] == TrialState.FINISHED
    )
    schedule = client.get(f"{STUDIES}/one/trials/0/schedule").json()
    assert schedule == {"trial": 0, "schedule": [0.0, 0.5], "overall_sparsity": 0.25, "router": None}
    assert client.get(f"{STUDIES}/one/trials/9").status_code == 404
    assert client.get(f"{STUDIES}/one/trials/{2**40}").status_code == 422


def test_trials_of_a_finished_study_are_measured_and_selected(client: TestClient, store: ServiceStore) -> None:
    _trials(store)
    points = f"{STUDIES}/one/points"
    refused = client.post(f"{points}/0/measure")
    assert refused.status_code == 409 and "'one' is created: measure trials of one that has finished" in refused.text
    store.runs.set_state("one", StudyState.FINISHED)
    store.studies.set_config("one", {"also_measure": [1]})
    assert client.post(f"{points}/9/select").status_code == 404
    assert client.post(f"{points}/3/select").status_code == 422
    assert client.post(f"{STUDIES}/absent/points/0/measure").status_code == 404
    for what, number, changes in (
        ("measure", 0, {"also_measure": [1, 0]}),
        ("measure", 1, {"also_measure": [1]}),
        ("select", 2, {"also_measure": [1, 2], "select_trial": 2}),
    ):
        queued = client.post(f"{points}/{number}/{what}")
        submission = store.queue.get("one")
        assert (queued.status_code, queued.json()["state"]) == (202, "queued")
        assert submission is not None and submission.changes == changes
        assert client.post(f"{points}/{number}/{what}").status_code == 409
        store.queue.request_stop("one")
        store.runs.set_state("one", StudyState.FINISHED)


def test_a_trial_is_exported_as_its_schedule_with_its_settings(client: TestClient, store: ServiceStore) -> None:
    config = {"model": "m", "revision": "r", "seed": 3, "ray_address": "secret"}
    store.studies.create("ü", config, ("kl", "latency_ms"))
    sha256 = hashlib.sha256(b"weights").hexdigest()
    run = RouterRun(0, (0.5,), {"static_kl": 0.4, "kind": "hidden"}, {}, sha256, 1.5, datetime.now(UTC))
    store.routers.add("ü", run, b"weights")
    metrics = {"flops": 2.0, "kv_bytes": math.nan}
    store.trials.append("ü", replace(trial(0, (0.5, 5.0)), router=0, metrics=metrics))
    store.trials.append("ü", trial(1, None))
    exported = client.post(f"{STUDIES}/ü/points/0/export")
    assert exported.status_code == 200 and exported.headers["Content-Disposition"].endswith("%C3%BC-trial-0.json")
    found = exported.json()
    assert SparsitySchedule.from_json(found["schedule"]) == SparsitySchedule.of([0.0, 0.5])
    assert found["objectives"] == {"kl": 0.5, "latency_ms": 5.0} and found["costs"] == {"flops": 2.0}
    assert (found["study"], found["trial"], found["model"], found["revision"]) == ("ü", 0, "m", "r")
    assert found["router"] == {"kind": "hidden", "sha256": sha256} and found["settings"]["seed"] == 3
    assert "secret" not in exported.text
    assert client.post(f"{STUDIES}/ü/points/1/export").status_code == 422
    assert client.post(f"{STUDIES}/ü/points/2/export").status_code == 404


def test_trials_are_sorted_and_selected_by_their_values(client: TestClient, store: ServiceStore) -> None:
    _trials(store)

    def numbers(**wanted: object) -> list[int]:
        page = client.get(f"{STUDIES}/one/trials", params=wanted)  # type: ignore[arg-type]
        return [one["number"] for one in page.json()["items"]]

    # Trial 3 failed: it has no values.
    assert numbers(sort="kl") == [4, 2, 0, 1, 3] and numbers(sort="-kl") == [1, 0, 2, 4, 3]
    assert numbers(sort="latency_ms", state="finished") == [4, 0, 1, 2]
    assert numbers(sort="seconds") == [0, 1, 2, 3, 4]
    page = client.get(f"{STUDIES}/one/trials", params={"sort": "kl", "limit": 2}).json()
    assert page["next"] == 2 and numbers(sort="kl", limit=3, offset=page["next"]) == [0, 1, 3]
    assert client.get(f"{STUDIES}/one/trials", params={"sort": "kl", "offset": 3, "limit": 2}).json()["next"] is None
    assert numbers(front=True) == [4] and numbers(front=False, sort="-latency_ms") == [2, 1, 0, 3]
    assert numbers(at_most="kl:0.5") == [0, 2, 4] and numbers(at_most=["kl:0.5", "latency_ms:5"]) == [0, 4]
    assert numbers(at_most="kl:5e-1", at_least="latency_ms:5") == [0, 2]
    store.trials.append("one", trial(5, (0.05, 9.0)))
    assert numbers(sort="kl", limit=1) == [5] and numbers(front=True) == [4, 5]
    # Limits hold at the sparsities of a grid, which no float is.
    for number, schedule in ((6, (0.3, 0.3)), (7, (0.25, 0.35)), (8, (0.9, 0.5))):
        store.trials.append("one", replace(trial(number, (0.01, 20.0)), schedule=schedule))
    for limit in ("overall_sparsity:0.3", "overall_sparsity:0.7"):
        at_both = set(numbers(at_most=limit)) & set(numbers(at_least=limit))
        assert at_both == ({6, 7} if limit.endswith("3") else {8})
    for wanted, hint in (
        ({"sort": "latency"}, "did you mean latency_ms?"),
        ({"at_most": "nothing:1"}, "expected one of kl, latency_ms"),
        ({"at_most": "kl"}, "at_most"),
        ({"at_least": "kl:1.2.3"}, "such as kl:0.2"),
        ({"sort": "kl", "after": 1}, "give offset"),
        ({"offset": 1}, "give after"),
        ({"sorted": "kl"}, "did you mean sort?"),
    ):
        refused = client.get(f"{STUDIES}/one/trials", params=wanted)
        assert refused.status_code == 422 and hint in refused.json()["detail"], refused.json()


def test_schedules_with_halves_say_what_each_half_does(client: TestClient, store: ServiceStore) -> None:
    store.studies.create("one", {}, ("kl", "latency_ms"))
    schedule = SparsitySchedule.of_halves([0.5, 0.0], [0.25, 0.75], [True, False])
    store.trials.append("one", replace(trial(0, (0.5, 5.0)), schedule=stored(schedule)))
    sha256 = hashlib.sha256(b"weights").hexdigest()
    run = RouterRun(0, stored(schedule), {"static_kl": 0.4}, {"held_out_kl": [0.5]}, sha256, 1.5, datetime.now(UTC))
    store.routers.add("one", run, b"weights")
    said = {"attention": [0.5, 0.0], "mlp": [0.25, 0.75], "keeps_kv": [1, 0]}
    assert said == schedule.to_json()
    [listed] = client.get(f"{STUDIES}/one/trials").json()["items"]
    [point] = client.get(f"{STUDIES}/one/front").json()["items"]
    [router] = client.get(f"{STUDIES}/one/routers").json()["items"]
    alone = client.get(f"{STUDIES}/one/trials/0/schedule").json()
    assert [one["schedule"] for one in (listed, point, router, alone)] == [said] * 4
    assert alone["overall_sparsity"] == pytest.approx(0.375)
    described = client.get("/api/v1/openapi.json").json()["components"]["schemas"]
    for name in ("TrialAnswer", "ScheduleAnswer", "RouterAnswer"):
        numbers, halves = described[name]["properties"]["schedule"]["anyOf"]
        assert numbers == {"type": "array", "items": {"type": "number"}}
        assert halves == {"$ref": "#/components/schemas/HalvesAnswer"}
    assert described["HalvesAnswer"]["required"] == ["attention", "mlp", "keeps_kv"]


def test_a_trial_names_its_parents_and_who_worked_on_it(client: TestClient, store: ServiceStore) -> None:
    store.studies.create("one", {}, ("kl", "latency_ms"))
    began_at = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
    work = (WorkSpan("1", began_at, 0.5), WorkSpan("0", began_at, 0.25))
    for one in (trial(0, (0.5, 5.0)), replace(trial(1, (0.2, 7.0)), parents=(0,), work=work)):
        store.trials.append("one", one)
    older, newer = client.get(f"{STUDIES}/one/trials").json()["items"]
    assert (older["parents"], older["worker"], older["work"]) == ([], None, [])
    assert (newer["parents"], newer["worker"]) == ([0], "0")
    at = "2026-01-02T03:04:05Z"
    assert newer["work"] == [
        {"worker": "1", "began_at": at, "seconds": 0.5},
        {"worker": "0", "began_at": at, "seconds": 0.25},
    ]
    described = client.get("/api/v1/openapi.json").json()["components"]["schemas"]["TrialAnswer"]["properties"]
    assert {"parents", "worker", "work"} <= set(described)


def test_constraints_that_others_set_count(client: TestClient, store: ServiceStore) -> None:
    store.studies.create("one", {}, ("kl", "latency_ms"))
    study = optuna.load_study(study_name="one", storage=store.storage)
    space = {f"block_{index}": optuna.distributions.FloatDistribution(0, 1) for index in range(2)}
    for kl, constraint in ((0.1, 0.25), (0.2, math.inf), (0.3, 0.0)):
        running = said(study.ask(space))
        running.set_constraint("accuracy", constraint)
        study.tell(running, [kl, 1.0])
    items = client.get(f"{STUDIES}/one/trials").json()["items"]
    assert [one["constraint_violation"] for one in items] == [0.25, None, 0.0]
    assert [one["number"] for one in client.get(f"{STUDIES}/one/front").json()["items"]] == [2]
    assert [one["trial"] for one in client.get(f"{STUDIES}/one/hypervolume").json()["items"]] == [2]


def test_the_front_and_how_it_grew_follow_the_trials(client: TestClient, store: ServiceStore) -> None:
    store.studies.create("empty", {}, ("kl", "latency_ms"))
    assert client.get(f"{STUDIES}/empty/hypervolume").json() == {"reference": None, "items": []}
    _trials(store)
    assert [one["number"] for one in client.get(f"{STUDIES}/one/front").json()["items"]] == [4]
    grown = client.get(f"{STUDIES}/one/hypervolume").json()
    assert [point["trial"] for point in grown["items"]] == [0, 2, 4]
    values = [point["value"] for point in grown["items"]]
    assert values == sorted(values) and values[0] > 0
    store.trials.append("one", trial(5, (0.05, 9.0)))
    assert [one["number"] for one in client.get(f"{STUDIES}/one/front").json()["items"]] == [5, 4]


def test_other_methods_are_told_and_judged_against_ours(client: TestClient, store: ServiceStore) -> None:
    _trials(store)
    assert client.get(f"{STUDIES}/one/comparison").json() == {"items": []}
    for row in COMPARED_ROWS:
        store.comparisons.keep("one", row)
    ours, laco, pruner = client.get(f"{STUDIES}/one/comparison").json()["items"]
    assert (ours["method"], ours["kl_to_ours"], ours["model"]["kl"]) == ("ours", None, 0.05)
    assert (laco["method"], laco["kl_to_ours"], laco["accuracy_to_ours"]) == ("laco", "worse", "not told apart")
    assert laco["model"]["kl"] == 0.1 and "item_kl" not in laco["model"]
    assert pruner["model"] is None and pruner["refused"].startswith("This <family>")


def test_a_comparison_of_a_finished_study_is_queued(client: TestClient, store: ServiceStore) -> None:
    filled(store, "one")
    store.runs.set_state("one", StudyState.STOPPED)
    place = f"{STUDIES}/one/comparison"
    refused = client.post(place, json={})
    assert refused.status_code == 409 and "'one' is stopped: wait until it has finished" in refused.text
    store.runs.set_state("one", StudyState.FINISHED)
    for body, detail in (
        ({"methods": ["shortgpt", "magic"]}, "There is no method 'magic': expected some of shortened_prompt"),
        ({"methods": []}, "methods names nothing: expected some of shortened_prompt"),
        ({"budgets": [0.2, 2]}, "budgets has '2.0': expected shares to save, above 0 and at most 0.9"),
        ({"budgets": [True, "x"]}, "budgets.1 is 'x': expected a number"),
        ({"match": "size"}, "match is 'size': expected 'latency' or 'flops'"),
        ({"seeds": 0}, "seeds is 0: expected greater than or equal to 1"),
        ({"budgets": [0.2], "shapes": ["8x64", "8 64"]}, "shapes has '8 64': expected rows and tokens of prefills"),
        ({"storage": "x"}, "storage is unknown"),
    ):
        wrong = client.post(place, json=body)
        assert wrong.status_code == 422 and wrong.json()["detail"].startswith(detail), wrong.text
    assert store.queue.get("one") is None and client.post(f"{STUDIES}/absent/comparison", json={}).status_code == 404
    asked = {"methods": ["laco", "puzzle"], "budgets": [0.15, 0.25], "match": "flops", "seeds": 2, "shapes": ["8x64"]}
    queued = client.post(place, json=asked)
    assert (queued.status_code, queued.json()["state"]) == (202, "queued")
    submission = store.queue.get("one")
    plan = {"methods": ["laco", "puzzle"], "targets": [0.15, 0.25], "match": "flops", "seeds": 2, "shapes": [[8, 64]]}
    assert submission is not None and submission.comparison == plan and submission.changes == {}
    assert client.post(place, json=asked).status_code == 409 and client.get(place).json() == {"items": []}
    client.post(f"{STUDIES}/one/stop")
    assert client.get(f"{STUDIES}/one").json()["state"] == "finished"
    # Without more, it is of all methods at what the selected schedule saves, in steps that are told.
    assert client.post(place, json={"match": "flops"}).status_code == 202
    submission = store.queue.get("one")
    assert submission is not None and submission.comparison is not None
    assert len(submission.comparison["methods"]) > 10 and len(submission.comparison["targets"]) == 1
    with store.runs.lease("one"):
        store.queue.claim("one", "w")
        store.runs.begin_stage("one", "compare")
        store.events.add("one", [("figures", {"stage": "compare", "step": 3, "figures": {"rows": 12}})])
        now = client.get(f"{STUDIES}/one/stages").json()["progress"]
        assert (now["stage"], now["step"], now["steps"], now["unit"]) == ("compare", 3, 12, "rows")


def test_measurements_the_selection_and_stages_are_told(client: TestClient, store: ServiceStore) -> None:
    filled(store, "one")
    measured = client.get(f"{STUDIES}/one/measurements").json()["items"]
    kept = records.measurements()
    assert [(m["variant"], m["trial"], m["split"]) for m in measured] == [(m.variant, m.trial, m.split) for m in kept]
    assert measured[0]["kl"] == kept[0].kl and measured[0]["speedup_low"] == kept[0].speedup_low
    assert measured[1]["overall_sparsity"] == pytest.approx(kept[1].overall_sparsity)
    assert client.get(f"{STUDIES}/one/measurements", params={"split": "nothing"}).json() == {"items": []}
    selection = records.STUDY.facts.selection
    assert selection is not None and client.get(f"{STUDIES}/one/selection").json()["reason"] == selection.reason
    rests = client.get(f"{STUDIES}/one/stages").json()
    assert rests["state"] == "finished" and rests["progress"]["stage"] is None
    client.post(STUDIES, json={"name": "two", "trials": 6})
    assert client.get(f"{STUDIES}/two/selection").status_code == 404
    waits = client.get(f"{STUDIES}/two/stages").json()
    assert waits["items"] == [] and (waits["progress"]["ahead"], waits["progress"]["has_runner"]) == (0, False)
    with store.runs.lease("two"):
        store.queue.claim("two", "w")
        store.runs.begin_stage("two", "search")
        figures = {"stage": "search", "step": 2, "figures": {"trials_per_s": 0.5}}
        store.events.add("two", [("began", {"stages": ["search", "measure"]}), ("figures", figures)])
        store.events.add("two", [("log", {"text": "hello"})])
        runs = client.get(f"{STUDIES}/two/stages").json()
    assert [(one["name"], one["state"]) for one in runs["items"]] == [("search", "running")]
    now = runs["progress"]
    assert (now["foreseen"], now["stage"], now["line"]) == (["search", "measure"], "search", "hello")
    assert (now["step"], now["steps"], now["unit"], now["left_s"]) == (2, 6, "trials", 8.0)


def test_routers_are_listed_without_their_weights(client: TestClient, store: ServiceStore) -> None:
    store.studies.create("one", {}, ("kl", "latency_ms"))
    curves = {"held_out_kl": [0.5, 0.25]}
    sha256 = hashlib.sha256(b"weights").hexdigest()
    run = RouterRun(3, (0.5,), {"stage": "distill-1", "static_kl": 0.4}, curves, sha256, 1.5, datetime.now(UTC))
    store.routers.add("one", run, b"weights")
    [found] = client.get(f"{STUDIES}/one/routers").json()["items"]
    assert found["trial"] == 3 and found["curves"] == {"held_out_kl": [0.5, 0.25]} and found["beats_static"]
    assert "weights" not in found


def test_runners_and_metrics_say_what_goes_on(client: TestClient, store: ServiceStore) -> None:
    client.post(STUDIES, json={"name": "one"})
    client.get(f"{STUDIES}/one")
    store.runners.beat("w1", "one")
    [runner] = client.get("/api/v1/runners").json()["items"]
    assert runner["id"] == "w1" and runner["study"] == "one" and runner["is_alive"]
    text = client.get("/metrics").text
    assert 'ftp_search_runners{state="busy"} 1.0' in text and "ftp_search_queued_studies 1.0" in text
    assert 'route="/api/v1/studies/{name}",status="200"' in text
    # No name of a study among the labels: there may be any number.
    assert '"/api/v1/studies/one"' not in text


def test_no_such_study_is_said_without_the_place_of_the_database(client: TestClient) -> None:
    for path in (
        "",
        "/trials",
        "/front",
        "/hypervolume",
        "/routers",
        "/logs",
        "/stages",
        "/measurements",
        "/selection",
        "/events",
        "/report",
        "/model",
    ):
        for name in ("absent", "%00", "..%2f..", "%ff", "-"):
            answer = client.get(f"{STUDIES}/{name}{path}")
            assert answer.status_code == 404, (name, path)
            assert "sqlite" not in answer.text


def test_a_database_that_does_not_answer_and_a_defect_are_told_apart(
    client: TestClient, store: ServiceStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    def away(*_: object) -> None:
        raise StorageError("The database postgresql://secret has not answered.")

    def broken(*_: object) -> None:
        raise RuntimeError("secret")

    for fails, status in ((away, 503), (broken, 500)):
        monkeypatch.setattr(store.studies, "summaries", fails)
        answer = client.get(STUDIES)
        assert answer.status_code == status and "secret" not in answer.text
        assert answer.headers["X-Content-Type-Options"] == "nosniff"
    monkeypatch.setattr(store.tokens, "exist", away)
    assert client.get("/api/v1/ready").status_code == 503 and client.get(STUDIES).status_code == 503
    assert client.get("/api/v1/health").status_code == 200
