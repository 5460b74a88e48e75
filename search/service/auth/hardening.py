"""What holds for every answer: headers that browsers heed, a limit on bodies, and no word about defects."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence

from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from search.service.rules.problems import problem

# What pages may load and do; the dashboard may add sources to these, see `search.service.http.app`.
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
    # With no referrer at all, browsers would not say either from which site a form was sent.
    "Referrer-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), geolocation=(), microphone=()",
}
# Scripts and styles of the dashboard are the same for everybody, and megabytes long: browsers keep them, and ask each
# time whether they have changed.
_REVALIDATED = ("/_dash-component-suites/", "/assets/")
_HTTPS_ONLY = "max-age=31536000"

_log = logging.getLogger(__name__)


def content_policy(more: Mapping[str, Sequence[str]]) -> str:
    """A Content-Security-Policy.

    Args:
        more: Sources by directive, beside those that are always there.
    """
    directives = {**_POLICY, **{name: (*_POLICY.get(name, ()), *sources) for name, sources in more.items()}}
    return "; ".join(f"{name} {' '.join(sources)}" for name, sources in directives.items())


class Hardened:
    """Adds the headers that an answer does not have yet, and answers for what fails below.

    Args:
        app: What answers.
        policy: The Content-Security-Policy.
    """

    def __init__(self, app: ASGIApp, policy: str) -> None:
        self._app = app
        self._headers = {**_HEADERS, "Content-Security-Policy": policy}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request."""
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
                # Cut off, so that nobody takes it for the whole answer.
                raise
            failed = problem(500, "The service failed, which is a defect: its log says where.")
            await failed(scope, receive, send_hardened)


class LimitedBodies:
    """Refuses requests with long bodies, also those that do not say how long they are.

    Args:
        app: What answers.
        most: Bytes that a body may have.
    """

    def __init__(self, app: ASGIApp, most: int) -> None:
        self._app = app
        self._most = most

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        detail = f"The request's body is longer than {self._most} bytes: expected a shorter one."
        said = Headers(scope=scope).get("content-length", "0")
        # Servers let nothing else through than digits, but other programs may call this, too.
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
