"""Buttons of editors that measure, select and export a single trial, and their callback."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from dash import ALL, Dash, Input, Output, State, ctx, html, no_update

from dashboards.app.actions import Actions, RefusedError
from dashboards.app.data_source import Watch
from dashboards.app.pages.manage import NOT_AN_EDITOR
from dashboards.app.pages.own_prompt import ASK
from dashboards.app.parts import attributes
from studies import StudiesError, StudyState, Trial, TrialState
from studies.records.trial import finite_values

# What the buttons say to those who hear them.
_MEANINGS = {
    "measure": "Measure trial {} on validation items and on the clock",
    "select": "Measure, select, test and export trial {}",
    "export": "Save the schedule of trial {} with its settings",
}


class TrialActs:
    """Buttons beside a trial of a study."""

    def __init__(self, watch: Watch, actions: Actions, is_editor: Callable[[], bool]) -> None:
        self._watch = watch
        self._actions = actions
        self._is_editor = is_editor

    def buttons(self, name: str, trial: Trial) -> list[html.Div]:
        """What an editor may do with a trial now; nothing for others."""
        if not self._is_editor() or trial.state is not TrialState.FINISHED or not finite_values(trial.values):
            return []
        has_finished = self._watch.store.studies.get(name).state is StudyState.FINISHED
        doable = _MEANINGS if has_finished else ("export",)
        buttons = [
            html.Button(
                one.capitalize(),
                id={"type": "trial-do", "do": one, "trial": trial.number},
                className="quiet",
                type="button",
                **attributes(aria_label=_MEANINGS[one].format(trial.number)),
            )
            for one in doable
        ]
        ask = html.Button(
            "Prompt",
            id={"type": ASK, "trial": trial.number},
            className="quiet",
            type="button",
            **attributes(aria_label=f"Ask trial {trial.number} your own prompt"),
        )
        return [html.Div([*buttons, ask], className="acts")]

    def register(self, dash: Dash) -> None:
        """Adds the callback, whose note stands where those of the study's buttons do."""
        dash.callback(
            Output("study-said", "children", allow_duplicate=True),
            Output("study-changed", "data", allow_duplicate=True),
            Output("trial-file", "data"),
            Input({"type": "trial-do", "do": ALL, "trial": ALL}, "n_clicks"),
            State("study", "data"),
            prevent_initial_call=True,
        )(self._pressed)

    def press(self, what: str, number: int, name: str) -> tuple[Any, Any, Any]:
        """The response to a button: a note, the same where the study changes, and a file."""
        if not self._is_editor():
            return NOT_AN_EDITOR, no_update, no_update
        try:
            if what == "export":
                content = json.dumps(self._actions.export(name, number), indent=2)
                file = {"content": content, "filename": f"{name}-trial-{number}.json", "type": "application/json"}
                return f"Trial {number}: its schedule and settings are saved.", no_update, file
            if what == "measure":
                self._actions.measure(name, number)
                said = f"{name}: measures trial {number} as soon as a runner is free."
                return said, said, no_update
            if what == "select":
                self._actions.select(name, number)
                said = f"{name}: measures and selects trial {number} as soon as a runner is free."
                return said, said, no_update
        except (RefusedError, StudiesError) as error:
            return str(error), no_update, no_update
        # Callbacks are requests, which may hold anything.
        said = f"Trial {number}: there is no {what!r}; expected {', '.join(_MEANINGS)}. Nothing was done."
        return said, no_update, no_update

    def _pressed(self, _: list[int | None], name: str) -> tuple[Any, Any, Any]:
        # Buttons that appear count as inputs, too.
        if not ctx.triggered or not ctx.triggered[0]["value"] or not isinstance(ctx.triggered_id, dict):
            return no_update, no_update, no_update
        what, number = ctx.triggered_id["do"], ctx.triggered_id["trial"]
        if not isinstance(number, int):
            return no_update, no_update, no_update
        return self.press(str(what), number, name)
