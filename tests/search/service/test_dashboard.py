"""The dashboard on the service: who may see and do what, what pages say, and what leaves them as files."""

from __future__ import annotations

import csv
import io
import json
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sqlalchemy as sa
from dash import no_update

from dashboards import ReportData
from dashboards.analysis.compared import WHERE_IT_RUNS, common_volumes, differing_settings
from dashboards.app import RefusedError
from dashboards.app.addresses import asked_of
from dashboards.app.backend import ThreadedBackend
from dashboards.app.data_source import Watch
from dashboards.app.frame import Frame
from dashboards.app.listing import AT_ONCE, Group, Wanted, listed
from dashboards.app.pages.chosen import ChosenStudies
from dashboards.app.pages.compare import MOST, ComparePage
from dashboards.app.pages.create import NewPage
from dashboards.app.pages.explore import Exploring, ranges
from dashboards.app.pages.labelling import Labelling
from dashboards.app.pages.manage import study_key
from dashboards.app.pages.other_methods import OtherMethods
from dashboards.app.pages.studies import StudiesPage
from dashboards.app.pages.study import StudyPage
from dashboards.app.pages.trial_acts import TrialActs
from dashboards.app.views import FIGURES, Views
from search.config.groups import RunSettings
from search.config.run_config import HEADINGS, SETTINGS, SUBMITTABLE, RunConfig
from search.config.sweep_plan import read_sweep, repeated
from search.service.dashboard import actions, dashboard, form_field
from search.service.jobs.prompt_process import PromptProcess
from search.service.rules.settings import ServiceSettings
from studies import StorageError, StudyState
from studies.pareto import RUINED_KL, FrontVolume
from studies.records.labels import Labels
from studies.records.study_facts import ProfileRecord, StudyFacts
from studies.records.trial import WorkSpan
from studies.service.service_store import ServiceStore
from studies.service.submissions import RunState
from tests.dashboards import records
from tests.search.service.conftest import MakeClient

# The list as it is without an address that says more.
ALL = ("", "", "newest", "1", "", "", "", "groups")
SCRIPT = "<script>alert(1)</script>"


def filled(store: ServiceStore, name: str = "made up") -> None:
    store.studies.create(name, dict(records.STUDY.config), records.STUDY.objectives)
    store.trials.begin(name, records.TRIALS)
    store.trials.finish(name, records.TRIALS)
    store.studies.update_facts(name, records.STUDY.facts)
    store.studies.choose_trial(name, records.REFINED.number)
    store.results.replace_measurements(name, records.measurements())
    store.results.keep_examples(name, records.EXAMPLES)
    store.runs.set_state(name, StudyState.FINISHED)


def text_of(component: Any) -> str:
    """Everything that a component says, as JSON."""
    return json.dumps(component, default=lambda one: one.to_plotly_json())


@pytest.fixture
def watch(store: ServiceStore) -> Watch:
    return Watch(store)


@pytest.fixture
def unused(store: ServiceStore, watch: Watch, settings: ServiceSettings) -> TrialActs:
    """Buttons that a reader does not see."""
    return TrialActs(watch, actions(store, settings, PromptProcess(store, settings)), lambda: False)


# What a page sends beside the path of its address.
PAGE = {
    "outputs": {"id": "page", "property": "children"},
    "state": [{"id": "url", "property": "search", "value": ""}],
}


def ask(client: Any, output: str, inputs: list[Any], headers: dict[str, str] | None = None, **more: Any) -> Any:
    body = {"output": output, "inputs": inputs, **more}
    return client.post("/_dash-update-component", json=body, headers=headers or {})


def test_pages_are_behind_the_door_and_hardened(
    make_client: MakeClient, settings: ServiceSettings, store: ServiceStore, reader: dict[str, str]
) -> None:
    client = make_client(dashboard=dashboard(settings))
    for path in ("/", "/new", "/compare", "/study/some/name"):
        refused = client.get(path, headers={"Accept": "text/html"})
        assert refused.status_code == 303 and refused.headers["location"].startswith("/login?next=%2F")
        page = client.get(path, headers=reader)
        assert page.status_code == 200 and 'lang="en"' in page.text
        policy = page.headers["content-security-policy"]
        assert "script-src 'self' 'sha256-" in policy and "default-src 'none'" in policy
    for path in ("/_dash-layout", "/_dash-dependencies", "/assets/dashboard.css", "/export/x/study.json"):
        assert client.get(path).status_code == 401
    assert ask(client, "x", []).status_code == 401


def test_addresses_without_a_page_are_not_found(make_client: MakeClient, settings: ServiceSettings) -> None:
    with make_client(dashboard=dashboard(settings)) as client:
        for path in ("/nothing", "/api/v1/nothing", "/export/nothing/study.json"):
            assert client.get(path).status_code == 404
        assert client.get("/api/v1/nothing").json()["detail"].startswith("There is nothing at this address")
        assert not any(
            path.startswith("/export") or "study/" in path
            for path in client.get("/api/v1/openapi.json").json()["paths"]
        )


def test_a_page_loads_nothing_from_elsewhere(make_client: MakeClient, settings: ServiceSettings) -> None:
    page = make_client(dashboard=dashboard(settings)).get("/").text
    assert 'src="http' not in page and "cdn" not in page and 'href="http' not in page


@pytest.mark.parametrize("path", ["/_dash-component-suites/plotly/package_data/plotly.min.js", "/assets/dashboard.js"])
def test_scripts_are_sent_again_only_once_they_have_changed(
    make_client: MakeClient, settings: ServiceSettings, reader: dict[str, str], path: str
) -> None:
    client = make_client(dashboard=dashboard(settings))
    plain = client.get(path, headers={**reader, "Accept-Encoding": "identity"})
    packed = client.get(path, headers={**reader, "Accept-Encoding": "gzip"})
    assert "content-encoding" not in plain.headers and packed.headers["content-encoding"] == "gzip"
    assert packed.content == plain.content and "javascript" in packed.headers["content-type"]
    assert int(packed.headers["content-length"]) < len(plain.content) / 2
    for sent in (plain, packed):
        assert sent.status_code == 200 and sent.headers["cache-control"] == "private, no-cache"
        assert sent.headers["vary"] == "Accept-Encoding"
        asked = {"If-None-Match": sent.headers["etag"], "Accept-Encoding": sent.headers.get("content-encoding", "")}
        known = client.get(path, headers={**reader, **asked})
        assert (known.status_code, known.content) == (304, b"") and known.headers["etag"] == sent.headers["etag"]
    changed = client.get(path, headers={**reader, "If-None-Match": '"another"'})
    assert changed.status_code == 200 and changed.content == plain.content
    # Whoever is not let in has nothing to keep, and no page is kept.
    assert client.get(path, headers={"If-None-Match": plain.headers["etag"]}).status_code == 401
    for elsewhere in (client.get(path), client.get("/", headers=reader), client.get("/_dash-layout", headers=reader)):
        assert elsewhere.headers["cache-control"] == "no-store"


def test_a_script_is_kept_once_whatever_its_address_says(
    make_client: MakeClient, settings: ServiceSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    client, read, served = make_client(dashboard=dashboard(settings)), [], ThreadedBackend.serve_component_suites

    def noted(self: ThreadedBackend, dash: Any, package: str, path: str, request: Any) -> Any:
        read.append((package, path))
        return served(self, dash, package, path, request)

    monkeypatch.setattr(ThreadedBackend, "serve_component_suites", noted)
    place = "/_dash-component-suites/dash/dcc/dash_core_components"
    plain = client.get(f"{place}.js")
    for number in range(5):
        again = client.get(f"{place}.v9m{number:x}.js")
        assert again.content == plain.content and again.headers["etag"] == plain.headers["etag"]
        assert "max-age" in again.headers["cache-control"]
    assert read == [("dash", "dcc/dash_core_components.js")] and "max-age" not in plain.headers["cache-control"]


@pytest.mark.parametrize(
    "path",
    [
        *("plotly/package_data/absent.js", "plotly/package_data/absent.v9m1.js", "plotly/__init__.py", "absent/x.js"),
        *("plotly/..%2f..%2fpyproject.toml", "os/os.py", "dash/dcc/", "dash/%00", "plotly/package_data/plotly.v9m1"),
    ],
)
def test_scripts_that_are_not_there_are_not_found(
    make_client: MakeClient, settings: ServiceSettings, path: str
) -> None:
    missing = make_client(dashboard=dashboard(settings)).get(f"/_dash-component-suites/{path}")
    assert missing.status_code == 404 and missing.headers["content-type"] == "application/problem+json"


def test_pages_of_other_sites_load_no_scripts_from_here(make_client: MakeClient, settings: ServiceSettings) -> None:
    client = make_client(dashboard=dashboard(settings))
    script = {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "no-cors", "Sec-Fetch-Dest": "script"}
    for path in ("/_dash-component-suites/plotly/package_data/plotly.min.js", "/assets/dashboard.js", "/_dash-layout"):
        assert client.get(path, headers=script).status_code == 403
        assert client.get(path, headers={**script, "Sec-Fetch-Site": "same-origin"}).status_code == 200


def test_callbacks_of_a_session_need_its_csrf_token(
    make_client: MakeClient, settings: ServiceSettings, store: ServiceStore
) -> None:
    from studies.service.tokens import Role

    secret = store.tokens.add("ada", Role.EDITOR)
    client = make_client(dashboard=dashboard(settings))
    client.post("/api/v1/session", json={"token": secret})
    inputs = [{"id": "url", "property": "pathname", "value": "/"}]
    call = {**PAGE, "changedPropIds": ["url.pathname"]}
    assert ask(client, "page.children", inputs, **call).status_code == 403
    csrf = {"X-CSRFToken": client.cookies["_csrf_token"]}
    answer = ask(client, "page.children", inputs, csrf, **call)
    assert answer.status_code == 200 and "No studies" in answer.text and "New study" in answer.text


def test_a_reader_sees_pages_but_no_buttons(
    make_client: MakeClient,
    settings: ServiceSettings,
    store: ServiceStore,
    reader: dict[str, str],
    editor: dict[str, str],
) -> None:
    filled(store)
    client = make_client(dashboard=dashboard(settings))
    call = {**PAGE, "changedPropIds": ["url.pathname"]}

    def page(path: str, who: dict[str, str]) -> str:
        return str(
            ask(client, "page.children", [{"id": "url", "property": "pathname", "value": path}], who, **call).text
        )

    assert "Delete made up" in page("/", editor) and "Delete made up" not in page("/", reader)
    assert "Delete made up" in page("/study/made%20up", editor) and "Delete" not in page("/study/made%20up", reader)
    assert "only editors" in page("/new", reader)


def test_the_list_says_where_studies_stand(store: ServiceStore, watch: Watch, settings: ServiceSettings) -> None:
    page = StudiesPage(watch, actions(store, settings, PromptProcess(store, settings)), lambda: True)
    assert "No studies" in text_of(page.layout(""))
    filled(store)
    filled(store, SCRIPT)
    store.studies.create("next", {"trials": 50, "model": "demo"}, ("kl", "latency_ms"))
    store.queue.submit("next", by="ada")
    content, _, _, seen, *_ = page.rows(1, None, *ALL, None)
    text = text_of(content)
    assert SCRIPT in text and "200 trials" in text and "waits for a runner" in text and "submitted by ada" in text
    # What stays the same is not drawn again.
    assert page.rows(2, None, *ALL, seen)[3] != seen
    said, _, asked, question, is_shown = page.press("delete", "made up")
    assert asked == "made up" and "cannot be undone" in question and is_shown
    assert page.delete(None, "made up")[0] != "made up: deleted."
    assert page.delete(1, "made up")[0] == "made up: deleted."
    assert "like=made+up" in text and page.rows(1, None, *ALL, None)[1] == []
    said = page.press("stop", "next")[0]
    assert "stops" in said and watch.standing("next").state is RunState.STOPPED
    assert "goes on" in page.press("resume", "next")[0] and watch.standing("next").state is RunState.QUEUED


def ids_of(component: Any) -> set[str]:
    """The ids of everything in a component, as text."""
    found: set[str] = set()

    def noted(one: dict[str, Any]) -> dict[str, Any]:
        found.update([one["id"] if isinstance(one["id"], str) else json.dumps(one["id"])] if "id" in one else [])
        return one

    json.loads(text_of(component), object_hook=noted)
    return found


def test_ids_of_components_hold_no_text_of_users(store: ServiceStore, watch: Watch, settings: ServiceSettings) -> None:
    name, may = "nämé", actions(store, settings, PromptProcess(store, settings))
    filled(store, name)
    store.trials.append(name, replace(records.TRIALS[9], number=200, parents=(9,), proposer=name))
    exploring = Exploring(watch, TrialActs(watch, may, lambda: True))
    look = {"version": "1", "theme": None, "webgl": True}
    study = StudyPage(watch, may, lambda: True)
    shown = [
        *(StudiesPage(watch, may, lambda: True).layout(""), NewPage(may, lambda: True).layout("")),
        *(ComparePage(watch).layout(""), ComparePage(watch).verdicts([name])),
        *(study.layout(name), study.look(1, None, name, None, None), exploring.panel(200, None, name)),
        *(exploring.below(look, "latency_ms", "kl", name), Views(watch).prompts(look, name)),
    ]
    ids = set().union(*map(ids_of, shown))
    assert any('"act"' in one for one in ids) and any('"parent"' in one for one in ids)
    assert not [one for one in ids if not one.isascii() or "\\u" in one]


@pytest.mark.parametrize("read", ["page", "api"])
def test_a_list_of_many_studies_asks_the_database_as_often_as_one_of_few(
    make_client: MakeClient, store: ServiceStore, watch: Watch, read: str
) -> None:
    client = make_client()
    asked: list[str] = []

    def note(connection: object, cursor: object, statement: str, *_: object) -> None:
        asked.append(statement)

    def n_asked() -> int:
        asked.clear()
        if read == "page":
            watch.lines()
        else:
            assert client.get("/api/v1/studies", params={"limit": 3}).status_code == 200
        return len(asked)

    filled(store, "0")
    sa.event.listen(sa.engine.Engine, "before_cursor_execute", note)
    try:
        for_one = n_asked()
        for number in range(1, 6):
            store.create_submitted(str(number), dict(records.STUDY.config), records.STUDY.objectives)
            store.events.add(str(number), [("figures", {"figures": {"trials_per_s": 9.5}})])
        assert n_asked() == for_one <= 11
    finally:
        sa.event.remove(sa.engine.Engine, "before_cursor_execute", note)


def test_a_line_of_the_list_says_what_its_study_says(store: ServiceStore, watch: Watch) -> None:
    filled(store)
    store.create_submitted("next", {"trials": 50}, ("kl", "latency_ms"))
    figures = {"trials_per_s": 9.5, "knee_kl": 0.25, "knee_cost": 30.0, "proposer": "deap"}
    with store.runs.lease("next"):
        store.queue.claim("next", "w")
        store.runs.set_state("next", StudyState.RUNNING)
        store.runs.begin_stage("next", "search")
        store.events.add("next", [("figures", {"figures": figures}), ("log", {"text": "on it"})])
        following, done = watch.lines()
        assert (following.state, following.stage) == (RunState.RUNNING, "search")
        assert following.figures == watch.standing("next").figures and "proposer" not in following.figures
        assert following.best == (0.25, 30.0) and following.wanted == 50
    assert (done.state, done.stage, done.best) == (RunState.FINISHED, None, records.REFINED.values)
    # Whoever ran it has left without a word.
    assert watch.lines()[0].state is RunState.QUEUED and watch.lines()[0].stage is None


def test_what_runs_is_said_on_the_list_and_on_the_page(
    store: ServiceStore, watch: Watch, settings: ServiceSettings
) -> None:
    config = {"trials": 300, "router_steps": 80}
    for name in ("first", "second", "third"):
        store.create_submitted(name, config, ("kl", "latency_ms"))
    may = actions(store, settings, PromptProcess(store, settings))
    study, studies = StudyPage(watch, may, lambda: True), StudiesPage(watch, may, lambda: True)

    def said(name: str) -> str:
        return text_of(study.layout(name))

    assert "1 study ahead in the queue" in said("second") and "next in the queue" in said("first")
    assert "2 studies ahead in the queue" in text_of(studies.layout(""))
    assert "No runner is there" in said("second") and "No runner is there" in text_of(studies.layout(""))
    version = watch.version("third")
    store.runners.beat("w", "first")
    assert "No runner is there" not in said("second")
    foreseen = ["search", "distill-1", "refine-1", "measure"]
    with store.runs.lease("first"):
        store.queue.claim("first", "w")
        # A page that shows the place in the queue is drawn anew as that changes.
        assert watch.version("third") != version and "1 study ahead" in said("third")
        store.runs.set_state("first", StudyState.RUNNING)
        store.events.add("first", [("began", {"stages": foreseen})])
        store.runs.begin_stage("first", "search")
        figures = {"stage": "search", "step": 60, "figures": {"trials_per_s": 8.0}}
        store.events.add("first", [("figures", figures), ("log", {"text": SCRIPT}), ("log", {"text": "on it"})])
        [line] = [one for one in watch.lines() if one.summary.name == "first"]
        assert line.progress == watch.standing("first").progress
        for text in (said("first"), text_of(studies.layout(""))):
            assert "tage 1 of 4: search" in text and "60 of at most 300 trials, at most 30 s left" in text
            assert "on it" in text and SCRIPT not in text and "data-since" in text
        # Figures of a stage that has ended tell nothing of the next one.
        store.runs.end_stage("first", "search", StudyState.FINISHED)
        store.runs.begin_stage("first", "distill-1")
        assert "2 of 4: distill-1" in said("first") and "of at most" not in said("first")
        store.events.add("first", [("figures", {"stage": "distill-1", "step": 20, "figures": {"held_out_kl": 0.1}})])
        assert "20 of at most 80 steps" in said("first") and "at most 30 s left" not in said("first")
        store.runs.end_stage("first", "distill-1", StudyState.FINISHED)
        store.runs.set_state("first", StudyState.FINISHED)
        store.queue.end("first", "w")
    assert "What runs" not in said("first")


def test_a_list_of_many_studies_is_searched_sorted_and_turned(
    store: ServiceStore, watch: Watch, settings: ServiceSettings
) -> None:
    for number in range(60):
        config = {"model": "llama" if number % 2 else "demo", "data": "demo"}
        store.studies.create(f"study {number:02}", config, ("kl", "latency_ms"))
        if number % 3 == 0:
            store.runs.set_state(f"study {number:02}", StudyState.FINISHED)
    page = StudiesPage(watch, actions(store, settings, PromptProcess(store, settings)), lambda: True)
    lines = watch.lines()

    def names(*chosen: str) -> list[str]:
        return [one.summary.name for one in listed(lines, Wanted(*chosen)).rows]

    assert names(*ALL) == [f"study {number:02}" for number in range(59, 59 - AT_ONCE, -1)]
    assert names("", "", "oldest", "3") == [f"study {number:02}" for number in range(50, 60)]
    assert names("", "", "name", "1")[0] == "study 00"
    assert names("DEMO 57", "", "name", "1") == ["study 57"]
    both = listed(lines, Wanted("LLAMA 5", "finished", "name", "1"))
    assert [one.summary.name for one in both.rows] == ["study 15", "study 45", "study 51", "study 57"]
    assert both.words == "4 of 60 studies"
    # Whatever an address says, a page is shown.
    for nonsense in ("0", "99", "-1", "x", "²", "9" * 5000):
        assert listed(lines, Wanted("", "", "nothing", nonsense)).rows
    assert listed(lines, Wanted("none such", "", "name", "1")).rows == []
    text = text_of(page.layout("", {"q": ["study"], "page": ["2"], "state": ["nonsense"]}))
    assert "60 studies, page 2 of 3" in text and "study 20" in text and "study 59" not in text
    assert "No such studies" in text_of(page.layout("", {"q": ["none such"]}))
    _, _, _, seen, *shown = page.rows(1, None, "", "", "newest", "3", *ALL[4:], None)
    assert shown == ["60 studies, page 3 of 3", False, True]
    assert page.rows(2, None, "", "", "newest", "3", *ALL[4:], seen)[1] is no_update


@pytest.mark.parametrize(
    ("search", "view", "number"),
    [
        ("", "front", None),
        ("?tab=log&trial=9", "log", 9),
        ("?tab=log&tab=prompts", "prompts", None),
        ("?tab=nonsense&trial=many", "front", None),
        ("?trial=²", "front", None),
        ("?" + "a=1&" * 500, "front", None),
    ],
)
def test_a_page_shows_what_its_address_asks_for_if_it_can(
    store: ServiceStore, watch: Watch, settings: ServiceSettings, search: str, view: str, number: int | None
) -> None:
    filled(store)
    page = StudyPage(watch, actions(store, settings, PromptProcess(store, settings)), lambda: True).layout(
        "made up", asked_of(search)
    )
    shown = [one.id["view"] for one in page.children if getattr(one, "hidden", None) is False]
    assert shown == [view]
    assert page["view"].value == view and getattr(page["selected"], "data", None) == number
    # One that is given nothing would say as it appears that this is new, and a ring be moved that is not there yet.
    assert ("data" in page["selected"].to_plotly_json()["props"]) == (number is not None)


def test_sweeps_and_seeds_stand_in_one_row_that_opens(
    store: ServiceStore, watch: Watch, settings: ServiceSettings, tmp_path: Path
) -> None:
    plan = tmp_path / "grid.yaml"
    plan.write_text("models: [demo, ./models/my model]\ntargets: [0.2, 0.35]\nseeds: 2\n")
    for sweep in (read_sweep(plan), repeated("mine", RunConfig(), 3)):
        for one in sweep.studies:
            config = one.config.model_copy(update={"workers": one.config.seed + 1})
            labels = Labels(sweep=sweep.name)
            store.studies.create(one.name, config.model_dump(mode="json"), ("kl", "latency_ms"), labels=labels)
    store.runs.set_state("grid-demo-t0.2-s0", StudyState.FINISHED)
    # Equal ones that no sweep made, one with another number of trials, and a name that only ends as those of sweeps do.
    for seed, trials in ((0, 50), (1, 50), (2, 60)):
        store.studies.create(f"alone{seed}", {"model": "m", "seed": seed, "trials": trials}, ("kl", "latency_ms"))
    store.studies.create("grid-s3", {"model": "demo"}, ("kl", "latency_ms"))
    lines = watch.lines()

    def rows(**wanted: str) -> list[str]:
        shown = listed(lines, Wanted(order="name", **wanted)).rows
        return [f"{x.kind} {x.title} {len(x.lines)}" if isinstance(x, Group) else x.summary.name for x in shown]

    assert rows() == ["seeds alone0 2", "alone2", "sweep grid 8", "grid-s3", "sweep mine 3"]
    grid = [f"grid-{model}-t{target}" for model in ("demo", "my-model") for target in (0.2, 0.35)]
    assert rows(sweep="grid") == [f"seeds {one}-s0 2" for one in grid]
    assert rows(sweep="mine") == ["mine-s0", "mine-s1", "mine-s2"]
    assert rows(sweep="grid", seeds="grid-demo-t0.2-s1") == ["grid-demo-t0.2-s0", "grid-demo-t0.2-s1"]
    assert rows(seeds="alone1") == ["alone0", "alone1"] and rows(seeds="none") == []
    assert rows(sweep="grid", state="finished") == ["grid-demo-t0.2-s0"] == rows(state="finished")
    assert len(rows(rows="each")) == 15
    group = listed(lines, Wanted(typed="grid-")).rows[-1]
    assert isinstance(group, Group) and group.states == [(RunState.CREATED, 7), (RunState.FINISHED, 1)]
    page = StudiesPage(watch, actions(store, settings, PromptProcess(store, settings)), lambda: True)
    content, sweeps, _, _, words, *_ = page.rows(1, None, *ALL, None)
    text = text_of(content)
    assert sweeps == ["grid", "mine"] and words == "15 studies in 5 rows" and "seeds 0, 1, 2" in text
    assert "/?sweep=grid" in text and "/?seeds=alone0" in text and "/compare?study=alone1&study=alone0" in text
    opened = page.layout("", {"sweep": ["grid"]})
    assert "8 of 15 studies in 4 rows" in text_of(opened) and "sweep=grid&seeds=grid" in text_of(opened)


def test_settings_that_say_where_a_study_runs_are_those_of_the_machine() -> None:
    assert {field for field, one in SETTINGS.items() if one.group == RunSettings.heading} == WHERE_IT_RUNS


def test_studies_are_found_by_tag_and_note_and_labelled_on_their_page(
    store: ServiceStore, watch: Watch, settings: ServiceSettings
) -> None:
    may = actions(store, settings, PromptProcess(store, settings))
    assert NewPage(may, lambda: True).create({"name": "a", "tags": "paper, mu\u0308ller,", "note": SCRIPT}) == "a"
    store.studies.create("b", {"model": "demo"}, ("kl", "latency_ms"), labels=Labels(("paper",)))
    lines = watch.lines()
    for wanted in (Wanted(tag="m\u00fcller"), Wanted(typed="M\u00dcLLER"), Wanted(typed="alert")):
        assert [one.summary.name for one in listed(lines, wanted).rows] == ["a"]
    page = StudiesPage(watch, may, lambda: True)
    content, _, tags, *_ = page.rows(1, None, *ALL, None)
    assert tags == ["m\u00fcller", "paper"] and "/?tag=m%C3%BCller" in text_of(content) and SCRIPT in text_of(content)
    study = StudyPage(watch, may, lambda: True)
    assert SCRIPT in text_of(study.layout("a")) and '"paper, m\\u00fcller"' in text_of(study.layout("a"))
    assert "labels-save" not in text_of(StudyPage(watch, may, lambda: False).layout("a"))
    version, labelling = watch.version("a"), Labelling(may, lambda: True)
    were = {"tags": "paper, m\u00fcller", "note": SCRIPT}
    # What was not touched here stays what it has become elsewhere.
    store.studies.label("a", note="better")
    assert labelling.save(1, "x, y", SCRIPT, were, "a") == ("Saved.", {"tags": "x, y", "note": SCRIPT}, 1)
    assert store.studies.get("a").labels == Labels(("x", "y"), "better") and watch.version("a") != version
    for refused, why in (("x" * 41, "at most 40 characters"), ("a\0", "printable"), (",".join("a" * 21), "")):
        assert why in labelling.save(1, refused, "better", were, "a")[0]
    assert "only editors" in Labelling(may, lambda: False).save(1, "z", "", were, "a")[0]
    assert "no such study" in labelling.save(1, "z", "", were, "none")[0]
    assert store.studies.get("a").labels.tags in (("x", "y"), ("a",))
    # One that is made like it is about the same.
    assert '"paper"' in text_of(NewPage(may, lambda: True).layout("", {"like": ["b"]}))


def test_the_list_says_when_studies_changed_and_who_submitted_them(store: ServiceStore, watch: Watch) -> None:
    for name, by in (("first", "zoe"), ("second", None), ("third", "Ada")):
        store.create_submitted(name, {"model": "demo"}, ("kl", "latency_ms"), by=by)
    store.studies.create("fourth", {"model": "demo"}, ("kl", "latency_ms"))
    with store.runs.lease("first"):
        store.queue.claim("first", "w")
        store.runs.begin_stage("first", "search")
        before = watch.lines()[-1].changed_at
        store.events.add("first", [("log", {"text": "on it"})])
    lines = watch.lines()
    assert lines[-1].summary.created_at <= before < lines[-1].changed_at
    assert listed(lines, Wanted(order="changed")).rows[0].summary.name == "first"
    assert [one.summary.name for one in listed(lines, Wanted(order="by")).rows][:2] == ["third", "first"]


def test_one_that_fails_does_not_keep_the_other_chosen_studies_from_being_deleted(
    store: ServiceStore, watch: Watch, settings: ServiceSettings
) -> None:
    may = actions(store, settings, PromptProcess(store, settings))
    for name in ("a", "b", "busy"):
        store.studies.create(name, {"model": "demo"}, ("kl", "latency_ms"))
    store.queue.submit("busy")
    keys = [study_key(name) for name in ("a", "busy", "gone", "b")]
    refused = text_of(ChosenStudies(watch, StudiesPage(watch, may, lambda: False).done).act("delete", keys))
    assert "Deleted: 0 of 4" in refused and "only editors" in refused and len(watch.names()) == 3
    chosen = ChosenStudies(watch, StudiesPage(watch, may, lambda: True).done)
    with store.runs.lease("busy"):
        said = text_of(chosen.act("delete", keys))
    assert "Deleted: 2 of 4 studies" in said and "busy: " in said and watch.names() == ["busy"]
    assert "Asked to stop: 1 of 1 study." in text_of(chosen.act("stop", [study_key("busy")]))


def test_whoever_is_no_editor_changes_nothing(store: ServiceStore, watch: Watch, settings: ServiceSettings) -> None:
    filled(store)
    may = actions(store, settings, PromptProcess(store, settings))
    assert "only editors" in StudiesPage(watch, may, lambda: False).delete(1, "made up")[0]
    assert "only editors" in StudyPage(watch, may, lambda: False).press("resume", "made up", None)[0]
    outcome = NewPage(may, lambda: False).create({"name": "mine"})
    assert isinstance(outcome, RefusedError) and store.studies.summaries()[0].name == "made up"
    assert len(store.studies.summaries()) == 1


def test_editors_measure_select_and_save_the_trial_that_they_look_at(
    store: ServiceStore, watch: Watch, settings: ServiceSettings, unused: TrialActs
) -> None:
    filled(store)
    may = actions(store, settings, PromptProcess(store, settings))
    acts = TrialActs(watch, may, lambda: True)
    shown = text_of(Exploring(watch, acts).panel(9, None, "made up"))
    assert all(f'"do": "{what}", "trial": 9' in shown for what in ("measure", "select", "export"))
    # Nothing is known of a trial that failed.
    assert '"do"' not in text_of(Exploring(watch, acts).panel(7, None, "made up"))
    assert '"do"' not in text_of(Exploring(watch, unused).panel(9, None, "made up"))
    assert "only editors" in unused.press("measure", 9, "made up")[0] and store.queue.get("made up") is None
    assert "Nothing was done" in acts.press("frobnicate", 9, "made up")[0]
    assert "no such trial" in acts.press("measure", 9999, "made up")[0]
    assert "no trial 9999" in acts.press("export", 9999, "made up")[0]
    file = acts.press("export", 9, "made up")[2]
    assert file["filename"] == "made up-trial-9.json" and json.loads(file["content"])["trial"] == 9
    said, changed, _ = acts.press("select", 9, "made up")
    submission = store.queue.get("made up")
    assert said == changed and submission is not None and submission.changes["select_trial"] == 9
    assert "waits for a runner" in acts.press("measure", 9, "made up")[0]
    store.runs.set_state("made up", StudyState.STOPPED)
    stopped = text_of(Exploring(watch, acts).panel(9, None, "made up"))
    assert '"do": "export"' in stopped and '"do": "measure"' not in stopped


def test_editors_start_comparisons_of_finished_studies(
    store: ServiceStore, watch: Watch, settings: ServiceSettings
) -> None:
    filled(store)
    may = actions(store, settings, PromptProcess(store, settings))
    form, unused = OtherMethods(watch, may, lambda: True), OtherMethods(watch, may, lambda: False)
    shown = text_of(form.layout(watch.standing("made up")))
    assert all(f'"{name}"' in shown for name in ("shortgpt", "puzzle")) and '"disabled": false' in shown
    assert "others-start" not in text_of(unused.layout(watch.standing("made up")))
    assert all(f'"others-{field}"' in shown for field in ("budgets", "seeds", "shapes"))
    assert "only editors" in unused.start(1, ["laco"], "flops", "made up", "", "", "")[0]
    for methods, match, typed, said in (
        ([], "flops", ("", "", ""), "methods names nothing"),
        (["laco"], "flops", ("0.2, x", "", ""), "budgets.1 is 'x': expected a number"),
        (["laco"], "flops", ("2", "", ""), "budgets has '2.0'"),
        (["laco"], None, ("", None, ""), "match is ''"),
        (["laco"], "flops", ("0.2", "many", ""), "seeds is 'many': expected a whole number"),
        (["laco"], "flops", ("0.2", "0", ""), "seeds is '0'"),
        (["laco"], "flops", ("0.2", "", "8"), "shapes has '8': expected rows and tokens"),
    ):
        assert form.start(1, methods, match, "made up", *typed)[0].startswith(said)
        assert store.queue.get("made up") is None
    asked = ("0.2, 0.3", " 2", "1x64, 2x32")
    assert "as soon as a runner is free" in form.start(1, ["laco"], "flops", "made up", *asked)[0]
    submission = store.queue.get("made up")
    assert submission is not None and submission.comparison is not None
    assert submission.comparison["targets"] == [0.2, 0.3] and submission.comparison["seeds"] == 2
    assert submission.comparison["shapes"] == [[1, 64], [2, 32]]
    look = {"theme": "light", "webgl": False}
    assert '"disabled": true' in (now := text_of(form.acts(look, "made up"))) and "waits for a runner" in now
    store.queue.request_stop("made up")
    store.runs.set_state("made up", StudyState.STOPPED)
    assert "is stopped: resume it" in text_of(form.acts(look, "made up"))


def test_a_verb_that_no_button_has_does_nothing(store: ServiceStore, watch: Watch, settings: ServiceSettings) -> None:
    filled(store)
    may = actions(store, settings, PromptProcess(store, settings))
    for what in ("frobnicate", "", "Delete", "None"):
        for said in (
            StudiesPage(watch, may, lambda: True).press(what, "made up")[0],
            StudyPage(watch, may, lambda: True).press(what, "made up", None)[0],
        ):
            assert "Nothing was done" in said
    assert [summary.name for summary in store.studies.summaries()] == ["made up"]


@pytest.mark.parametrize("typed", ["²", "many", "-3", "1.5"])
def test_trials_that_are_no_whole_number_are_refused(
    store: ServiceStore, watch: Watch, settings: ServiceSettings, typed: str
) -> None:
    filled(store)
    page = StudyPage(watch, actions(store, settings, PromptProcess(store, settings)), lambda: True)
    assert "expected a whole number" in page.press("resume", "made up", typed)[0]
    assert store.queue.get("made up") is None


def test_the_form_has_every_setting_and_creates_what_it_says(
    store: ServiceStore, watch: Watch, settings: ServiceSettings
) -> None:
    may = actions(store, settings, PromptProcess(store, settings))
    assert {one.name for one in may.fields} == set(SUBMITTABLE)
    page = NewPage(may, lambda: True)
    values = {
        "name": "mine",
        "trials": "20",
        "target_sparsity": "0.3",
        "dense_blocks": "0, -1",
        "latency_length": "512",
        "new_tokens": "16, 128",
        "deterministic": ["on"],
    }
    assert page.mistakes(values, is_whole=True) == {}
    assert page.create(values) == "mine"
    config = store.studies.get("mine").config
    assert (config["trials"], config["target_sparsity"], config["deterministic"]) == (20, 0.3, True)
    assert list(config["dense_blocks"]) == [0, -1]
    assert (list(config["latency_length"]), list(config["new_tokens"])) == ([512], [16, 128])
    assert watch.standing("mine").state is RunState.QUEUED


@pytest.mark.parametrize(
    ("values", "field"),
    [
        ({"name": ""}, "name"),
        ({"name": "a", "trials": "many"}, "trials"),
        ({"name": "a", "trials": "0"}, "trials"),
        ({"name": "a", "target_sparsity": "2"}, "target_sparsity"),
        ({"name": "a", "sampler": "nobody"}, "sampler"),
        ({"name": "a", "new_tokens": "16, some"}, "new_tokens"),
        ({"name": "a", "latency_length": "0"}, "latency_length"),
        ({"name": "a", "data": "/etc/passwd"}, "data"),
        ({"name": "there"}, "name"),
    ],
)
def test_the_form_says_which_field_is_wrong(
    store: ServiceStore, settings: ServiceSettings, values: dict[str, str], field: str
) -> None:
    store.studies.create("there", {}, ("kl", "latency_ms"))
    outcome = NewPage(actions(store, settings, PromptProcess(store, settings)), lambda: True).create(values)
    assert isinstance(outcome, RefusedError) and outcome.field == field, outcome
    assert len(store.studies.summaries()) == 1


def test_the_form_says_everything_that_is_wrong_at_once(store: ServiceStore, settings: ServiceSettings) -> None:
    page = NewPage(actions(store, settings, PromptProcess(store, settings)), lambda: True)
    values = {
        "trials": "many",
        "seed": "-1",
        "target_sparsity": "2",
        "sampler": "nobody",
        "rounds": "1",
        "seconds": "0",
    }
    found = page.mistakes(values, is_whole=True)
    assert set(found) == {"name", "trials", "seed", "target_sparsity", "sampler", "seconds"}
    assert "expected a whole number" in found["trials"] and "name" not in page.mistakes(values)
    # What only two fields together get wrong is said of one of them.
    both = page.mistakes({"target_sparsity": "0.3", "target_speedup": "1.5"})
    assert len(both) == 1
    text = text_of(page.layout(""))
    assert "Default: 300." in text and "Default: 60.0 s." in text
    assert all(heading in text and about in text for heading, about in HEADINGS.items())


def test_the_form_says_of_paths_and_names_what_creating_would_say(
    store: ServiceStore, settings: ServiceSettings, tmp_path: Path
) -> None:
    store.create_submitted("there", {"out": str(tmp_path / "root" / "results")}, ("kl", "latency_ms"))
    page = NewPage(actions(store, settings, PromptProcess(store, settings)), lambda: True)
    wrong = {
        **{"name": "there", "model": "absent", "data": "/etc/passwd", "test_data": "absent.jsonl", "adapter": "/etc"},
        **{"out": "results", "warm_start": "nobody", "seed": "-1"},
    }
    found = page.mistakes(wrong)
    assert set(found) == set(wrong)
    # Creating one says the same of each as if it were the only one.
    for field, said in found.items():
        outcome = page.create({"name": "mine", field: wrong[field]})
        assert isinstance(outcome, RefusedError) and (outcome.field, str(outcome)) == (field, said)
    # Once the name is changed, the others are said all the same.
    assert set(page.mistakes({**wrong, "name": "mine"}, is_whole=True)) == set(wrong) - {"name"}
    assert len(store.studies.summaries()) == 1
    # Data is read as the study is created, and what it says is said of its field.
    (tmp_path / "root" / "data.jsonl").write_text("{}")
    values = {"name": "mine", "data": "data.jsonl"}
    assert page.mistakes(values, is_whole=True) == {}
    outcome = page.create(values)
    assert isinstance(outcome, RefusedError) and outcome.field == "data" and "line 1" in str(outcome)


def test_a_form_that_is_filled_in_like_a_study_makes_one_of_the_same_settings(
    store: ServiceStore, settings: ServiceSettings
) -> None:
    page = NewPage(actions(store, settings, PromptProcess(store, settings)), lambda: True)
    values = {
        **{"name": "first", "trials": "20", "target_sparsity": "0.3", "dense_blocks": "0, -1", "cost": "flops"},
        **{"deterministic": ["on"], "new_tokens": "16, 128", "keep_first": "system", "seconds": "1e3"},
    }
    assert page.create(values) == "first"
    found: dict[str, Any] = {}

    def noted(one: dict[str, Any]) -> dict[str, Any]:
        if isinstance(one.get("id"), dict) and one["id"]["type"] == "field":
            found[one["id"]["name"]] = one.get("value")
        return one

    json.loads(text_of(page.layout("", {"like": ["first"]})), object_hook=noted)
    assert found["name"] == "" and found["seed"] == "" and found["trials"] == "20"
    assert page.create({**found, "name": "second"}) == "second"
    first, second = (store.studies.get(name).config for name in ("first", "second"))
    assert {field for field in first if first[field] != second.get(field)} == {"out"} and first.keys() == second.keys()
    assert "no such study" in text_of(page.layout("", {"like": ["none\0"]}))


def test_the_form_offers_editors_what_the_roots_hold(
    store: ServiceStore, settings: ServiceSettings, tmp_path: Path
) -> None:
    (tmp_path / "root" / "secret.jsonl").touch()
    may = actions(store, settings, PromptProcess(store, settings))
    assert "secret.jsonl" in text_of(NewPage(may, lambda: True).layout(""))
    reader = NewPage(may, lambda: False)
    assert "secret.jsonl" not in text_of(reader.layout(""))
    assert list(reader.mistakes({"data": "absent.jsonl"})) == [""]


def test_fields_are_of_the_kind_that_settings_are() -> None:
    kinds = {name: form_field(name).kind for name in ("trials", "target_sparsity", "cost", "deterministic", "sampler")}
    assert kinds == {
        **{"trials": "integer", "target_sparsity": "number", "cost": "choice", "deterministic": "switch"},
        "sampler": "text",
    }
    assert form_field("cost").choices == ("latency_ms", "flops", "kv_bytes")
    assert (form_field("trials").default, form_field("seed").default, form_field("plateau").default) == ("300", "0", "")


def test_a_study_is_drawn_in_all_its_views(store: ServiceStore, watch: Watch, settings: ServiceSettings) -> None:
    filled(store)
    page = StudyPage(watch, actions(store, settings, PromptProcess(store, settings)), lambda: True)
    text = text_of(page.layout("made up"))
    assert "made up" in text and f"trial {records.REFINED.number}" in text
    assert "No such study" in text_of(page.layout("other"))
    version, head, outcome, seen, alert = page.look(1, None, "made up", None, None)
    assert isinstance(version, str) and alert is None and head and outcome
    views = Views(watch)
    for place in FIGURES:
        assert views.figure(place, "made up", "dark").data
    look = {"version": version, "theme": "light", "webgl": True}
    assert "No routers" in text_of(views.routers(look, "made up"))
    prompts = text_of(views.prompts(look, "made up"))
    assert "of 31 tokens run all 12 blocks" in prompts
    assert "No log" in text_of(views.log(look, "made up"))
    store.queue.submit("made up")
    store.events.add("made up", [("log", {"text": SCRIPT})])
    later, head, outcome, *_ = page.look(2, None, "made up", version, seen)
    assert later != version and "waits for a runner" in text_of(head)
    # What is as before stays: somebody may have opened something of it, or be typing there.
    store.events.add("made up", [("log", {"text": "more"})])
    _, head, outcome, seen, _ = page.look(3, None, "made up", later, page.look(3, None, "made up", None, None)[3])
    assert head is no_update and outcome is no_update and len(seen) == 2
    assert SCRIPT in text_of(views.log(look, "made up"))
    assert "may have been deleted" in text_of(page.look(1, None, "other", None, None)[-1])


def test_the_pages_of_a_study_and_of_comparisons_begin_with_the_verdict_of_its_report(
    store: ServiceStore, watch: Watch, settings: ServiceSettings, make_client: MakeClient
) -> None:
    filled(store)
    study, trials, measured = (
        store.studies.get("made up"),
        store.trials.of("made up"),
        store.results.measurements("made up"),
    )
    verdict = ReportData(study, trials, measured, [], store.results.examples("made up")).verdict
    assert "is better than a prompt shortened by 30%" in verdict and "item" not in verdict
    said = json.dumps(verdict)[1:-1]
    page = text_of(
        StudyPage(watch, actions(store, settings, PromptProcess(store, settings)), lambda: False).layout("made up")
    )
    assert said in page and "ftp-search export 'made up' DIRECTORY" in page
    assert page.index(said) < page.index(json.dumps(records.SELECTION.reason)[1:-1])
    compare = ComparePage(watch)
    assert said in text_of(compare.verdicts(["made up", "gone"]))
    assert compare.verdicts([]) is None and compare.verdicts(None) is None
    with make_client(dashboard=dashboard(settings)) as client:
        saved = client.get("/export/made%20up/study.json").json()
    assert saved["verdict"] == verdict
    assert all(row["origin"].startswith(f"trial {row['trial']} by ") for row in saved["rows"] if row["trial"])
    # Before anything was measured, what the search evaluated says it, the same as in the report.
    flops = [replace(t, metrics={"flops": 2.0 - t.overall_sparsity}) for t in records.TRIALS]
    uniform = next(t for t in flops if t.proposer == "initial design" and t.number)
    flops[uniform.number] = replace(uniform, schedule=(0.3,) * records.N_BLOCKS, metrics={"flops": 1.7})
    store.studies.create("searched", dict(records.STUDY.config), records.STUDY.objectives)
    store.trials.begin("searched", flops)
    store.trials.finish("searched", flops)
    store.studies.choose_trial("searched", records.STATIC.number)
    of_search = ReportData(store.studies.get("searched"), store.trials.of("searched"), [], []).verdict
    assert of_search.startswith("Nothing has been measured yet. The schedule is ")
    assert json.dumps(of_search)[1:-1] in text_of(compare.verdicts(["searched"]))


def test_compared_studies_stand_side_by_side_and_each_that_is_left_out_is_named(
    store: ServiceStore, watch: Watch, settings: ServiceSettings
) -> None:
    filled(store)
    store.studies.create("other", {**records.STUDY.config, "seed": 7}, records.STUDY.objectives)
    few = [replace(t, values=(t.values[0], 2 * t.values[1])) for t in records.TRIALS[:5] if t.values is not None]
    store.trials.begin("other", few)
    store.trials.finish("other", few)
    store.studies.create("flops", dict(records.STUDY.config), ("kl", "flops"))
    store.trials.begin("flops", records.TRIALS[:5])
    store.trials.finish("flops", records.TRIALS[:5])
    for number in range(10):
        store.studies.create(f"empty {number}", dict(records.STUDY.config), records.STUDY.objectives)
    names = [*("made up", "other", "flops", "gone"), *(f"empty {number}" for number in range(10))]
    compare = ComparePage(watch)
    _, missing, _ = compare.figure(names, "latency_ms", "kl", None)
    left_out = text_of(missing)
    assert f"empty 9: at most {MOST} studies" in left_out and "gone: There is no such study" in left_out
    assert "flops: no trial knows predicted latency and KL" in left_out and "empty 0: no trial knows" in left_out
    found = {name: watch.found(name) for name in ("made up", "other", "flops", "empty 0")}
    volumes = common_volumes(found)
    # One corner for all: that of the study whose dense model is dearest.
    corner = max(found[name].dense_cost or 0.0 for name in ("made up", "other"))
    assert volumes.reference == (RUINED_KL, corner) and set(volumes.of) == {"made up", "other"}
    expected = FrontVolume(volumes.reference).of([t for t in records.TRIALS if t.values is not None])
    assert volumes.of["made up"] == pytest.approx(expected) and volumes.of["other"] < expected
    assert "trades KL to dense and prefill arithmetic" in volumes.left_out["flops"]
    details = text_of(compare.details(names, None))
    assert "other: no trial has been selected yet" in details and "trial 154: 30%" in details
    assert "other: nothing has been measured on test items yet" in details and "[93.0%, 98.3%]" in details
    differ = differing_settings({"made up": records.STUDY.config, "other": {**records.STUDY.config, "seed": 7}})
    assert [[cell.text for cell in line.cells] for line in differ.rows] == [["seed", "0", "7"]]
    assert "Left out: gone: there is no such study" in text_of(compare.layout("", {"study": ["gone", "other"]}))
    assert compare.details([], None) is None


def test_trials_that_are_predicted_anew_are_drawn_anew(
    store: ServiceStore, watch: Watch, settings: ServiceSettings
) -> None:
    filled(store)
    page = StudyPage(watch, actions(store, settings, PromptProcess(store, settings)), lambda: True)
    assert "Latency: dense " in text_of(page.layout("made up"))
    before, version = watch.found("made up"), watch.version("made up")
    again = [replace(t, values=(t.values[0], 9.0)) for t in store.trials.of("made up") if t.values is not None]
    profile = ProfileRecord(batch=8, length=256, dense_ms=9.0, doubts=("the machine was busy",))
    store.revaluation.apply("made up", again, StudyFacts(latency_profile=profile))
    assert watch.version("made up") != version
    found = watch.found("made up")
    assert len(found.columns) == len(before.columns)
    costs = found.columns.values[:, 1]
    assert set(costs[np.isfinite(costs)]) == {9.0} and set(before.columns.values[:, 1]) != {9.0}
    head = text_of(page.layout("made up"))
    assert "not to be relied on: the machine was busy; dense 9.0 predicted, " in head
    assert "; selected 9.0 predicted, " in head


def test_a_page_that_the_database_does_not_answer_for_says_so_and_is_shown_once_it_does(
    store: ServiceStore, watch: Watch, settings: ServiceSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    filled(store)
    study = StudyPage(watch, actions(store, settings, PromptProcess(store, settings)), lambda: True)
    frame = Frame({"study": study, "compare": ComparePage(watch)})
    compare = ComparePage(watch)
    version = watch.version("made up")

    def away(*_: object) -> Any:
        raise StorageError("The database at secret.example has not answered for 600 s.")

    with monkeypatch.context() as broken:
        for part, read in (
            (store.studies, "get"),
            (store.studies, "summaries"),
            (store.trials, "n_ended"),
            (store.events, "generation"),
        ):
            broken.setattr(part, read, away)
        for path in ("/study/made%20up", "/compare"):
            text = text_of(frame.content(path))
            assert "The database does not answer" in text and "page-again" in text and '"Interval"' in text
            assert "No such study" not in text and "secret" not in text
            assert frame.again(1, path) is no_update
        shown, _, is_whole = compare.figure(["made up"], "latency_ms", "kl", None)
        assert "tries again by itself" in text_of(shown) and not is_whole
        # A page that is open already draws anew what it could not, once it has a version again.
        assert study.look(1, None, "made up", version, None)[0] is None
        assert study.look(2, None, "made up", None, None)[0] is no_update
    for path in ("/study/made%20up", "/compare"):
        assert "page-again" not in text_of(frame.again(2, path)) and "made up" in text_of(frame.again(2, path))
    assert compare.figure(["made up"], "latency_ms", "kl", None)[-1]
    assert study.look(3, None, "made up", None, None)[0] == version
    missing = text_of(frame.content("/study/other"))
    assert "No such study" in missing and "tries again" not in missing


def test_a_trial_is_shown_when_it_is_pointed_at_or_selected(
    store: ServiceStore, watch: Watch, unused: TrialActs
) -> None:
    filled(store)
    exploring = Exploring(watch, unused)
    assert "No trial selected" in text_of(exploring.panel(None, None, "made up"))
    shown = text_of(exploring.panel(9, None, "made up"))
    assert "Schedule of trial 9" in shown and records.TRIALS[9].proposer in shown
    assert json.dumps({"dateTime": "2026-01-01T09:30:09+00:00"})[1:-1] in shown
    assert "Schedule of trial 7" in text_of(exploring.panel(7, None, "made up"))
    assert "A worker ran out of memory <here>." in text_of(exploring.panel(7, None, "made up"))
    assert "no such trial" in text_of(exploring.panel(9999, None, "made up"))
    first = exploring.walk(1, None, "latency_ms", "kl", "made up")
    second = exploring.walk(1, first, "latency_ms", "kl", "made up")
    assert first != second and exploring.walk(-1, second, "latency_ms", "kl", "made up") == first


def test_a_trial_says_what_it_was_made_from_and_who_evaluated_it(
    store: ServiceStore, watch: Watch, unused: TrialActs
) -> None:
    filled(store)
    at = datetime(2026, 1, 1, tzinfo=UTC)
    work = (WorkSpan("3", at, 0.5), WorkSpan("3", at, 0.25), WorkSpan("12", at, 0.25))
    made = replace(records.TRIALS[9], number=200, parents=(9, 50), work=work)
    store.trials.append("made up", made)
    exploring = Exploring(watch, unused)
    shown = text_of(exploring.panel(200, None, "made up"))
    for parent in made.parents:
        assert json.dumps({"type": "parent", "trial": parent}) in shown
    assert "3, then 12" in shown
    store.trials.append("made up", replace(records.TRIALS[9], number=201, work=()))
    recalled = text_of(exploring.panel(201, None, "made up"))
    assert "made from" not in recalled and "worker" not in recalled


def test_speeds_stand_below_the_results_where_they_were_timed(
    store: ServiceStore, watch: Watch, unused: TrialActs
) -> None:
    filled(store)
    exploring, look = Exploring(watch, unused), {"theme": None, "webgl": False}
    shown = text_of(exploring.below(look, "latency_ms", "kl", "made up")[0])
    title = "Speed by prompt length and new tokens"
    assert shown.index("Measured on test items") < shown.index(title) and "prefill alone" in shown
    store.studies.update_facts("made up", StudyFacts(generation_speeds=()))
    assert title not in text_of(exploring.below(look, "latency_ms", "kl", "made up")[0])


@pytest.mark.parametrize("nonsense", ["", "1", "a_b__", "1___", "1_nan__", "1_1__", "1_1e999__", "1_2_3_4_5", None])
def test_a_zoom_that_is_none_is_none(nonsense: str | None) -> None:
    assert ranges(nonsense, "latency_ms", "kl") == (None, None)


def test_a_zoom_is_read_in_the_units_that_people_read() -> None:
    assert ranges("2_4.5__", "flops", "kl") == ((2e9, 4.5e9), None)
    assert ranges("__1e-4_0.5", "latency_ms", "kl") == (None, (1e-4, 0.5))


def test_studies_leave_as_files(make_client: MakeClient, settings: ServiceSettings, store: ServiceStore) -> None:
    filled(store)
    span = WorkSpan("3", records.BEGAN, 0.5)
    made = replace(records.TRIALS[9], number=200, parents=(9, 50), work=(span,), constraint_violation=0.25)
    store.trials.append("made up", made)
    client = make_client(dashboard=dashboard(settings))
    found = client.get("/export/made%20up/trials.csv")
    assert found.headers["content-disposition"].startswith("attachment")
    rows = list(csv.DictReader(io.StringIO(found.text)))
    assert [int(row["trial"]) for row in rows] == list(range(201))
    assert float(rows[9]["kl"]) == records.TRIALS[9].values[0] and rows[7]["kl"] == "" and rows[7]["state"] == "failed"
    assert [(row["parents"], row["worker"]) for row in (rows[9], rows[200])] == [("", "1"), ("9 50", "3")]
    assert [float(row["constraint_violation"]) for row in (rows[9], rows[200])] == [0.0, 0.25]
    assert len(list(csv.DictReader(io.StringIO(client.get("/export/made%20up/front.csv").text)))) < 100
    plain = client.get("/export/made%20up/study.json").json()
    assert plain["name"] == "made up" and plain["rows"] and plain["front"]
    assert (
        plain["generation_speeds"] == client.get("/api/v1/studies/made%20up").json()["facts"]["generation_speeds"] != []
    )
    page = client.get("/export/made%20up/figure.html", params={"x": "latency_ms", "y": "kl"})
    assert "Plotly.newPlot" in page.text and "sandbox" in page.headers["content-security-policy"]
    assert client.get("/export/made%20up/figure.html", params={"x": "__class__"}).status_code == 422
    assert client.get("/export/other/trials.csv").status_code == 404
