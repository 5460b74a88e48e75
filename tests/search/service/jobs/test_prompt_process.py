"""A service answers one's own prompt in a process of its own: as the command does, one at a time, within limits."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path

import pytest
from fastapi.testclient import TestClient

from ftp_core.schedule import SparsitySchedule
from search.config.run_config import RunConfig
from search.errors import BusyError, DeadlineError, SearchError
from search.problem.objectives import OBJECTIVES
from search.service.dashboard import actions
from search.service.jobs import prompt_process
from search.service.jobs.prompt_child import answered
from search.service.jobs.prompt_process import PromptProcess
from search.service.rules.settings import ServiceSettings
from search.stages.own_prompt import run_prompt
from studies import StudyNotFoundError
from studies.service.service_store import ServiceStore
from tests.studies.records import trial

TEXT = "Tom has the red ball. Zoë has 3 €. Question: who has the red ball? Answer:"
MakeClient = Callable[..., TestClient]


@pytest.fixture
def asked(store: ServiceStore) -> str:
    """The address that answers prompts to trial 1 of a study whose model is at hand."""
    config = RunConfig(workers=1, device="cpu").model_dump()
    store.studies.create("ü", config, OBJECTIVES)
    store.trials.append("ü", trial(0, None))
    store.trials.append("ü", trial(1, (1.0, 2.0), SparsitySchedule([0.0] * 4 + [0.6] * 8)))
    store.studies.create("out of reach", config | {"model": "/etc"}, OBJECTIVES)
    store.trials.append("out of reach", trial(0, (1.0, 2.0)))
    return "/api/v1/studies/ü/points/1/prompt"


def test_the_answer_is_that_of_the_command(
    client: TestClient, store: ServiceStore, settings: ServiceSettings, asked: str
) -> None:
    answer = client.post(asked, json={"text": TEXT, "new_tokens": 3})
    assert answer.status_code == 200, answer.text
    expected = asdict(run_prompt(store, "ü", store.trials.get("ü", 1), TEXT, 3, {}))
    assert answer.json() == json.loads(json.dumps(expected))


def test_what_cannot_be_asked_is_refused_before_a_process_begins(
    client: TestClient, store: ServiceStore, settings: ServiceSettings, asked: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(prompt_process, "_COMMAND", ["/no/such/program"])
    for body in ({}, {"text": ""}, {"text": " \n"}, {"text": "a", "new_tokens": 0}, {"text": "a", "more": 1}):
        assert client.post(asked, json=body).status_code == 422
    failed, absent = (asked.replace("/1/", f"/{number}/") for number in (0, 9))
    assert client.post(failed, json={"text": TEXT}).status_code == 422
    assert client.post(absent, json={"text": TEXT}).status_code == 404
    outside = client.post("/api/v1/studies/out of reach/points/0/prompt", json={"text": TEXT})
    assert outside.status_code == 422 and "lies below no folder" in outside.text
    prompts = PromptProcess(store, settings)
    for name, number, error in (("absent", 0, StudyNotFoundError), ("ü", 9, SearchError), ("ü", 0, SearchError)):
        with pytest.raises(error):
            prompts.answer(name, number, TEXT, 1)


def test_readers_may_not_ask(client: TestClient, asked: str, reader: dict[str, str], editor: dict[str, str]) -> None:
    assert client.post(asked, json={"text": TEXT}, headers=reader).status_code == 403
    assert client.post(asked, json={"text": TEXT}).status_code == 401


def test_what_does_not_fit_the_model_is_refused_by_the_process(store: ServiceStore, asked: str) -> None:
    said = answered(store.url, "ü", 1, "Tom " * 5000, 1)
    assert list(said) == ["refused"] and "Shorten it by" in said["refused"]
    assert list(answered(store.url, "absent", 1, TEXT, 1)) == ["away"]


def test_one_prompt_is_answered_at_a_time(make_client: MakeClient, monkeypatch: pytest.MonkeyPatch, asked: str) -> None:
    client = make_client()

    def ask_meanwhile(*_: object) -> dict[str, object]:
        answer = client.post(asked, json={"text": TEXT})
        return {"refused": f"{answer.status_code} {answer.headers['Retry-After']} {answer.json()['detail']}"}

    monkeypatch.setattr(PromptProcess, "_ask", ask_meanwhile)
    first = client.post(asked, json={"text": TEXT})
    assert first.json()["detail"].startswith("503 10 The service answers another prompt")
    # The turn is given back.
    assert client.post(asked, json={"text": TEXT}).json()["detail"].startswith("503 10")


def test_what_takes_too_long_is_ended(
    make_client: MakeClient, store: ServiceStore, settings: ServiceSettings, asked: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    _runs(monkeypatch, "import time; print(end='', flush=True); time.sleep(600)")
    late = make_client(prompt_s=0.2).post(asked, json={"text": TEXT})
    assert late.status_code == 504 and "longer than 0.2 s" in late.text
    prompts = PromptProcess(store, replace(settings, prompt_s=0.2))
    with pytest.raises(DeadlineError):
        prompts.answer("ü", 1, TEXT, 1)
    prompts.close()
    with pytest.raises(BusyError, match="about to end"):
        prompts.answer("ü", 1, TEXT, 1)


def test_the_end_of_the_service_ends_the_process(
    store: ServiceStore, settings: ServiceSettings, asked: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    prompts = PromptProcess(store, settings)
    # Ends the service once the process waits for its question.
    monkeypatch.setattr(prompt_process.subprocess.Popen, "communicate", lambda *_: prompts.close() or ("", ""))
    _runs(monkeypatch, "import time; time.sleep(600)")
    with pytest.raises(SearchError, match="ended by signal 9"):
        prompts.answer("ü", 1, TEXT, 1)


def test_a_process_that_fails_is_logged_and_not_described(
    make_client: MakeClient,
    store: ServiceStore,
    settings: ServiceSettings,
    asked: str,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    _runs(monkeypatch, "raise SystemExit('secret')")
    with pytest.raises(RuntimeError, match="the log says where"):
        PromptProcess(store, settings).answer("ü", 1, TEXT, 1)
    assert "secret" in caplog.text
    _runs(monkeypatch, "import os; os.kill(os.getpid(), 9)")
    killed = make_client().post(asked, json={"text": TEXT})
    assert killed.status_code == 422 and "ended by signal 9, perhaps because memory ran out" in killed.text


def test_pages_say_why_there_is_no_answer(
    store: ServiceStore, settings: ServiceSettings, asked: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from dashboards.app import RefusedError

    may = actions(store, settings, PromptProcess(store, replace(settings, prompt_s=0.1)))
    for text, tokens, said in (("", 1, "text is ''"), ("a", 0, "new_tokens is 0"), ("a", 9999, "new_tokens is 9999")):
        with pytest.raises(RefusedError, match=said):
            may.prompt("ü", 1, text, tokens)
    _runs(monkeypatch, "import time; time.sleep(600)")
    with pytest.raises(RefusedError, match=r"longer than 0\.1 s"):
        may.prompt("ü", 1, TEXT, 1)


def _runs(monkeypatch: pytest.MonkeyPatch, code: str) -> None:
    monkeypatch.setattr(prompt_process, "_COMMAND", [sys.executable, "-S", "-c", code])
