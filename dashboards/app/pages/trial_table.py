"""The table of a study's trials: columns, conditions and an order to choose, and the selected trial marked."""

from __future__ import annotations

from typing import Any

import numpy as np
from dash import ALL, ClientsideFunction, Dash, Input, Output, State, dcc, html

from dashboards.app.addresses import NAMESPACE, Asked, Kept
from dashboards.app.data_source import Standing, Watch
from dashboards.app.parts import alert, attributes, choice, nothing, page_buttons
from dashboards.app.trial_listing import (
    SHOWN,
    Chosen,
    ConditionError,
    TrialColumn,
    columns_to_choose,
    first_columns,
    listed_trials,
)
from dashboards.app.view_state import Look, look_at, while_looked_at

_LONGEST = 200
_SHOWN = Kept("show", "rows-shown", choices=tuple(SHOWN))
_PROPOSER = Kept("by", "rows-proposer")
_CONDITIONS = Kept("where", "rows-conditions", is_typed=True)
_ORDER = Kept("order", "rows-order", "number", prop="data")
_PAGE = Kept("page", "rows-page", "1", prop="data")
# Id and property of the components whose values the address holds, in the order of `TrialTable.kept`.
KEPT = (
    *((one, "value") for one in ("rows-shown", "rows-proposer", "rows-conditions", "rows-columns")),
    *((one, "data") for one in ("rows-order", "rows-page")),
)
_BY = {"type": "rows-by", "column": ALL}


class TrialTable:
    """Every trial of a study that has ended, a page at a time."""

    def __init__(self, watch: Watch) -> None:
        self._watch = watch

    def kept(self, standing: Standing) -> tuple[Kept, ...]:
        """What the address holds of the table."""
        objectives = standing.study.objectives
        columns = Kept("column", "rows-columns", first_columns(objectives), tuple(columns_to_choose(objectives)))
        return _SHOWN, _PROPOSER, _CONDITIONS, columns, _ORDER, _PAGE

    def layout(self, standing: Standing, asked: Asked) -> html.Section:
        """The controls, and the table's place."""
        shown, proposer, conditions, columns, order, page = (one.of(asked) for one in self.kept(standing))
        choices = columns_to_choose(standing.study.objectives).values()
        return html.Section(
            [
                html.H2("Trials"),
                html.Div(
                    [
                        choice("show", "rows-shown", shown, SHOWN),
                        choice("proposed by", "rows-proposer", proposer, {one: one or "any" for one in ("", proposer)}),
                        html.Label(
                            [
                                html.Span("conditions"),
                                dcc.Input(
                                    conditions,
                                    id="rows-conditions",
                                    type="search",
                                    debounce=True,
                                    placeholder="KL < 0.1, FLOPs saved > 20%",
                                    maxLength=_LONGEST,
                                    autoComplete="off",
                                ),
                            ],
                            className="search",
                        ),
                        html.Label(
                            [
                                html.Span("columns"),
                                dcc.Dropdown(
                                    [{"label": one.title, "value": one.name} for one in choices],
                                    columns,
                                    id="rows-columns",
                                    multi=True,
                                    clearable=False,
                                ),
                            ]
                        ),
                    ],
                    className="bar",
                ),
                html.Div(html.P("Loading …", className="loading"), id="rows"),
                html.Div(
                    [
                        html.Span(id="rows-count", role="status", className="soft"),
                        *page_buttons("rows", is_first=True, is_last=True),
                    ],
                    className="acts",
                ),
                dcc.Store(id="rows-order", data=order),
                dcc.Store(id="rows-page", data=page),
            ],
            **attributes(aria_label="Trials"),
        )

    def register(self, dash: Dash) -> None:
        """Add the callbacks."""
        dash.callback(
            Output("rows", "children"),
            Output("rows-count", "children"),
            Output("rows-before", "disabled"),
            Output("rows-after", "disabled"),
            Output("rows-proposer", "options"),
            Input(look_at("front"), "data"),
            Input("front-x", "value"),
            Input("front-y", "value"),
            Input("rows-shown", "value"),
            Input("rows-proposer", "value"),
            Input("rows-conditions", "value"),
            Input("rows-columns", "value"),
            Input("rows-order", "data"),
            Input("rows-page", "data"),
            Input("selected", "data"),
            State("study", "data"),
            prevent_initial_call=True,
        )(while_looked_at(self.rows))
        dash.clientside_callback(
            ClientsideFunction(NAMESPACE, "sortBy"),
            Output("rows-order", "data"),
            Input(_BY, "n_clicks"),
            State(_BY, "id"),
            State("rows-order", "data"),
            prevent_initial_call=True,
        )
        dash.clientside_callback(
            ClientsideFunction(NAMESPACE, "turnPage"),
            Output("rows-page", "data"),
            Input("rows-before", "n_clicks"),
            Input("rows-after", "n_clicks"),
            *(Input(one.component, one.prop) for one in (_SHOWN, _PROPOSER, _CONDITIONS, _ORDER)),
            State("rows-page", "data"),
            prevent_initial_call=True,
        )

    def rows(
        self,
        _: Look,
        x: str,
        y: str,
        shown: str | None,
        proposer: str | None,
        conditions: str | None,
        columns: list[str] | None,
        order: str | None,
        page: str | None,
        selected: int | None,
        name: str,
    ) -> tuple[Any, str, bool, bool, Any]:
        """The table, what it shows of how many, whether it is the first and the last page, and all proposers."""
        found = self._watch.found(name)
        options = [{"label": one or "any", "value": one} for one in ("", *sorted(found.columns.proposers))]
        front = found.front(x, y)
        chosen = Chosen(shown or "", proposer or "", conditions or "", order or "number", page or "1")
        try:
            listed = listed_trials(found, chosen, front)
        except ConditionError as error:
            return alert(str(error)), "", True, True, options
        known = columns_to_choose(found.objectives)
        # In the order of the table, whatever order they were chosen in.
        asked = [column for column in known.values() if column.name in (columns or ()) or column.name == "number"]
        wanted = [column for column in asked if np.isfinite(column.values(found)).any()]
        unknown = [column.title for column in asked if column not in wanted]
        marked = None if selected is None else found.columns.place(selected)
        places = listed.places
        # A selected trial of another page stands above those of this one.
        aside = [marked] if marked is not None and marked not in places else []
        if not places and not aside:
            text = "None matches." if len(found) else "None has ended yet."
            return nothing("No trials", text), listed.words, True, True, options
        on_front = set(front.tolist())
        head = [*(_heading(column, chosen.order) for column in wanted), html.Th("on the front", scope="col")]
        body = []
        for place in [*aside, *places]:
            number = int(found.columns.number[place])
            cells = [html.Td(column.text(found, place)) for column in wanted[1:]]
            button = html.Button(
                f"▶ {number}" if place == marked else str(number),
                id={"type": "row", "trial": number},
                className="quiet",
                type="button",
                **attributes(aria_label=f"Select trial {number}", aria_pressed=str(place == marked).lower()),
            )
            body.append(
                html.Tr(
                    [html.Td(button), *cells, html.Td("yes" if place in on_front else "")],
                    className="row chosen" if place == marked else "row",
                )
            )
        table = html.Table([html.Thead(html.Tr(head)), html.Tbody(body)], className="trials")
        scroll = html.Div(
            table, className="scroll", role="region", tabIndex=0, **attributes(aria_label="Table of trials")
        )
        notes = ["the selected one on top"] if aside else []
        notes += [f"no trial has: {', '.join(unknown)}"] if unknown else []
        words = "; ".join([listed.words, *notes])
        return scroll, words, listed.pages.is_first, listed.pages.is_last, options


def _heading(column: TrialColumn, order: str) -> html.Th:
    is_by = order.removeprefix("-") == column.name
    sign = "" if not is_by else " ▼" if order.startswith("-") else " ▲"
    sorted_by = {"aria_sort": "descending" if order.startswith("-") else "ascending"} if is_by else {}
    button = html.Button(
        [column.title, html.Span(sign, **attributes(aria_hidden="true"))],
        id={"type": "rows-by", "column": column.name},
        className="by",
        type="button",
    )
    unit = [html.Small(f"[{column.unit}]")] if column.unit else []
    return html.Th([button, *unit], scope="col", **attributes(**sorted_by))
