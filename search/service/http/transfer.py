"""Sends less: 304 to clients that have the same JSON of the API already, and compressed answers."""

from __future__ import annotations

from hashlib import blake2b

from starlette.datastructures import Headers, MutableHeaders
from starlette.middleware.gzip import GZipMiddleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from search.service.auth.access import API
from search.service.auth.hardening import REVALIDATED

# Level beyond which bodies hardly get smaller.
_LEVEL = 5


class Compressed(GZipMiddleware):
    """Middleware that compresses answers, but for streams of events, archives, and what is kept compressed."""

    def __init__(self, app: ASGIApp) -> None:
        super().__init__(app, compresslevel=_LEVEL)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers a request."""
        is_kept = scope["type"] == "http" and scope["path"].startswith(REVALIDATED)
        await (self.app if is_kept else super().__call__)(scope, receive, send)


class Conditional:
    """Middleware that answers `If-None-Match`; answers that are sent piece by piece are left as they are."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers a request."""
        if scope["type"] != "http" or scope["method"] != "GET" or not scope["path"].startswith(API):
            await self._app(scope, receive, send)
            return
        wanted = ",".join(Headers(scope=scope).getlist("if-none-match"))
        known = {one.strip().removeprefix("W/") for one in wanted.split(",")}
        # The head of an answer, until its body has come.
        kept: Message | None = None

        async def send_tagged(message: Message) -> None:
            nonlocal kept
            if message["type"] == "http.response.start":
                is_json = Headers(raw=message["headers"]).get("content-type", "").startswith("application/json")
                if message["status"] == 200 and is_json:
                    kept = message
                    return
            elif kept is not None:
                head, kept = kept, None
                if message["type"] == "http.response.body" and not message.get("more_body", False):
                    message = _tag(head, message, known)
                await send(head)
            await send(message)

        await self._app(scope, receive, send_tagged)


def _tag(head: Message, body: Message, known: set[str]) -> Message:
    """Adds the tag to the head of an answer; the body to send, which is empty if its tag is known."""
    # A weak one, as bodies are compressed on the way.
    tag = f'"{blake2b(body.get("body", b""), digest_size=16).hexdigest()}"'
    headers = MutableHeaders(raw=head["headers"])
    headers["ETag"] = f"W/{tag}"
    if known.isdisjoint((tag, "*")):
        return body
    head["status"] = 304
    headers.add_vary_header("Accept-Encoding")
    for name in ("content-length", "content-type"):
        del headers[name]
    return {**body, "body": b""}
