"""The page that lays the fronts of several studies over each other."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from dash import Dash, Input, Output, dcc, html

from dashboards.app.parts import complaint, graph, in_theme, nothing
from dashboards.app.watching import Watch
from dashboards.axes import OFFERED, Axis
from dashboards.figures.appearance import empty_figure
from dashboards.figures.explored import EXPLORED_PX, compared_figure
from dashboards.found import Found
from studies import StudiesError

# More than there are colours and marks would not be told apart.
MOST = 8


class ComparePage:
    """Several studies on one plot.

    Args:
        watch: Reads them.
    """

    def __init__(self, watch: Watch) -> None:
        self._watch = watch

    def layout(self, _: str) -> Any:
        """The page."""
        try:
            names = self._watch.names()
        except StudiesError as error:
            return nothing("Compare", complaint(error))
        if not names:
            return nothing("Nothing to compare", "There are no studies yet.")
        options = [{"label": Axis(one).title, "value": one} for one in OFFERED]
        studies = dcc.Dropdown(names, names[:2], id="compared", multi=True, placeholder=f"At most {MOST} studies")
        axes = [
            html.Label([html.Span(words), dcc.Dropdown(options, value, id=place, clearable=False, searchable=False)])
            for words, place, value in (("upwards", "compare-y", "kl"), ("across", "compare-x", "latency_ms"))
        ]
        return html.Div(
            [
                html.H1("Compare studies"),
                html.Label([html.Span("studies", className="name-of"), studies]),
                html.Div(axes, className="bar"),
                graph("compare-figure", "fronts of several studies", height=EXPLORED_PX),
            ]
        )

    def register(self, dash: Dash) -> None:
        """Add the callbacks."""
        dash.callback(
            Output("compare-figure", "figure"),
            Input("compared", "value"),
            Input("compare-x", "value"),
            Input("compare-y", "value"),
            Input("theme", "data"),
        )(self.figure)

    def figure(self, names: Sequence[str] | None, x: str, y: str, theme: str | None) -> Any:
        """The fronts of the studies of these names."""
        found: dict[str, Found] = {}
        try:
            for name in (names or [])[:MOST]:
                found[name] = self._watch.found(name)
        except StudiesError as error:
            return in_theme(empty_figure("Compare", complaint(error)), theme)
        return in_theme(compared_figure(found, x, y), theme)
