"""The frame of every page: its head and its title, and the callback that finds the page of an address."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Protocol
from urllib.parse import unquote

from dash import ClientsideFunction, Dash, Input, Output, State, dcc, html, no_update

from dashboards.app.addresses import NAMESPACE, Asked, asked_of
from dashboards.app.parts import attributes, complaint, nothing
from studies import StorageError

_AGAIN_MS = 5000


class Page(Protocol):
    """A page."""

    def layout(self, argument: str, asked: Asked, /) -> Any:
        """Its content; an address says `argument` behind the page's name, and what it asks for behind that.

        Raises:
            StorageError: The database does not answer: the frame says so, and tries again.
        """

    def register(self, dash: Dash) -> None:
        """Add its callbacks."""


class Frame:
    """The head of every page, and which page is shown, by its name: "studies", "new", "study" or "compare"."""

    def __init__(self, pages: Mapping[str, Page], is_editor: Callable[[], bool] = lambda: True) -> None:
        self._pages = pages
        self._is_editor = is_editor

    def layout(self) -> html.Div:
        """The frame for whoever asks: readers are not led to what they may not do."""
        return html.Div(
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
                                *([dcc.Link("New study", href="/new")] if self._is_editor() else []),
                                dcc.Link("Compare", href="/compare"),
                            ],
                            **attributes(aria_label="Pages"),
                        ),
                        html.Button("Copy link", id="copy-link", className="quiet", type="button"),
                        html.Button("Dark", id="theme-button", className="quiet", type="button"),
                        html.Span(id="who", className="soft"),
                        html.Button("Sign out", id="sign-out", className="quiet", type="button", hidden=True),
                    ],
                    className="head",
                ),
                html.Main(html.P("Loading …", className="loading"), id="page", tabIndex=-1),
            ]
        )

    def register(self, dash: Dash) -> None:
        """Add the callbacks."""
        address = State("url", "search")
        dash.callback(Output("page", "children"), Input("url", "pathname"), address)(self.content)
        dash.callback(
            Output("page", "children", allow_duplicate=True),
            Input("page-again", "n_intervals"),
            State("url", "pathname"),
            address,
            prevent_initial_call=True,
        )(self.again)
        dash.clientside_callback(
            ClientsideFunction(NAMESPACE, "copyLink"),
            Output("copy-link", "children"),
            Input("copy-link", "n_clicks"),
            prevent_initial_call=True,
        )
        dash.clientside_callback(ClientsideFunction(NAMESPACE, "titled"), Input("url", "pathname"))
        dash.clientside_callback(ClientsideFunction(NAMESPACE, "readAddress"), Input("url", "search"))
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
            ClientsideFunction(NAMESPACE, "signOut"), Output("sign-out", "hidden"), Input("sign-out", "n_clicks")
        )

    def content(self, pathname: str | None, search: str | None = None) -> Any:
        """The content of an address; if the database does not answer, a note, and what calls `again`."""
        try:
            return self._shown(pathname, search)
        except StorageError as error:
            words = nothing("The database does not answer", complaint(error))
            return html.Div([words, dcc.Interval(id="page-again", interval=_AGAIN_MS)])

    def again(self, _: int | None, pathname: str | None, search: str | None = None) -> Any:
        """The content of an address that could not be shown before."""
        try:
            return self._shown(pathname, search)
        except StorageError:
            return no_update

    def _shown(self, pathname: str | None, search: str | None) -> Any:
        first, _, rest = (pathname or "/").lstrip("/").partition("/")
        page, argument = self._pages.get(first or "studies"), unquote(rest)
        # No database takes text with zero bytes.
        if page is None or first == "studies" or "\0" in argument:
            return nothing("Nothing here", "There is no page at this address.")
        return page.layout(argument, asked_of(search))
