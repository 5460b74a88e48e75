"""Answers HEAD wherever GET is answered."""

from __future__ import annotations

import anyio
from starlette.types import ASGIApp, Message, Receive, Scope, Send


class HeadsOfGets:
    """Middleware that answers HEAD with the head of the response to GET, and ends streams there."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers a request."""
        if scope["type"] != "http" or scope["method"] != "HEAD":
            await self._app(scope, receive, send)
            return
        # The server reads the method of its own scope.
        asked = {**scope, "method": "GET"}

        async def send_head(message: Message) -> None:
            if message["type"] == "http.response.start":
                await send(message)
                await send({"type": "http.response.body", "body": b""})
                answering.cancel()

        with anyio.CancelScope() as answering:
            await self._app(asked, receive, send_head)
        # For the metrics.
        if "route" in asked:
            scope["route"] = asked["route"]
