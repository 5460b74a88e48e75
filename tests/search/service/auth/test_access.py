"""Who gets in, what they may do, and what browsers are told about the pages."""

from __future__ import annotations

import html
import re
from collections.abc import Mapping, Sequence
from typing import Any

import anyio
import httpx
import pytest
from fastapi import FastAPI
from fastapi.responses import HTMLResponse
from fastapi.testclient import TestClient

from search.errors import ConfigError
from search.service.auth.access import CSRF_COOKIE, CSRF_HEADER, SESSION_COOKIE
from search.service.auth.attempts import FailedAttempts
from search.service.serving import check_reach
from studies import StudyState
from studies.service.service_store import ServiceStore
from studies.service.tokens import Role
from tests.search.service.conftest import HERE, MakeClient
from tests.studies.records import trial

STUDIES = "/api/v1/studies"


def test_this_machine_needs_no_token_until_there_is_one(client: TestClient, store: ServiceStore) -> None:
    assert client.post(STUDIES, json={"name": "one"}).status_code == 201
    store.tokens.add("ada", Role.EDITOR)
    refused = client.get(STUDIES)
    assert refused.status_code == 401 and refused.headers["WWW-Authenticate"] == "Bearer"
    assert "A token is needed" in refused.json()["detail"]


@pytest.mark.parametrize(
    ("headers", "base_url"),
    [
        # A page whose name was made to point here; a proxy in front, whatever it makes of the name.
        ({}, "http://evil.example:8000"),
        ({"X-Forwarded-For": "10.0.0.1"}, HERE),
        ({"Forwarded": "for=10.0.0.1"}, HERE),
    ],
)
def test_who_comes_from_elsewhere_is_no_local_user(
    make_client: MakeClient, headers: dict[str, str], base_url: str
) -> None:
    assert make_client(base_url).get(STUDIES, headers=headers).status_code == 401


def test_who_is_reached_from_elsewhere_lets_nobody_in_without_a_token(make_client: MakeClient) -> None:
    assert make_client(is_local=False).get(STUDIES).status_code == 401
    assert make_client("http://box:8000", is_local=False, insecure=True).get(STUDIES).status_code == 200


def test_binding_elsewhere_demands_a_token(store: ServiceStore) -> None:
    for host in ("127.0.0.1", "localhost", "::1", "127.8.8.8"):
        check_reach(host, False, store)
    for host in ("0.0.0.0", "::", "192.168.1.5", "localhost.example"):
        with pytest.raises(ConfigError, match="token add"):
            check_reach(host, False, store)
        check_reach(host, True, store)
    store.tokens.add("ada", Role.READER)
    check_reach("0.0.0.0", False, store)


@pytest.mark.parametrize(
    ("method", "path", "body"),
    [
        ("POST", STUDIES, {"name": "two"}),
        ("POST", f"{STUDIES}/one/stop", None),
        ("POST", f"{STUDIES}/one/resume", None),
        *(("POST", f"{STUDIES}/one/points/0/{what}", None) for what in ("measure", "select", "export")),
        ("DELETE", f"{STUDIES}/one", None),
    ],
)
def test_readers_look_and_editors_change(
    client: TestClient,
    store: ServiceStore,
    reader: dict[str, str],
    editor: dict[str, str],
    method: str,
    path: str,
    body: dict[str, Any] | None,
) -> None:
    assert client.post(STUDIES, json={"name": "one"}, headers=editor).status_code == 201
    if path.endswith("resume"):
        store.queue.request_stop("one")
    if "/points/" in path:
        store.queue.request_stop("one")
        store.trials.append("one", trial(0, (0.5, 5.0)))
        store.runs.set_state("one", StudyState.FINISHED)
    before = client.get(STUDIES, headers=reader)
    assert before.status_code == 200
    assert client.request(method, path, json=body, headers=reader).status_code == 403
    assert client.request(method, path, json=body).status_code == 401
    assert client.get(STUDIES, headers=reader).json() == before.json()
    assert client.request(method, path, json=body, headers=editor).is_success


@pytest.mark.parametrize("credentials", ["Bearer wrong", "Bearer ", "Bearer", "Basic YTpi", "", "bearer\twrong"])
def test_wrong_credentials_are_refused(client: TestClient, editor: dict[str, str], credentials: str) -> None:
    assert client.get(STUDIES, headers={"Authorization": credentials}).status_code == 401
    # Credentials that are wrong do not fall back to others.
    assert client.get(STUDIES, headers={"Authorization": credentials, "Cookie": f"{SESSION_COOKIE}=x"}).is_error


def _sign_in(client: TestClient, headers: dict[str, str], name: str = "csrf") -> str:
    answer = client.post("/api/v1/session", json={"token": headers["Authorization"].removeprefix("Bearer ")})
    assert answer.status_code == 201
    csrf: str = answer.json()[name]
    return csrf


def test_a_browser_signs_in_and_out(client: TestClient, reader: dict[str, str]) -> None:
    csrf = _sign_in(client, reader)
    assert client.cookies[CSRF_COOKIE] == csrf
    assert client.get("/api/v1/session").json() == {"name": "bob", "role": "reader", "csrf": csrf}
    assert client.get(STUDIES).status_code == 200
    # A reader may leave.
    assert client.delete("/api/v1/session", headers={CSRF_HEADER: csrf}).status_code == 204
    assert client.get(STUDIES).status_code == 401


def test_cookies_are_hidden_from_scripts_and_from_other_sites(make_client: MakeClient, editor: dict[str, str]) -> None:
    token = editor["Authorization"].removeprefix("Bearer ")
    for base_url, secure in ((HERE, False), ("https://box", True)):
        answer = make_client(base_url).post("/api/v1/session", json={"token": token})
        cookies = {line.partition("=")[0]: line.lower() for line in answer.headers.get_list("set-cookie")}
        assert set(cookies) == {SESSION_COOKIE, CSRF_COOKIE}
        assert "httponly" in cookies[SESSION_COOKIE] and "httponly" not in cookies[CSRF_COOKIE]
        assert all("samesite=strict" in line and "path=/" in line for line in cookies.values())
        assert all(("; secure" in line) is secure for line in cookies.values())


def test_a_session_changes_something_only_with_its_csrf_token(client: TestClient, editor: dict[str, str]) -> None:
    csrf = _sign_in(client, editor)
    for headers in ({}, {CSRF_HEADER: "wrong"}, {CSRF_HEADER: ""}):
        assert client.post(STUDIES, json={"name": "one"}, headers=headers).status_code == 403
    other = {CSRF_HEADER: csrf, "Origin": "http://evil.example"}
    assert client.post(STUDIES, json={"name": "one"}, headers=other).status_code == 403
    own = {CSRF_HEADER: csrf, "Origin": HERE, "Sec-Fetch-Site": "same-origin"}
    assert client.post(STUDIES, json={"name": "one"}, headers=own).status_code == 201


@pytest.mark.parametrize(
    "headers",
    [{"Origin": "http://evil.example"}, {"Origin": "null"}, {"Sec-Fetch-Site": "cross-site"}],
)
def test_pages_of_other_sites_change_nothing_here(client: TestClient, headers: dict[str, str]) -> None:
    for path in (STUDIES, "/api/v1/session", "/login"):
        assert client.post(path, json={"name": "one", "token": "x"}, headers=headers).status_code == 403
    assert client.get(STUDIES).json()["total"] == 0


def test_pages_of_other_sites_only_link_here(client: TestClient) -> None:
    link = {"Sec-Fetch-Mode": "navigate", "Sec-Fetch-Dest": "document"}
    kinds = ({}, {"Sec-Fetch-Mode": "no-cors", "Sec-Fetch-Dest": "script"}, {**link, "Sec-Fetch-Dest": "iframe"})
    for site in ({"Sec-Fetch-Site": "cross-site"}, {"Sec-Fetch-Site": "same-site"}, {"Origin": "http://evil.example"}):
        for kind in kinds:
            assert client.get(STUDIES, headers={**site, **kind}).status_code == 403, (site, kind)
        assert client.get(STUDIES, headers={**site, **link}).status_code == 200
        assert client.post(STUDIES, json={"name": "one"}, headers={**site, **link}).status_code == 403
    for site in ("same-origin", "none"):
        assert client.get(STUDIES, headers={"Sec-Fetch-Site": site, "Sec-Fetch-Dest": "empty"}).status_code == 200


@pytest.mark.parametrize(
    "foreign",
    [
        *('prefs={"theme":"dark"}', "note=a b", "é=ü", "=", ";;", 'open="a', "a=[1,2]", "x y=1", "$Version=1", "a,b=c"),
        *("expires=Mon, 01 Jan 2035 00:00:00 GMT", f"not_{SESSION_COOKIE}=x", f"{SESSION_COOKIE}x=y", "path=/"),
    ],
)
def test_cookies_of_other_programs_are_ignored(
    make_client: MakeClient, editor: dict[str, str], store: ServiceStore, foreign: str
) -> None:
    key, session = store.tokens.begin_session(editor["Authorization"].removeprefix("Bearer ")) or pytest.fail("none")
    own = f"{SESSION_COOKIE}={key}; {CSRF_COOKIE}={session.csrf}"
    for cookies in (f"{foreign}; {own}", f"{own}; {foreign}", f"{own};{foreign}", f"a=1; {foreign};{own}"):
        answer = make_client().get("/api/v1/session", headers={b"Cookie": cookies.encode()})
        assert answer.status_code == 200 and answer.json()["name"] == "ada", cookies
    assert make_client().get("/api/v1/session", headers={b"Cookie": foreign.encode()}).status_code == 401


def test_a_form_of_another_site_is_no_json(client: TestClient) -> None:
    answer = client.post(STUDIES, content='{"name": "one"}', headers={"Content-Type": "text/plain"})
    assert answer.status_code == 422 and client.get(STUDIES).json()["total"] == 0


def test_guessing_is_slowed_down_but_keeps_nobody_out_who_knows(client: TestClient, editor: dict[str, str]) -> None:
    answers = [client.post("/api/v1/session", json={"token": "guess"}) for _ in range(11)]
    assert [answer.status_code for answer in answers] == [401] * 10 + [429]
    assert 0 < int(answers[-1].headers["Retry-After"]) <= 60
    token = editor["Authorization"].removeprefix("Bearer ")
    assert client.post("/api/v1/session", json={"token": token}).status_code == 429
    assert client.get(STUDIES, headers={"Authorization": "Bearer guess"}).status_code == 429
    assert client.get(STUDIES, headers=editor).status_code == 200


def test_failures_are_forgotten_with_time_and_kept_apart_by_address() -> None:
    now = 0.0
    attempts = FailedAttempts(most=2, window_s=60.0, clock=lambda: now)
    attempts.note("a")
    now = 30.0
    attempts.note("a")
    assert attempts.wait_s("a") == 30.0 and attempts.wait_s("b") == 0.0
    now = 60.0
    assert attempts.wait_s("a") == 0.0
    attempts.note("a")
    assert attempts.wait_s("a") == 30.0


def test_a_browser_without_a_session_is_asked_for_a_token(client: TestClient, editor: dict[str, str]) -> None:
    page = client.get("/", headers={"Accept": "text/html"})
    assert page.status_code == 303 and page.headers["Location"] == "/login?next=%2F"
    form = client.get("/login")
    assert "token add NAME" in form.text
    [style] = re.findall('href="([^"]+[.]css)"', form.text)
    assert client.get(style).headers["content-type"].startswith("text/css")
    assert form.status_code == 200 and 'type="password"' in form.text
    wrong = client.post("/login", data={"token": "<script>alert(1)</script>"})
    assert wrong.status_code == 401 and "no such token" in wrong.text and "<script>" not in wrong.text
    right = client.post("/login", data={"token": editor["Authorization"].removeprefix("Bearer ")})
    assert right.status_code == 303 and right.headers["Location"] == "/"
    assert client.get(STUDIES).status_code == 200


@pytest.mark.parametrize(
    "wanted", ["/study/m%C3%BCller%20%25", "/export/x/figure.html?x=kl&y=flops", "/api/v1/runners"]
)
def test_what_a_browser_asked_for_is_shown_once_it_has_signed_in(
    client: TestClient, editor: dict[str, str], wanted: str
) -> None:
    asked = client.get(wanted, headers={"Accept": "text/html"})
    form = client.get(asked.headers["Location"])
    action = html.unescape(form.text.split('action="')[1].split('"')[0])
    # A wrong token does not forget it.
    again = client.post(action, data={"token": "wrong"})
    action = html.unescape(again.text.split('action="')[1].split('"')[0])
    right = client.post(action, data={"token": editor["Authorization"].removeprefix("Bearer ")})
    assert right.status_code == 303 and right.headers["Location"] == wanted


@pytest.mark.parametrize(
    "elsewhere", ["//evil.example", "/\\evil.example", "https://evil.example", "evil", "", "/\nx", "/\t/evil.example"]
)
def test_signing_in_leads_to_no_other_site(client: TestClient, editor: dict[str, str], elsewhere: str) -> None:
    token = {"token": editor["Authorization"].removeprefix("Bearer ")}
    assert client.post("/login", params={"next": elsewhere}, data=token).headers["Location"] == "/"
    assert "evil" not in client.get("/login", params={"next": elsewhere}).text


def test_problems_are_pages_where_a_browser_opens_an_address(client: TestClient) -> None:
    browser = {"Accept": "text/html,application/xhtml+xml,*/*;q=0.8"}
    for path, status in (("/no<b>where", 404), (f"{STUDIES}/absent", 404), (f"{STUDIES}?limit=%3Cb%3E", 422)):
        page, plain = client.get(path, headers=browser), client.get(path)
        assert page.status_code == plain.status_code == status and page.headers["Content-Type"].startswith("text/html")
        assert html.escape(plain.json()["detail"]) in page.text and 'href="/"' in page.text and "<b>" not in page.text
    # Scripts and programs get what they can read.
    assert client.post(STUDIES, headers=browser).headers["Content-Type"] == "application/problem+json"


def test_health_needs_no_token_and_everything_else_does(client: TestClient, editor: dict[str, str]) -> None:
    assert client.get("/api/v1/health").json() == client.get("/api/v1/ready").json() == {"status": "ok"}
    document = client.get("/api/v1/openapi.json", headers=editor).json()
    paths = [path for path, methods in document["paths"].items() if "get" in methods]
    for path in ["/metrics", "/api/v1/openapi.json", "/nowhere", *paths]:
        expected = 200 if path in ("/api/v1/health", "/api/v1/ready") else 401
        assert client.get(path.format(name="one", number=0, file="x")).status_code == expected, path


def test_health_is_told_while_every_thread_waits_for_the_database(client: TestClient) -> None:
    async def ask() -> int:
        threads = anyio.to_thread.current_default_thread_limiter()
        for number in range(int(threads.total_tokens)):
            threads.acquire_on_behalf_of_nowait(number)
        async with httpx.AsyncClient(transport=httpx.ASGITransport(client.app), base_url=HERE) as here:
            with anyio.fail_after(10):
                return (await here.get("/api/v1/health")).status_code

    assert anyio.run(ask) == 200


def test_a_form_with_more_than_a_token_is_refused_on_the_page(client: TestClient, editor: dict[str, str]) -> None:
    refused = client.post("/login", data={f"field {number}": "x" for number in range(12)})
    assert refused.status_code == 422 and "more than 10 fields" in refused.text and 'type="password"' in refused.text


def test_every_answer_carries_headers_that_browsers_heed(client: TestClient) -> None:
    for answer in (client.get("/login"), client.get("/nowhere"), client.get(STUDIES), client.post(STUDIES)):
        policy = answer.headers["Content-Security-Policy"]
        assert "default-src 'none'" in policy and "frame-ancestors 'none'" in policy and "unsafe" not in policy
        assert answer.headers["X-Content-Type-Options"] == "nosniff" and answer.headers["X-Frame-Options"] == "DENY"
        assert answer.headers["Cache-Control"] == "no-store"


def test_a_dashboard_is_behind_the_same_door(make_client: MakeClient, reader: dict[str, str]) -> None:
    seen: list[bool] = []

    def dashboard(app: FastAPI, _: ServiceStore, is_editor: Any, __: Any) -> Mapping[str, Sequence[str]]:
        @app.get("/")
        def page() -> HTMLResponse:
            seen.append(is_editor())
            return HTMLResponse("<p>here</p>")

        @app.post("/_callback")
        def callback() -> HTMLResponse:
            return HTMLResponse("drawn")

        return {"script-src": ("'sha256-abc='",), "style-src": ("'unsafe-inline'",)}

    client = make_client(dashboard=dashboard)
    assert client.get("/").status_code == 401 and client.post("/_callback").status_code == 401
    csrf = _sign_in(client, reader)
    page = client.get("/")
    assert page.text == "<p>here</p>" and seen == [False]
    policy = page.headers["Content-Security-Policy"]
    assert "script-src 'self' 'sha256-abc='" in policy and "style-src 'self' 'unsafe-inline'" in policy
    # A reader's page may ask for pictures, but not without its token.
    assert client.post("/_callback").status_code == 403
    assert client.post("/_callback", headers={CSRF_HEADER: csrf}).text == "drawn"
