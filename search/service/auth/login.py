"""Sessions of browsers: begun with a token, over the API or on the login page."""

from __future__ import annotations

import html
from urllib.parse import parse_qs, urlencode

from fastapi import APIRouter, FastAPI, Request
from fastapi.responses import FileResponse, HTMLResponse, JSONResponse, RedirectResponse, Response
from pydantic import BaseModel, ConfigDict, Field
from starlette.concurrency import run_in_threadpool

from search.service.auth.access import (
    CSRF_COOKIE,
    LOGIN_PAGE,
    SESSION_COOKIE,
    address,
    cookie,
    current_access,
    too_many_attempts,
)
from search.service.auth.attempts import FailedAttempts
from search.service.rules.plain_pages import STYLE, STYLE_PATH, plain_page
from search.service.rules.problems import described, problem
from studies.service.service_store import ServiceStore
from studies.service.tokens import SESSION_S, Role, Session

_MOST_FIELDS = 10
_NO_SUCH_TOKEN = "There is no such token: expected one of `ftp-search token add`."
_FORM = """<form method="post" action="{action}">
<p><label for="token">Token</label></p>
<p><input id="token" name="token" type="password" autocomplete="current-password" required autofocus></p>
<p><button type="submit">Sign in</button></p>
<p role="alert">{complaint}</p>
</form>
<p class="soft">A token is a line of characters that says who you are. Whoever runs this service makes one for you
with <code>ftp-search token add NAME</code>: a reader's shows all studies, an editor's may also start, stop and delete
them. This browser stays signed in for twelve hours.</p>"""


class TokenShown(BaseModel):
    """The token that begins a session."""

    model_config = ConfigDict(extra="forbid", json_schema_extra={"example": {"token": "ftp_..."}})

    token: str = Field(min_length=1, max_length=200)


class Identity(BaseModel):
    """Name and rights of the sender."""

    name: str | None = Field(description="Name of the token; null if none is needed.")
    role: Role
    csrf: str | None = Field(
        description="Value of the header X-CSRFToken that changing requests of the session must send."
    )


def add_login(app: FastAPI, router: APIRouter, store: ServiceStore, attempts: FailedAttempts) -> None:
    """Adds the operations on sessions to the router, and the login page to the application."""

    def begin(secret: str, request: Request) -> tuple[str, Session] | Response:
        client = address(request.scope)
        wait_s = attempts.wait_s(client)
        if wait_s > 0:
            return too_many_attempts(wait_s)
        begun = store.tokens.begin_session(secret)
        if begun is None:
            attempts.note(client)
            return problem(401, _NO_SUCH_TOKEN, {"WWW-Authenticate": "Bearer"})
        return begun

    @router.post("/session", status_code=201, responses=described(401, 403, 422, 429), tags=["access"])
    def sign_in(shown: TokenShown, request: Request) -> Identity:
        """Begin a browser session; the response sets its cookies."""
        begun = begin(shown.token, request)
        if isinstance(begun, Response):
            return begun  # type: ignore[return-value]
        key, session = begun
        identity = Identity(name=session.token.name, role=session.token.role, csrf=session.csrf)
        response = JSONResponse(identity.model_dump(mode="json"), 201)
        _set_cookies(response, request, key, session)
        return response  # type: ignore[return-value]

    @router.get("/session", responses=described(401, 422), tags=["access"])
    def who_am_i() -> Identity:
        """Get the name and the role of the sender."""
        access = current_access()
        assert access is not None
        csrf = None if access.session is None else access.session.csrf
        return Identity(name=access.name, role=access.role, csrf=csrf)

    @router.delete(
        "/session", status_code=204, response_class=Response, responses=described(401, 403, 422), tags=["access"]
    )
    def sign_out(request: Request) -> Response:
        """End the browser session."""
        key = cookie(request.headers, SESSION_COOKIE)
        if key is not None:
            store.tokens.end_session(key)
        response = Response(status_code=204)
        for name in (SESSION_COOKIE, CSRF_COOKIE):
            response.delete_cookie(name, samesite="strict")
        return response

    @app.get(LOGIN_PAGE, include_in_schema=False)
    def page(request: Request) -> Response:
        return _page(_destination(request))

    @app.get(STYLE_PATH, include_in_schema=False)
    def style() -> Response:
        return FileResponse(STYLE, media_type="text/css")

    @app.post(LOGIN_PAGE, include_in_schema=False)
    async def sign_in_on_page(request: Request) -> Response:
        destination = _destination(request)
        try:
            fields = parse_qs((await request.body()).decode("utf-8", "replace"), max_num_fields=_MOST_FIELDS)
        except ValueError:
            return _page(destination, f"The form has more than {_MOST_FIELDS} fields: expected the token alone.", 422)
        begun = await run_in_threadpool(begin, fields.get("token", [""])[0].strip(), request)
        if isinstance(begun, Response):
            complaint = _NO_SUCH_TOKEN if begun.status_code == 401 else "Too many attempts: try again in a minute."
            return _page(destination, complaint, begun.status_code)
        response = RedirectResponse(destination, status_code=303)
        _set_cookies(response, request, *begun)
        return response


def _destination(request: Request) -> str:
    """The address that somebody who signs in wanted to see; never one of another site."""
    wanted = request.query_params.get("next", "/")
    # Browsers take two slashes, of whatever kind, for the beginning of a host.
    is_own = wanted.startswith("/") and not wanted.startswith(("//", "/\\")) and wanted.isprintable()
    return wanted if is_own else "/"


def _page(destination: str, complaint: str = "", status: int = 200) -> Response:
    action = LOGIN_PAGE if destination == "/" else f"{LOGIN_PAGE}?{urlencode({'next': destination})}"
    form = _FORM.format(action=html.escape(action), complaint=html.escape(complaint))
    return HTMLResponse(plain_page("ftp-search", form), status)


def _set_cookies(response: Response, request: Request, key: str, session: Session) -> None:
    for name, value, hidden in ((SESSION_COOKIE, key, True), (CSRF_COOKIE, session.csrf, False)):
        is_https = request.url.scheme == "https"
        response.set_cookie(name, value, int(SESSION_S), httponly=hidden, samesite="strict", secure=is_https)
