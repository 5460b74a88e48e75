"""Dash's FastAPI backend as a service needs it: nothing waits in the event loop, and only pages have addresses."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from dash import Dash
from dash.backends._fastapi import FastAPIDashServer, reset_current_request, set_current_request
from fastapi import Request
from fastapi.responses import Response
from starlette.concurrency import run_in_threadpool

# Where there are pages.
PAGES = ("/", "/new", "/compare", "/study/{name:path}")


class ThreadedBackend(FastAPIDashServer):
    """Runs callbacks in threads, since they ask the database, and serves the pages alone."""

    websocket_capability = False

    def serve_callback(self, dash_app: Dash) -> Callable[..., Awaitable[Response]]:
        """A function that answers callbacks."""
        dispatch = super().serve_callback(dash_app)

        async def in_thread(request: Request) -> Response:
            response: Response = await run_in_threadpool(lambda: asyncio.run(dispatch(request)))
            return response

        return in_thread

    def setup_index(self, dash_app: Dash) -> None:
        """Add the pages, which are all the same to the server: what an address shows, a callback finds out."""

        async def page(request: Request) -> Response:
            before = set_current_request(request)
            try:
                return Response(dash_app.index(), media_type="text/html")
            finally:
                reset_current_request(before)

        for path in PAGES:
            self.server.add_api_route(path, page, methods=["GET"], include_in_schema=False)

    def _setup_catchall(self) -> None:
        """Add nothing: addresses that are not known are not found."""
