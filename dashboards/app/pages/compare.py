"""The page that lays the fronts of several studies over each other."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from typing import Any

from dash import Dash, Input, Output, dcc, html

from dashboards.analysis.axes import OFFERED
from dashboards.analysis.trials import Found
from dashboards.app.addresses import NOTHING_ASKED, Asked, Kept, keep, register_kept
from dashboards.app.data_source import Watch
from dashboards.app.parts import axis_choices, complaint, graph, in_theme, nothing, terms
from dashboards.figures import fronts_figure
from dashboards.figures.appearance import empty_figure
from dashboards.figures.front import FRONT_PX
from studies import StorageError, StudiesError

# More than there are colours and marks would not be told apart.
MOST = 8
_AGAIN_MS = 5000


class ComparePage:
    """Several studies on one plot."""

    def __init__(self, watch: Watch) -> None:
        self._watch = watch

    def layout(self, _: str, asked: Asked = NOTHING_ASKED) -> Any:
        """The page."""
        names = self._watch.names()
        if not names:
            return nothing("Nothing to compare", "There are no studies yet.")
        compared = Kept("study", "compared", names[:2], names)
        x, y = Kept("x", "compare-x", "latency_ms", OFFERED), Kept("y", "compare-y", "kl", OFFERED)
        studies = dcc.Dropdown(
            names, compared.of(asked), id="compared", multi=True, placeholder=f"At most {MOST} studies"
        )
        axes = axis_choices(("upwards", "compare-y", y.of(asked)), ("across", "compare-x", x.of(asked)))
        return html.Div(
            [
                html.H1("Compare studies"),
                html.Label([html.Span("studies", className="name-of"), studies]),
                html.Div(axes, className="bar"),
                html.Div(id="compare-verdicts"),
                graph("compare-figure", "fronts of several studies", height=FRONT_PX),
                keep("compare", (compared, x, y)),
                dcc.Interval(id="compare-again", interval=_AGAIN_MS, disabled=True),
            ]
        )

    def register(self, dash: Dash) -> None:
        """Add the callbacks."""
        dash.callback(
            Output("compare-figure", "figure"),
            Output("compare-again", "disabled"),
            Input("compared", "value"),
            Input("compare-x", "value"),
            Input("compare-y", "value"),
            Input("theme", "data"),
            Input("compare-again", "n_intervals"),
        )(self.figure)
        register_kept(dash, "compare", [(one, "value") for one in ("compared", "compare-x", "compare-y")])
        dash.callback(Output("compare-verdicts", "children"), Input("compared", "value"))(self.verdicts)

    def verdicts(self, names: Sequence[str] | None) -> Any:
        """The verdicts of the studies of these names, as far as they are known."""
        said: list[tuple[str, Any]] = []
        for name in (names or [])[:MOST]:
            # Of a study that cannot be read the figure says why.
            with suppress(StudiesError):
                verdict = self._watch.report_data(name, self._watch.standing(name)).verdict
                said.append((name, verdict or "Nothing is known yet."))
        return terms(said) if said else None

    def figure(
        self, names: Sequence[str] | None, x: str, y: str, theme: str | None, _: int | None = None
    ) -> tuple[Any, bool]:
        """The fronts of the studies of these names, and whether that is all: if not, it is asked for again."""
        found: dict[str, Found] = {}
        try:
            for name in (names or [])[:MOST]:
                found[name] = self._watch.found(name)
        except StudiesError as error:
            is_away = isinstance(error, StorageError)
            return in_theme(empty_figure("Compare", complaint(error)), theme), not is_away
        return in_theme(fronts_figure(found, x, y), theme), True
