"""The form with which editors let other methods be compared with a study's schedules, and its callbacks."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from dash import Dash, Input, Output, State, dcc, html, no_update

from dashboards.app.actions import Actions, RefusedError
from dashboards.app.data_source import Standing, Watch
from dashboards.app.pages.manage import NOT_AN_EDITOR
from dashboards.app.view_state import Look, look_at, while_looked_at
from studies import StudiesError
from studies.service.submissions import RunState

_ABOUT = (
    "Each method is prepared on the calibration items of this study, and measured on its test items and on the clock. "
    "What is known is not measured again."
)
# What is alike, in words.
_MATCHES = {"latency": "measured time", "flops": "operations"}
# What is typed: its field, what it is about, what stands there while it is empty, and what that means.
_FIELDS = (
    (
        *("budgets", "shares of it to save, such as 0.15, 0.25", "as the selected"),
        "Empty for what the selected schedule was measured to save.",
    ),
    ("seeds", "seeds of methods with chance", "3", "Their means stand in the table."),
    (
        *("shapes", "further prefills to time, as rows x tokens, such as 1x256, 8x2048", "none"),
        "Of each model the speed-up there, too; long ones take long.",
    ),
)
_LONGEST = 200


class OtherMethods:
    """The start of a comparison."""

    def __init__(self, watch: Watch, actions: Actions, is_editor: Callable[[], bool]) -> None:
        self._watch = watch
        self._actions = actions
        self._is_editor = is_editor

    def layout(self, standing: Standing) -> html.Div:
        """The form; nothing for readers."""
        acts = html.Div(self._acts(standing.state), id="others-acts", className="acts")
        if not self._is_editor():
            return html.Div(acts)
        names: Any = list(self._actions.methods)
        matches: Any = [{"label": words, "value": match} for match, words in _MATCHES.items()]
        methods = dcc.Checklist(names, names, id="others-methods", className="choices", inline=True)
        match = dcc.RadioItems(matches, "latency", id="others-match", className="choices", inline=True)
        form = [
            html.P(_ABOUT, className="soft"),
            html.Fieldset([html.Legend("methods"), methods], className="field"),
            html.Fieldset([html.Legend("at equal"), match], className="field"),
            *(_labelled(*field) for field in _FIELDS),
            acts,
        ]
        return html.Div(html.Details([html.Summary("Compare with other methods"), html.Div(form, className="labels")]))

    def register(self, dash: Dash) -> None:
        """Adds the callbacks; what became of a start is said where the study's buttons say it."""
        dash.callback(
            Output("study-said", "children", allow_duplicate=True),
            Output("study-changed", "data", allow_duplicate=True),
            Input("others-start", "n_clicks"),
            State("others-methods", "value"),
            State("others-match", "value"),
            State("study", "data"),
            *(State(_id(field), "value") for field, *_ in _FIELDS),
            prevent_initial_call=True,
        )(self.start)
        dash.callback(
            Output("others-acts", "children"),
            Input(look_at("front"), "data"),
            State("study", "data"),
            prevent_initial_call=True,
        )(while_looked_at(self.acts))

    def start(
        self,
        n_clicks: int | None,
        methods: list[str] | None,
        match: str | None,
        name: str,
        budgets: str | None,
        seeds: str | None,
        shapes: str | None,
    ) -> tuple[Any, Any]:
        """Starts a comparison: a note, and a sign that the study has changed."""
        if not n_clicks:
            return no_update, no_update
        if not self._is_editor():
            return NOT_AN_EDITOR, no_update
        try:
            said = {"match": match, "budgets": budgets, "seeds": seeds, "shapes": shapes}
            self._actions.compare(name, methods or [], {field: text or "" for field, text in said.items()})
        except (RefusedError, StudiesError) as error:
            return str(error), no_update
        note = f"{name}: compares other methods as soon as a runner is free. Rows appear as they are measured."
        return note, note

    def acts(self, look: Look, name: str) -> list[Any]:
        """The button, as the study stands."""
        return self._acts(self._watch.standing(name).state)

    def _acts(self, state: RunState) -> list[Any]:
        if not self._is_editor():
            return []
        why = ""
        if not state.is_at_rest:
            why = "The study runs, or waits for a runner: wait until it has ended, or stop it."
        elif state is not RunState.FINISHED:
            why = f"The study is {state.value}: resume it, and compare it once it has finished."
        start = html.Button("Compare", id="others-start", className="button", type="button", disabled=bool(why))
        return [start, *([html.Span(why, className="soft")] if why else [])]


def _labelled(field: str, about: str, empty: str, note: str) -> html.Label:
    """An input with what it is about."""
    typed = dcc.Input(
        id=_id(field), type="text", placeholder=empty, maxLength=_LONGEST, autoComplete="off", spellCheck=False
    )
    return html.Label([html.Span(about, className="name-of"), typed, html.Small(note)])


def _id(field: str) -> str:
    return f"others-{field}"
