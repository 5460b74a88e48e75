"""Dash's FastAPI backend as a service needs it: nothing waits in the event loop, and only pages have addresses."""

from __future__ import annotations

import asyncio
import gzip
import hashlib
from collections.abc import Awaitable, Callable

from dash import Dash
from dash.backends._fastapi import FastAPIDashServer, reset_current_request, set_current_request
from dash.exceptions import DependencyException, PreventUpdate
from dash.fingerprint import check_fingerprint
from fastapi import Request
from fastapi.responses import Response
from fastapi.staticfiles import StaticFiles
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.middleware.gzip import GZipMiddleware

from dashboards.app.callback_requests import MalformedError, checked_request

# Where there are pages.
PAGES = ("/", "/new", "/compare", "/study/{name:path}")
_KEPT = {"Cache-Control": "public, max-age=31536000"}
_SUITES = "_dash-component-suites/{package_name}/{fingerprinted_path:path}"


class ThreadedBackend(FastAPIDashServer):
    """Runs callbacks in threads, since they ask the database, and serves the pages alone."""

    websocket_capability = False

    def serve_callback(self, dash_app: Dash) -> Callable[..., Awaitable[Response]]:
        """A function that answers callbacks."""
        dispatch = super().serve_callback(dash_app)

        def answer(request: Request, content: bytes) -> Response:
            try:
                request.state.json_body = checked_request(content, dash_app.callback_map)
                response: Response = asyncio.run(dispatch(request))
            except MalformedError as error:
                raise HTTPException(422, f"No page sends such a request: {error}. Reload the page.") from error
            except PreventUpdate:
                return Response(status_code=204)
            return response

        async def in_thread(request: Request) -> Response:
            before = set_current_request(request)
            try:
                return await run_in_threadpool(answer, request, await request.body())
            finally:
                reset_current_request(before)

        return in_thread

    def setup_backend(self, dash_app: Dash) -> None:
        """Add nothing: Dash's middleware would answer for callbacks that fail, and keep their errors to itself."""

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
        # By file: of one, there are as many addresses as fingerprints.
        scripts: dict[tuple[str, str], _Script] = {}

        # No coroutine: it runs in a thread.
        def serve(request: Request, package_name: str, fingerprinted_path: str) -> Response:
            path, has_fingerprint = check_fingerprint(fingerprinted_path)
            key = package_name, path
            if key not in scripts:
                unconditional = Request({**request.scope, "headers": []})
                try:
                    whole = self.serve_component_suites(dash_app, package_name, path, unconditional)
                except (DependencyException, OSError) as error:
                    raise HTTPException(404) from error
                scripts[key] = _Script(whole)
            return scripts[key].answer(request.headers, has_fingerprint)

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

    def answer(self, asked: Headers, stays: bool) -> Response:
        """The file as a request wants it, or that the browser has it already.

        Args:
            asked: Headers of the request.
            stays: True for an address that changes with the file.
        """
        packs = "gzip" in asked.get("accept-encoding", "")
        # The same content in two encodings is two things to a cache.
        tag = f'"{self._tag}-gzip"' if packs else f'"{self._tag}"'
        headers = {"Vary": "Accept-Encoding", "ETag": tag, **(_KEPT if stays else {})}
        known = [one.strip().removeprefix("W/") for one in asked.get("if-none-match", "").split(",")]
        if tag in known:
            return Response(status_code=304, headers=headers)
        if packs:
            headers["Content-Encoding"] = "gzip"
        return Response(self._packed if packs else self._plain, media_type=self._media_type, headers=headers)
