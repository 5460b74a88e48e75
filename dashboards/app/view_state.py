"""The view that a page shows: the browser asks for it, and again only when something of it is new."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from dash import ALL, ClientsideFunction, Dash, Input, Output, State, dcc

from dashboards.app.frame import NAMESPACE

# "version" of the study, "theme" of the page, and whether the browser has "webgl".
Look = Mapping[str, Any]


def look_at(view: str) -> dict[str, str]:
    """The id of the store that holds a view's `Look`; it is empty until the view is shown."""
    return {"type": "look", "view": view}


def looks(views: Iterable[str]) -> list[dcc.Store]:
    """The stores of all views."""
    return [dcc.Store(id=look_at(view)) for view in views]


def register_looks(dash: Dash) -> None:
    """Add the callback that keeps them."""
    every = {"type": "look", "view": ALL}
    dash.clientside_callback(
        ClientsideFunction(NAMESPACE, "look"),
        Output(every, "data"),
        Input("version", "data"),
        Input("view", "value"),
        Input("theme", "data"),
        Input("webgl", "data"),
        State(every, "id"),
        State(every, "data"),
    )
