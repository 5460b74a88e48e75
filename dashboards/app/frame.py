"""What every page has: its head, and the callback that finds out which page an address shows."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol
from urllib.parse import unquote

from dash import ClientsideFunction, Dash, Input, Output, State, dcc, html

from dashboards.app.parts import attributes, nothing

NAMESPACE = "ftp"


class Page(Protocol):
    """A page."""

    def layout(self, argument: str) -> Any:
        """Its content; `argument` is what an address says behind the page's name."""

    def register(self, dash: Dash) -> None:
        """Add its callbacks."""


class Frame:
    """The head of every page, and which page is shown.

    Args:
        pages: By name: "studies", "new", "study", "compare".
    """

    def __init__(self, pages: Mapping[str, Page]) -> None:
        self._pages = pages
        self.layout = html.Div(
            [
                dcc.Location(id="url", refresh="callback-nav"),
                dcc.Store(id="theme"),
                dcc.Store(id="webgl"),
                dcc.Store(id="wanted-theme", storage_type="local"),
                html.A("Skip to the content", href="#page", className="skip"),
                html.Header(
                    [
                        dcc.Link("ftp-search", href="/", className="home"),
                        html.Nav(
                            [
                                dcc.Link("Studies", href="/"),
                                dcc.Link("New study", href="/new"),
                                dcc.Link("Compare", href="/compare"),
                            ],
                            **attributes(aria_label="Pages"),
                        ),
                        html.Button("Dark", id="theme-button", className="quiet", type="button"),
                        html.Button("Sign out", id="sign-out", className="quiet", type="button", hidden=True),
                    ],
                    className="head",
                ),
                html.Main(html.P("Loading …", className="loading"), id="page", tabIndex=-1),
            ]
        )

    def register(self, dash: Dash) -> None:
        """Add the callbacks."""
        dash.callback(Output("page", "children"), Input("url", "pathname"))(self.content)
        dash.clientside_callback(
            ClientsideFunction(NAMESPACE, "theme"),
            Output("theme", "data"),
            Output("webgl", "data"),
            Output("wanted-theme", "data"),
            Output("theme-button", "children"),
            Input("theme-button", "n_clicks"),
            State("wanted-theme", "data"),
        )
        dash.clientside_callback(
            ClientsideFunction(NAMESPACE, "signOut"),
            Output("sign-out", "hidden"),
            Input("sign-out", "n_clicks"),
        )

    def content(self, pathname: str | None) -> Any:
        """What an address shows."""
        first, _, rest = (pathname or "/").lstrip("/").partition("/")
        page = self._pages.get(first or "studies")
        if page is None or (first == "studies"):
            return nothing("Nothing here", "There is no page at this address.")
        return page.layout(unquote(rest))
