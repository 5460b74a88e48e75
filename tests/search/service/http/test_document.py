"""The service keeps what its OpenAPI document says, whatever it is sent, and never fails."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis.errors import Unsatisfiable
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.core.result import Ok
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from search.config.run_config import RunConfig
from search.service.auth import login
from search.service.auth.login import TokenShown
from search.service.http import responses, result_responses
from search.service.http.app import create_app
from search.service.http.examples import ANSWERS, OF_OPERATIONS
from search.service.rules.requests import (
    ComparisonRequest,
    LabelsRequest,
    PromptRequest,
    ResumeRequest,
    StudyRequest,
)
from search.service.rules.settings import ServiceSettings
from studies.records.study_facts import SHOWN_FACTS, StudyFacts
from studies.service.service_store import ServiceStore
from tests.studies.records import trial

CHECKS = [not_a_server_error, status_code_conformance, content_type_conformance, response_schema_conformance]
HERE = {"Host": "127.0.0.1"}
EXAMPLES = 15


@pytest.fixture
def store(tmp_path: Path) -> ServiceStore:
    store = ServiceStore(f"sqlite:///{tmp_path / 'studies.db'}")
    store.studies.create("0", {"trials": 3}, ("kl", "latency_ms"))
    for number, values in enumerate([(0.5, 5.0), None, (0.1, 7.0)]):
        store.trials.append("0", trial(number, values))
    return store


def test_operations_say_what_they_do_who_may_and_what_is_sent(store: ServiceStore, tmp_path: Path) -> None:
    document = create_app(store, ServiceSettings(out=tmp_path / "out")).openapi()
    schemas, schemes = document["components"]["schemas"], document["components"]["securitySchemes"]
    assert schemes["token"]["scheme"] == "bearer" and schemes["session"]["name"] == "ftp_session"
    operations = {(method, path): one for path, each in document["paths"].items() for method, one in each.items()}
    summaries = [one["summary"] for one in operations.values()]
    assert len({*summaries}) == len(summaries) > 20 and not [one for one in summaries if one.endswith(".")]
    is_open = {place for place, one in operations.items() if not one["security"]}
    assert is_open == {("get", f"/api/v1/{one}") for one in ("health", "ready")} | {("post", "/api/v1/session")}
    bodies = [one["requestBody"]["content"]["application/json"] for one in operations.values() if "requestBody" in one]
    requests = (StudyRequest, LabelsRequest, ResumeRequest, PromptRequest, ComparisonRequest, TokenShown)
    sent = {one.__name__: one for one in requests}
    for body in bodies:
        [named] = [one for one in body["schema"].get("anyOf", [body["schema"]]) if "$ref" in one]
        made = sent[named["$ref"].split("/")[-1]]
        # What is given for an example can be sent.
        made.model_validate(schemas[made.__name__]["example"])
    assert len(bodies) == len(sent)


def test_every_answer_has_an_example_that_it_could_be(store: ServiceStore, tmp_path: Path) -> None:
    app = create_app(store, ServiceSettings(out=tmp_path / "out"))
    models = {name: one for module in (responses, result_responses, login) for name, one in vars(module).items()}
    seen, kinds = set(), set()
    for path, operations in app.openapi()["paths"].items():
        for method, operation in operations.items():
            for status, response in operation["responses"].items():
                body = response.get("content", {}).get("application/json")
                if not status.startswith("2") or body is None:
                    continue
                kind = body["schema"]["$ref"].rpartition("/")[-1]
                # Nothing is missing, nothing is more, and everything is written as answers write it.
                answer = models[kind].model_validate(body["example"])
                assert answer.model_dump(mode="json") == body["example"], (method, path)
                seen.add((method, path))
                kinds.add(kind)
    assert kinds == set(ANSWERS) and set(OF_OPERATIONS) < seen
    study, file = ANSWERS["StudyAnswer"], ANSWERS["ScheduleFile"]
    assert set(study["facts"]) <= set(SHOWN_FACTS) and StudyFacts(**study["facts"])
    assert RunConfig.checked(str, **study["config"]) == RunConfig.checked(str, **file["settings"])


@pytest.mark.parametrize("mode", list(GenerationMode), ids=lambda mode: mode.value)
def test_the_document_is_kept(store: ServiceStore, tmp_path: Path, mode: GenerationMode) -> None:
    # Streams end at once, else each would be waited for.
    app = create_app(store, ServiceSettings(out=tmp_path / "out", stream_s=0.0))
    document = schemathesis.openapi.from_asgi("/api/v1/openapi.json", app, headers=HERE)
    # Tokens that were made up would keep the rest from being looked at.
    document.config.generation.update(with_security_parameters=False)
    operations = [found.ok() for found in document.get_all_operations() if isinstance(found, Ok)]
    assert len(operations) == document.statistic.operations.total > 20

    for operation in operations:

        @seed(0)
        @settings(
            max_examples=EXAMPLES,
            deadline=None,
            database=None,
            phases=[Phase.generate],
            suppress_health_check=list(HealthCheck),
        )
        @given(case=operation.as_strategy(generation_mode=mode))
        def keeps_to_it(case: schemathesis.Case) -> None:
            case.call_and_validate(headers=HERE, checks=CHECKS)
            if case.method == "GET" and "name" in case.path_parameters:
                # Names that were made up are hardly ever those of a study.
                case.path_parameters["name"] = "0"
                case.call_and_validate(headers=HERE, checks=CHECKS)

        # What takes no parameters cannot be asked wrongly.
        with suppress(Unsatisfiable):
            keeps_to_it()
