"""Buttons that stop or delete all studies of the list that somebody has chosen, after one question."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from dash import ALL, Dash, Input, Output, State, ctx, dcc, html, no_update

from dashboards.app.data_source import Watch
from dashboards.app.pages.manage import study_key
from dashboards.app.parts import complaint
from studies import StudiesError

_ON = "on"
_PAST = {"stop": "Asked to stop", "delete": "Deleted"}
_QUESTIONS = {
    "stop": "Stop {n}? What is being evaluated ends first, and everything is kept.",
    "delete": "Delete {n} with all trials? This cannot be undone. Files of reports stay.",
}


class ChosenStudies:
    """What is done with several studies at once.

    Args:
        watch: The studies.
        done: Does something with a study of a name, with settings that change: success, and a note.
    """

    def __init__(self, watch: Watch, done: Callable[[str, str, Mapping[str, Any]], tuple[bool, str]]) -> None:
        self._watch = watch
        self._done = done

    def buttons(self) -> list[Any]:
        """The buttons, and what asks before they act."""
        return [
            html.Button("Stop chosen", id="chosen-stop", className="quiet", type="button"),
            html.Button("Delete chosen", id="chosen-delete", className="danger", type="button"),
            dcc.Store(id="chosen-keys"),
            dcc.Store(id="chosen-what"),
            dcc.ConfirmDialog(id="chosen-confirm"),
        ]

    def box(self, name: str) -> dcc.Checklist:
        """The box that chooses a study; it stays as it is when the list is drawn anew."""
        words: Any = html.Span(f"Choose {name}", className="unseen")
        kept: Any = {"persistence": True, "persistence_type": "memory"}
        place = {"type": "choose", "study": study_key(name)}
        return dcc.Checklist([{"label": words, "value": _ON}], [], id=place, **kept)

    def register(self, dash: Dash) -> None:
        """Adds the callbacks."""
        boxes = {"type": "choose", "study": ALL}
        dash.callback(
            Output("said", "children", allow_duplicate=True),
            Output("chosen-keys", "data"),
            Output("chosen-what", "data"),
            Output("chosen-confirm", "message"),
            Output("chosen-confirm", "displayed"),
            Input("chosen-stop", "n_clicks"),
            Input("chosen-delete", "n_clicks"),
            State(boxes, "value"),
            State(boxes, "id"),
            prevent_initial_call=True,
        )(self._pressed)
        dash.callback(
            Output("said", "children", allow_duplicate=True),
            Output("changed", "data", allow_duplicate=True),
            Input("chosen-confirm", "submit_n_clicks"),
            State("chosen-what", "data"),
            State("chosen-keys", "data"),
            prevent_initial_call=True,
        )(self._confirmed)

    def act(self, what: str, keys: list[str]) -> html.Div:
        """Does something with each of several studies, and says with how many, and of each other one why not."""
        names = {study_key(name): name for name in self._watch.names()}
        outcomes = [(names[key], *self._done(what, names[key], {})) for key in dict.fromkeys(keys) if key in names]
        n_done = sum(was_done for _, was_done, _ in outcomes)
        failed = [html.Li(f"{name}: {said}") for name, was_done, said in outcomes if not was_done]
        return html.Div([f"{_PAST[what]}: {n_done} of {_counted(len(keys))}.", *([html.Ul(failed)] if failed else [])])

    def _pressed(
        self, _: int | None, __: int | None, values: list[list[str] | None], ids: list[Mapping[str, str]]
    ) -> tuple[Any, Any, Any, Any, Any]:
        if not ctx.triggered or not ctx.triggered[0]["value"]:
            return no_update, no_update, no_update, no_update, no_update
        what = str(ctx.triggered_id).removeprefix("chosen-")
        keys = [place["study"] for place, value in zip(ids, values, strict=True) if value]
        if not keys:
            return "No study is chosen: tick those that are meant.", no_update, no_update, no_update, False
        return no_update, keys, what, _QUESTIONS[what].format(n=_counted(len(keys))), True

    def _confirmed(self, n_clicks: int | None, what: str | None, keys: list[str] | None) -> tuple[Any, Any]:
        if not n_clicks or what not in _PAST or not keys:
            return no_update, no_update
        try:
            return self.act(what, keys), n_clicks
        except StudiesError as error:
            return complaint(error), no_update


def _counted(n: int) -> str:
    return "1 study" if n == 1 else f"{n} studies"
