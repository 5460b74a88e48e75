"""Security headers of every response, a limit on the size of requests, and errors without details."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence

import anyio
from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import Response
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
REVALIDATED = ("/_dash-component-suites/", "/assets/")
# What is left of a body is not waited for.
_CLOSING = {"Connection": "close"}
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
                is_kept = message["status"] in (200, 304) and scope["path"].startswith(REVALIDATED)
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
    """Middleware that reads bodies before the application does, and refuses those that are too long or too slow.

    Args:
        app: Application behind it.
        most: Most bytes of a body, whether its length is declared or not.
        most_s: Seconds until it must have come whole.
    """

    def __init__(self, app: ASGIApp, most: int, most_s: float) -> None:
        self._app = app
        self._most = most
        self._most_s = most_s

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers a request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        said = Headers(scope=scope).get("content-length", "0")
        # Servers check that it has only digits, but the application may be called without one.
        is_short = said.isascii() and said.isdigit() and int(said) <= self._most
        refused = None if is_short else self._too_long()
        content = bytearray()
        with anyio.move_on_after(self._most_s) as reading:
            is_whole = refused is not None
            while not is_whole:
                message = await receive()
                if message["type"] == "http.disconnect":
                    # Nobody waits for an answer.
                    return
                content += message.get("body", b"")
                refused = self._too_long() if len(content) > self._most else None
                is_whole = refused is not None or not message.get("more_body", False)
        if reading.cancelled_caught:
            detail = f"The request's body did not come within {self._most_s:g} s: send it again."
            refused = problem(408, detail, _CLOSING)
        if refused is not None:
            await refused(scope, receive, send)
            return
        whole: list[Message] = [{"type": "http.request", "body": bytes(content), "more_body": False}]

        async def receive_read() -> Message:
            return whole.pop() if whole else await receive()

        await self._app(scope, receive_read, send)

    def _too_long(self) -> Response:
        detail = f"The request's body is longer than {self._most} bytes: expected a shorter one."
        return problem(413, detail, _CLOSING)
