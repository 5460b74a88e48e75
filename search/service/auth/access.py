"""Access control: tokens of programs, sessions of browsers, and the local user while there is no token."""

from __future__ import annotations

import hmac
from contextvars import ContextVar
from dataclasses import dataclass
from math import ceil
from urllib.parse import quote, urlencode

from starlette.concurrency import run_in_threadpool
from starlette.datastructures import Headers
from starlette.responses import RedirectResponse, Response
from starlette.types import ASGIApp, Receive, Scope, Send

from search.service.auth.attempts import FailedAttempts
from search.service.rules.plain_pages import STYLE_PATH, is_opened
from search.service.rules.problems import problem
from search.service.rules.settings import ServiceSettings, is_loopback
from studies import StorageError
from studies.service.service_store import ServiceStore
from studies.service.tokens import Role, Session

SESSION_COOKIE = "ftp_session"
# Dash reads this cookie and repeats it in this header by itself.
CSRF_COOKIE, CSRF_HEADER = "_csrf_token", "X-CSRFToken"
API = "/api/"
LOGIN_PAGE = "/login"
SESSION_PATH = "/api/v1/session"
_SAFE_METHODS = ("GET", "HEAD", "OPTIONS")
# Requests that need no token.
OPEN = {
    ("GET", "/api/v1/health"),
    ("GET", "/api/v1/ready"),
    ("GET", LOGIN_PAGE),
    ("GET", STYLE_PATH),
    ("POST", LOGIN_PAGE),
    ("POST", SESSION_PATH),
}
_FORWARDED = ("forwarded", "x-forwarded-for", "x-forwarded-host", "x-real-ip")


@dataclass(frozen=True)
class Access:
    """The rights of a request."""

    role: Role  # role of the token; editor if none was needed
    name: str | None = None  # name of the token; None if none was needed
    session: Session | None = None  # session of the browser; None for programs


_access: ContextVar[Access | None] = ContextVar("access", default=None)


def current_access() -> Access | None:
    """The rights of the current request; None for one that needs no token."""
    return _access.get()


class AccessControl:
    """Middleware that refuses requests without the rights that they need."""

    def __init__(self, app: ASGIApp, store: ServiceStore, settings: ServiceSettings, attempts: FailedAttempts) -> None:
        self._app = app
        self._store = store
        self._settings = settings
        self._attempts = attempts

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers a request, or refuses it."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        try:
            # Open requests need no database, and so none of the threads, which may all be waiting for it.
            is_open = (scope["method"], scope["path"]) in OPEN
            access, refusal = _admitted(scope) if is_open else await run_in_threadpool(self._judged, scope)
        except StorageError:
            access = None
            refusal = problem(503, "The database does not answer: try again later.", {"Retry-After": "10"})
        if refusal is not None:
            await refusal(scope, receive, send)
            return
        before = _access.set(access)
        try:
            await self._app(scope, receive, send)
        finally:
            _access.reset(before)

    def _judged(self, scope: Scope) -> tuple[Access | None, Response | None]:
        """The rights of a request, or its refusal."""
        headers, method, path = Headers(scope=scope), scope["method"], scope["path"]
        changes = method not in _SAFE_METHODS
        credentials = headers.get("authorization")
        if credentials is not None:
            access, refusal = self._bearer(credentials, address(scope))
        else:
            access, refusal = self._browser(headers, changes)
        if access is None and refusal is None:
            query = scope.get("query_string", b"").decode("latin-1")
            refusal = _unknown(headers, method, quote(path) + (f"?{query}" if query else ""))
        # The dashboard, below other paths, checks rights itself.
        elif refusal is None and changes and path.startswith(API) and path != SESSION_PATH and not _may_edit(access):
            refusal = problem(403, "The token is a reader's: expected an editor's.")
        return access, refusal

    def _bearer(self, credentials: str, client: str) -> tuple[Access | None, Response | None]:
        scheme, _, secret = credentials.partition(" ")
        found = self._store.tokens.find(secret.strip()) if scheme.lower() == "bearer" and secret.strip() else None
        if found is not None:
            return Access(found.role, found.name), None
        wait_s = self._attempts.wait_s(client)
        if wait_s > 0:
            return None, too_many_attempts(wait_s)
        self._attempts.note(client)
        detail = "There is no such token: expected 'Authorization: Bearer TOKEN' with one of `ftp-search token add`."
        return None, problem(401, detail, {"WWW-Authenticate": "Bearer"})

    def _browser(self, headers: Headers, changes: bool) -> tuple[Access | None, Response | None]:
        key = cookie(headers, SESSION_COOKIE)
        session = None if key is None else self._store.tokens.session(key)
        if session is not None:
            access = Access(session.token.role, session.token.name, session)
            repeated = headers.get(CSRF_HEADER, "")
            if changes and not hmac.compare_digest(repeated.encode(), session.csrf.encode()):
                detail = f"The header {CSRF_HEADER} is not what the cookie {CSRF_COOKIE} says: reload the page."
                return None, problem(403, detail)
            return access, _cross_site(headers, changes)
        if self._is_open(headers):
            return Access(Role.EDITOR), _cross_site(headers, changes)
        return None, None

    def _is_open(self, headers: Headers) -> bool:
        """True if the request needs no token."""
        if not (self._settings.insecure or self._settings.is_local) or self._store.tokens.exist():
            return False
        # Refuses names of other sites that resolve to this machine, and requests that a proxy passes on.
        is_direct = not any(name in headers for name in _FORWARDED)
        return self._settings.insecure or (is_direct and is_loopback(_host_name(headers.get("host", ""))))


def _admitted(scope: Scope) -> tuple[Access | None, Response | None]:
    """An open request is refused only if another site's page sent it."""
    changes = scope["method"] not in _SAFE_METHODS
    return None, _cross_site(Headers(scope=scope), changes) if changes else None


def address(scope: Scope) -> str:
    """Address of the client that sent a request."""
    client = scope.get("client")
    return client[0] if client else "unknown"


def cookie(headers: Headers, name: str) -> str | None:
    """Value of a cookie; None if it was not sent.

    Other programs on the same host have cookies, too, in forms that the standard library's parser stops at.
    """
    for one in ";".join(headers.getlist("cookie")).split(";"):
        key, _, value = one.partition("=")
        if key.strip() == name:
            return value.strip().strip('"')
    return None


def too_many_attempts(wait_s: float) -> Response:
    """The response to an address that has sent too many wrong tokens."""
    detail = f"Too many tokens that do not exist came from here: try again in {ceil(wait_s)} s."
    return problem(429, detail, {"Retry-After": str(ceil(wait_s))})


def is_editor() -> bool:
    """True if the current request comes from an editor."""
    return _may_edit(current_access())


def _may_edit(access: Access | None) -> bool:
    return access is not None and access.role is Role.EDITOR


def _host_name(host: str) -> str:
    """A Host header without its port."""
    if host.startswith("["):
        return host.partition("]")[0] + "]"
    return host.partition(":")[0].lower()


def _cross_site(headers: Headers, changes: bool) -> Response | None:
    """A refusal if another site's page sent the request; programs other than browsers send no such headers.

    Links of other sites are followed: they show a page, and that site does not see it.
    """
    if not changes and headers.get("sec-fetch-mode") == "navigate" and headers.get("sec-fetch-dest") == "document":
        return None
    from_elsewhere = headers.get("sec-fetch-site", "same-origin") not in ("same-origin", "none")
    origin = headers.get("origin")
    if origin is not None:
        from_elsewhere |= origin.partition("://")[2] != headers.get("host", "")
    return problem(403, "The request comes from a page of another site.") if from_elsewhere else None


def _unknown(headers: Headers, method: str, address: str) -> Response:
    """The response to a request without a token; browsers are sent to the login page."""
    if is_opened(method, headers):
        return RedirectResponse(f"{LOGIN_PAGE}?{urlencode({'next': address})}", status_code=303)
    detail = "A token is needed: expected 'Authorization: Bearer TOKEN' with one of `ftp-search token add`."
    return problem(401, detail, {"WWW-Authenticate": "Bearer"})
