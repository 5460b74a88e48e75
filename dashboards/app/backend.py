"""Dash's FastAPI backend as a service needs it: nothing waits in the event loop, and only pages have addresses."""

from __future__ import annotations

import asyncio
import gzip
import hashlib
from collections.abc import Awaitable, Callable

from dash import Dash
from dash.backends._fastapi import FastAPIDashServer, reset_current_request, set_current_request
from fastapi import Request
from fastapi.responses import Response
from fastapi.staticfiles import StaticFiles
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import Headers
from starlette.middleware.gzip import GZipMiddleware

# Where there are pages.
PAGES = ("/", "/new", "/compare", "/study/{name:path}")
_SUITES = "_dash-component-suites/{package_name}/{fingerprinted_path:path}"


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

    def setup_component_suites(self, dash_app: Dash) -> None:  # type: ignore[override]  # Dash's own gives none, too
        """Add the scripts of Dash and Plotly, each read and compressed once."""
        scripts: dict[tuple[str, str], _Script] = {}

        # No coroutine: it runs in a thread.
        def serve(request: Request, package_name: str, fingerprinted_path: str) -> Response:
            key = package_name, fingerprinted_path
            if key not in scripts:
                unconditional = Request({**request.scope, "headers": []})
                whole = self.serve_component_suites(dash_app, package_name, fingerprinted_path, unconditional)
                scripts[key] = _Script(whole)
            return scripts[key].answer(request.headers)

        dash_app._add_url(_SUITES, serve)

    def register_assets_blueprint(self, blueprint_name: str, assets_url_path: str, assets_folder: str) -> None:
        """Add the dashboard's own scripts and styles, which are short enough to be compressed each time."""
        files = GZipMiddleware(StaticFiles(directory=assets_folder))
        self.server.mount(assets_url_path, files, name=blueprint_name)

    def _setup_catchall(self) -> None:
        """Add nothing: addresses that are not known are not found."""


class _Script:
    """A file that stays as it is while the service runs.

    Args:
        whole: Answer of Dash to a browser that does not have it.
    """

    def __init__(self, whole: Response) -> None:
        self._plain = bytes(whole.body)
        self._packed = gzip.compress(self._plain, compresslevel=6, mtime=0)
        self._media_type = whole.media_type
        self._tag = hashlib.sha256(self._plain).hexdigest()[:32]
        # Those whose address changes with them are said to stay.
        said = whole.headers.get("cache-control")
        self._headers = {"Vary": "Accept-Encoding", **({} if said is None else {"Cache-Control": said})}

    def answer(self, asked: Headers) -> Response:
        """The file as a request wants it, or that the browser has it already."""
        packs = "gzip" in asked.get("accept-encoding", "")
        # The same content in two encodings is two things to a cache.
        tag = f'"{self._tag}-gzip"' if packs else f'"{self._tag}"'
        headers = {**self._headers, "ETag": tag}
        known = [one.strip().removeprefix("W/") for one in asked.get("if-none-match", "").split(",")]
        if tag in known:
            return Response(status_code=304, headers=headers)
        if packs:
            headers["Content-Encoding"] = "gzip"
        return Response(self._packed if packs else self._plain, media_type=self._media_type, headers=headers)
