"""Puts the dashboard onto the service's application."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from dash import Dash
from fastapi import FastAPI

from dashboards.app.actions import Actions
from dashboards.app.backend import ThreadedBackend
from dashboards.app.data_source import Watch
from dashboards.app.frame import Frame, Page
from dashboards.app.pages.compare import ComparePage
from dashboards.app.pages.create import NewPage
from dashboards.app.pages.exports import add_exports
from dashboards.app.pages.studies import StudiesPage
from dashboards.app.pages.study import StudyPage
from studies.service.service_store import ServiceStore

# Dash and Plotly add style elements to pages as they draw, and what draws with WebGL for Plotly compiles its own code.
# Scripts still come from the service alone: no inline one runs but Dash's own, which is known by its hash.
_STYLES, _SCRIPTS = ("'unsafe-inline'",), ("'unsafe-eval'",)
_INDEX = """<!DOCTYPE html>
<html lang="en">
<head>
{%metas%}
<title>{%title%}</title>
{%favicon%}
{%css%}
</head>
<body>
{%app_entry%}
<footer>
{%config%}
{%scripts%}
{%renderer%}
</footer>
</body>
</html>"""


def mount(
    app: FastAPI, store: ServiceStore, is_editor: Callable[[], bool], actions: Actions
) -> Mapping[str, Sequence[str]]:
    """Add the dashboard's pages to an application.

    Args:
        app: The service.
        store: Store of the studies.
        is_editor: Tells whether the request that is being answered comes from an editor.
        actions: Actions of editors.

    Returns:
        Sources by directive of a Content-Security-Policy that the pages need beside the service's own ones.
    """
    dash = Dash(
        "dashboards.app",
        server=False,
        backend=ThreadedBackend,
        assets_folder=str(Path(__file__).with_name("assets")),
        serve_locally=True,
        routes_pathname_prefix="/",
        requests_pathname_prefix="/",
        suppress_callback_exceptions=True,
        title="ftp-search",
        index_string=_INDEX,
        update_title="",
        add_log_handler=False,
        use_async=False,
        enable_mcp=False,
        use_pages=False,
    )
    watch = Watch(store)
    pages: dict[str, Page] = {
        "studies": StudiesPage(watch, actions, is_editor),
        "new": NewPage(actions, is_editor),
        "study": StudyPage(watch, actions, is_editor),
        "compare": ComparePage(watch),
    }
    frame = Frame(pages, is_editor)
    dash.layout = frame.layout
    frame.register(dash)
    for page in pages.values():
        page.register(dash)
    add_exports(app, watch)
    dash.init_app(app)
    # Dash would do it before the first request, in the middleware that is left out.
    dash._setup_server()
    return {"style-src": _STYLES, "script-src": (*dash.csp_hashes(), *_SCRIPTS)}
