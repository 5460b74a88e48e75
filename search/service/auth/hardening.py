"""Security headers of every response, a limit on the size of requests, and errors without details."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence

from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from search.service.rules.problems import problem

# Content-Security-Policy of pages; the dashboard adds sources, see `search.service.http.app`.
_POLICY: Mapping[str, Sequence[str]] = {
    "default-src": ("'none'",),
    "script-src": ("'self'",),
    "style-src": ("'self'",),
    "img-src": ("'self'", "data:", "blob:"),
    "font-src": ("'self'",),
    "connect-src": ("'self'",),
    "form-action": ("'self'",),
    "base-uri": ("'none'",),
    "frame-ancestors": ("'none'",),
}
_HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    # Without any referrer, browsers would omit the origin of forms as well.
    "Referrer-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), geolocation=(), microphone=()",
}
# Scripts and styles of the dashboard are large and the same for everybody: browsers cache and revalidate them.
_REVALIDATED = ("/_dash-component-suites/", "/assets/")
_HTTPS_ONLY = "max-age=31536000"

_log = logging.getLogger(__name__)


def content_policy(more: Mapping[str, Sequence[str]]) -> str:
    """The Content-Security-Policy with more sources by directive."""
    directives = {**_POLICY, **{name: (*_POLICY.get(name, ()), *sources) for name, sources in more.items()}}
    return "; ".join(f"{name} {' '.join(sources)}" for name, sources in directives.items())


class Hardened:
    """Middleware that adds missing security headers and answers exceptions with status 500."""

    def __init__(self, app: ASGIApp, policy: str) -> None:
        self._app = app
        self._headers = {**_HEADERS, "Content-Security-Policy": policy}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers a request."""
        if scope["type"] != "http":
            if scope["type"] == "lifespan":
                await self._app(scope, receive, send)
            return
        has_begun = False

        async def send_hardened(message: Message) -> None:
            nonlocal has_begun
            if message["type"] == "http.response.start":
                has_begun = True
                headers = MutableHeaders(scope=message)
                for name, value in self._headers.items():
                    headers.setdefault(name, value)
                is_kept = message["status"] in (200, 304) and scope["path"].startswith(_REVALIDATED)
                headers.setdefault("Cache-Control", "private, no-cache" if is_kept else "no-store")
                if scope["scheme"] == "https":
                    headers.setdefault("Strict-Transport-Security", _HTTPS_ONLY)
            await send(message)

        try:
            await self._app(scope, receive, send_hardened)
        except Exception:
            _log.exception("%s %s failed", scope["method"], scope["path"])
            if has_begun:
                # The connection is cut, so that the response is not taken for complete.
                raise
            failed = problem(500, "The service failed, which is a defect: its log says where.")
            await failed(scope, receive, send_hardened)


class LimitedBodies:
    """Middleware that refuses bodies of more than `most` bytes, whether their length is declared or not."""

    def __init__(self, app: ASGIApp, most: int) -> None:
        self._app = app
        self._most = most

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers a request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        detail = f"The request's body is longer than {self._most} bytes: expected a shorter one."
        said = Headers(scope=scope).get("content-length", "0")
        # Servers check that it has only digits, but the application may be called without one.
        if not said.isascii() or not said.isdigit() or int(said) > self._most:
            await problem(413, detail, {"Connection": "close"})(scope, receive, send)
            return
        received = 0

        async def receive_some() -> Message:
            nonlocal received
            message = await receive()
            received += len(message.get("body", b""))
            if received > self._most:
                raise HTTPException(413, detail, {"Connection": "close"})
            return message

        await self._app(scope, receive_some, send)
