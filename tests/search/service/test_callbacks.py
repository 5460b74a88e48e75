"""Callbacks of the dashboard: what pages send is answered, what they do not send is refused, failures are heard of."""

from __future__ import annotations

import json
import logging
import random
import sys
from collections.abc import Iterator
from copy import deepcopy
from typing import Any

import pytest
from fastapi.testclient import TestClient

from dashboards.app.data_source import Watch
from dashboards.app.pages.manage import study_key
from dashboards.app.views import PLACES
from search.service.dashboard import dashboard
from search.service.jobs import prompt_process
from search.service.rules.settings import ServiceSettings
from studies.service.service_store import ServiceStore
from tests.search.service.conftest import MakeClient
from tests.search.service.test_dashboard import filled

NAME = "made up"
LOOK = {"version": "1", "theme": "light", "webgl": True}
# What stands in the components of a page, by property.
VALUES: dict[str, Any] = {
    **{"url.search": "?trial=9&view=front", "list-search.value": "made", "list-state.value": ""},
    **{"list-order.value": "newest", "list-page.data": "1", "list-sweep.value": None},
    **{"list-tag.value": "paper", "list-seeds.data": "", "list-rows.value": "groups"},
    **{"labels-save.n_clicks": 1, "labels-tags.value": "a, b", "labels-note.value": "c"},
    **{"labels-were.data": {"tags": "", "note": "c"}},
    **{"prompt-ask.n_clicks": 1, "prompt-text.value": "Who?", "prompt-trial.value": "9", "prompt-tokens.value": "5"},
    **{"others-start.n_clicks": 1, "others-methods.value": ["laco"], "others-budgets.value": "0.2"},
    **{"others-match.value": "flops", "others-seeds.value": "2", "others-shapes.value": "1x64"},
    **{"chosen-stop.n_clicks": 1, "chosen-delete.n_clicks": None, "chosen-confirm.submit_n_clicks": 1},
    **{"chosen-what.data": "delete", "chosen-keys.data": [study_key("other")]},
    **{"url.pathname": "/study/made%20up", "page-again.n_intervals": 1, "studies-interval.n_intervals": 1},
    **{"changed.data": "done", "studies-seen.data": None, "confirm.submit_n_clicks": 1, "to-delete.data": "other"},
    **{"study-confirm.submit_n_clicks": 1, "study-to-delete.data": "other", "study-interval.n_intervals": 1},
    **{
        "study-changed.data": None,
        "study.data": NAME,
        "version.data": None,
        "theme.data": "dark",
        "create.n_clicks": 1,
        "empty.n_clicks": 1,
    },
    **{"front-x.value": "latency_ms", "front-y.value": "kl", "selected.data": 9, "pointed.data": 9},
    **{"rows-shown.value": "front", "rows-proposer.value": "deap", "rows-conditions.value": "kl < 1"},
    **{"rows-columns.value": ["kl", "flops_saved"], "rows-order.data": "-kl", "rows-page.data": "1"},
    **{"zoom.data": "10_40__", "trial-before.n_clicks": None, "trial-after.n_clicks": 2},
    **{"compared.value": [NAME], "compare-x.value": "latency_ms", "compare-y.value": "kl"},
    **{"compare-again.n_intervals": None, "create.n_clicks": 1, "study-seen.data": None},
    **{f"{place}-seen.data": None for place in PLACES},
}
FIELDS = {"name": "mine", "trials": "20", "cost": "flops", "deterministic": ["on"], "data": None}
# What takes the place of something in a body.
JUNK: list[Any] = [
    *(None, True, -1, 0, 1.5, 1e999, float("nan"), 10**30, "", "x", "\0", "\ud800", "日本", "__class__", "ALL", "1e9"),
    *([], {}, [[]], {"x": 1}, ["ALL"], [None], {"id": "x", "property": "y"}, [1, 2, 3], "x" * 300, 2**53),
]


@pytest.fixture
def client(
    make_client: MakeClient, settings: ServiceSettings, store: ServiceStore, monkeypatch: pytest.MonkeyPatch
) -> TestClient:
    filled(store)
    # Of the process that answers prompts, the answer is enough here.
    answer = """print('{"refused": "no model is loaded"}')"""
    monkeypatch.setattr(prompt_process, "_COMMAND", [sys.executable, "-S", "-c", answer])
    client = make_client(dashboard=dashboard(settings))
    client.headers["Content-Type"] = "application/json"
    return client


def bodies(client: TestClient) -> Iterator[dict[str, Any]]:
    """What pages send: a body for each callback that the service answers."""
    for spec in client.get("/_dash-dependencies").json():
        if spec["clientside_function"] is None:
            outputs = [_output(one) for one in spec["output"].strip(".").split("...")]
            inputs, state = map(_filled, spec["inputs"]), map(_filled, spec["state"])
            body = {
                **{"output": spec["output"], "outputs": outputs if spec["output"].startswith("..") else outputs[0]},
                **{"inputs": list(inputs), "state": list(state)},
            }
            first = body["inputs"][0][0] if isinstance(body["inputs"][0], list) else body["inputs"][0]
            shown = first["id"] if isinstance(first["id"], str) else json.dumps(first["id"], separators=(",", ":"))
            yield {**body, "changedPropIds": [f"{shown}.{first['property']}"]}


def _output(text: str) -> Any:
    place, _, name = text.rpartition(".")
    if '["ALL"]' in place:
        return [{**one, "property": name} for one in _matching(place)]
    return {"id": place, "property": name}


def _matching(place: str) -> list[dict[str, Any]]:
    """The components of a pattern, with the values that a page has there."""
    pattern = json.loads(place)
    if "act" in pattern["type"]:
        return [{"id": {**pattern, "do": do, "study": study_key(NAME)}} for do in ("resume", "delete")]
    if pattern["type"] == "choose":
        return [{"id": {**pattern, "study": study_key(name)}} for name in (NAME, "other")]
    if pattern["type"].startswith("field"):
        return [{"id": {**pattern, "name": name}} for name in FIELDS]
    return [{"id": {**pattern, **{key: 9 for key, value in pattern.items() if value == ["ALL"]}}}]


def _filled(place: dict[str, str]) -> Any:
    said = {"property": place["property"]}
    if not place["id"].startswith("{"):
        return {"id": place["id"], **said, "value": VALUES[f"{place['id']}.{place['property']}"]}
    if '["ALL"]' not in place["id"]:
        return {"id": json.loads(place["id"]), **said, "value": LOOK}
    found = []
    for one in _matching(place["id"]):
        values = {"id": one["id"], "n_clicks": 1, "n_submit": 1, "value": FIELDS.get(one["id"].get("name", ""))}
        found.append({**one, **said, "value": values[place["property"]]})
    return found


def ask(client: TestClient, body: Any) -> Any:
    # Python writes what JSON lacks, too.
    return client.post("/_dash-update-component", content=json.dumps(body))


def test_every_callback_is_answered_as_pages_ask(client: TestClient) -> None:
    asked = list(bodies(client))
    answers = {body["output"]: ask(client, body) for body in asked}
    assert len(answers) == len(asked) > 20
    assert {name: one.text for name, one in answers.items() if one.status_code not in (200, 204)} == {}


def _places(tree: Any) -> Iterator[tuple[Any, Any]]:
    """Everything in a JSON tree: what holds it, and where."""
    for key in list(tree) if isinstance(tree, dict) else range(len(tree)) if isinstance(tree, list) else ():
        yield tree, key
        yield from _places(tree[key])


def mutated(body: Any, rng: random.Random) -> Any:
    """A body with one to three parts replaced, left out, doubled or exchanged."""
    body = json.loads(json.dumps(body))
    for _ in range(rng.randint(1, 3)):
        places = list(_places(body))
        if not places:
            break
        (holder, key), (other, there) = rng.choice(places), rng.choice(places)
        match rng.choice(("replace", "replace", "leave out", "double", "exchange")):
            case "replace":
                # A copy: else a list could be put into itself, and stay so for the next body.
                holder[key] = deepcopy(rng.choice(JUNK))
            case "leave out":
                del holder[key]
            case "double" if isinstance(holder, list):
                holder.append(json.loads(json.dumps(holder[key])))
            case _:
                holder[key] = json.loads(json.dumps(other[there]))
    return body


@pytest.mark.parametrize("n", [20, pytest.param(100, marks=[pytest.mark.slow, pytest.mark.timeout(1200)])])
def test_bodies_that_no_page_sends_are_no_failure_of_the_service(client: TestClient, n: int) -> None:
    rng = random.Random(0)
    for valid in bodies(client):
        for _ in range(n):
            body = mutated(valid, rng)
            answer = ask(client, body)
            assert answer.status_code in (200, 204, 422), (answer.text, body)


@pytest.mark.parametrize("content", [b"", b"{", b"\xff", b"null", b"[]", b"1", b"[" * 10_000, b"9" * 10_000, b"{}"])
def test_bodies_that_are_no_requests_of_callbacks_are_refused(client: TestClient, content: bytes) -> None:
    refused = client.post("/_dash-update-component", content=content)
    assert refused.status_code == 422 and refused.headers["Content-Type"] == "application/problem+json"
    assert "No page sends such a request" in refused.json()["detail"]


def test_a_callback_that_fails_is_told_to_the_page_and_to_the_log(
    client: TestClient, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(*_: object) -> None:
        raise TypeError("secret")

    monkeypatch.setattr(Watch, "report_data", broken)
    [body] = [one for one in bodies(client) if one["output"].startswith("..measured.children")]
    with caplog.at_level(logging.ERROR):
        failed = ask(client, body)
    assert failed.status_code == 500 and failed.headers["Content-Type"] == "application/problem+json"
    assert failed.headers["X-Content-Type-Options"] == "nosniff" and "secret" not in failed.text
    assert "/_dash-update-component failed" in caplog.text
    assert "Traceback" in caplog.text and "TypeError: secret" in caplog.text and "report_data" in caplog.text
