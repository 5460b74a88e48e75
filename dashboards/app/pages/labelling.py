"""The part of a study's page where editors change its tags and its note."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from dash import Dash, Input, Output, State, dcc, html, no_update

from dashboards.app.actions import Actions, RefusedError
from dashboards.app.pages.manage import NOT_AN_EDITOR
from studies.records.labels import Labels


class Labelling:
    """A small form, which stays as it is when the page is drawn anew."""

    def __init__(self, actions: Actions, is_editor: Callable[[], bool]) -> None:
        self._actions = actions
        self._is_editor = is_editor

    def layout(self, labels: Labels) -> list[Any]:
        """The form with the labels of a study; nothing for readers."""
        if not self._is_editor():
            return []
        were = {"tags": ", ".join(labels.tags), "note": labels.note}
        return [
            html.Details(
                [
                    html.Summary("Tags and note"),
                    html.Div(
                        [
                            html.Label(
                                [
                                    html.Span("tags, separated by commas", className="name-of"),
                                    dcc.Input(were["tags"], id="labels-tags", type="text", autoComplete="off"),
                                ]
                            ),
                            html.Label(
                                [
                                    html.Span("note", className="name-of"),
                                    dcc.Textarea(value=were["note"], id="labels-note", rows=3),
                                ]
                            ),
                            html.Div(
                                [
                                    html.Button("Save", id="labels-save", className="quiet", type="button"),
                                    html.Span(id="labels-said", role="status", className="soft"),
                                ],
                                className="acts",
                            ),
                        ],
                        className="labels",
                    ),
                    dcc.Store(id="labels-were", data=were),
                ]
            )
        ]

    def register(self, dash: Dash) -> None:
        """Adds the callback."""
        dash.callback(
            Output("labels-said", "children"),
            Output("labels-were", "data"),
            Output("study-changed", "data", allow_duplicate=True),
            Input("labels-save", "n_clicks"),
            State("labels-tags", "value"),
            State("labels-note", "value"),
            State("labels-were", "data"),
            State("study", "data"),
            prevent_initial_call=True,
        )(self.save)

    def save(
        self,
        n_clicks: int | None,
        tags: str | None,
        note: str | None,
        were: Mapping[str, str] | None,
        name: str,
    ) -> tuple[Any, Any, Any]:
        """Gives a study what was typed: a note on it, what the form says now, and a sign that the study has changed."""
        if not n_clicks:
            return no_update, no_update, no_update
        if not self._is_editor():
            return NOT_AN_EDITOR, no_update, no_update
        now = {"tags": tags or "", "note": note or ""}
        # What was not touched may have been changed elsewhere meanwhile.
        changes = {field: said for field, said in now.items() if said != (were or {}).get(field)}
        try:
            self._actions.label(name, changes)
        except RefusedError as error:
            return str(error), no_update, no_update
        return "Saved.", now, n_clicks
