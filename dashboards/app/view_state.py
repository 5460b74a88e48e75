"""The view that a page shows: the browser asks for it, and again only when something of it is new."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping
from functools import wraps
from typing import Annotated, Any

from dash import ALL, ClientsideFunction, Dash, Input, Output, State, dcc
from dash.exceptions import PreventUpdate
from pydantic import AfterValidator

from dashboards.app.addresses import NAMESPACE
from studies import StudiesError


def _whole(look: Mapping[str, Any]) -> Mapping[str, Any]:
    if not look.keys() >= {"theme", "webgl"} or not isinstance(look["theme"], str | None):
        raise ValueError("a look has a theme and says whether there is WebGL")
    return look


# "version" of the study, "theme" of the page, and whether the browser has "webgl".
Look = Annotated[Mapping[str, Any], AfterValidator(_whole)]


def look_at(view: str) -> dict[str, str]:
    """The id of the store that holds a view's `Look`; it is empty until the view is shown."""
    return {"type": "look", "view": view}


def looks(views: Iterable[str]) -> list[dcc.Store]:
    """The stores of all views."""
    return [dcc.Store(id=look_at(view)) for view in views]


def while_looked_at(show: Callable[..., Any]) -> Callable[..., Any]:
    """A callback that draws only while its view is shown: its first argument is the view's `Look`, if it is."""

    @wraps(show)
    def shown(look: Look | None, *others: Any) -> Any:
        if look is None:
            raise PreventUpdate
        return unless_away(show)(look, *others)

    signature = inspect.signature(show, eval_str=True)
    first, *others = signature.parameters.values()
    # A request's arguments are checked against it.
    vars(shown)["__signature__"] = signature.replace(parameters=[first.replace(annotation=Look | None), *others])
    return shown


def unless_away(show: Callable[..., Any]) -> Callable[..., Any]:
    """A callback that leaves the page as it is where the database fails: the page says so already."""

    @wraps(show)
    def shown(*arguments: Any) -> Any:
        try:
            return show(*arguments)
        except StudiesError:
            raise PreventUpdate from None

    return shown


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
