"""Buttons of editors that stop, resume and delete studies, and their callbacks."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from hashlib import sha256
from typing import Any

from dash import ALL, Dash, Input, Output, State, ctx, dcc, html, no_update

from dashboards.app.actions import Actions, RefusedError
from dashboards.app.data_source import Watch
from dashboards.app.parts import attributes, complaint
from studies import StudiesError, StudyNotFoundError
from studies.service.submissions import RunState

NOT_AN_EDITOR = "Your token is a reader's: only editors may change studies."


class ManagingPage:
    """A page with buttons that stop, resume and delete studies."""

    # Begins the ids of the page's components that take part.
    prefix = ""

    def __init__(self, watch: Watch, actions: Actions, is_editor: Callable[[], bool]) -> None:
        self._watch = watch
        self._actions = actions
        self._is_editor = is_editor

    def press(self, what: str, name: str, more_trials: Any = None) -> tuple[Any, Any, Any, Any, bool]:
        """The response to a button: a note, or a question that is asked first."""
        if what == "delete":
            question = f"Delete the study {name} with all its trials? This cannot be undone. Files of its report stay."
            return no_update, no_update, name, question, True
        changes: dict[str, Any] = {}
        if what == "resume" and (typed := str(more_trials or "").strip()):
            # Python reads no whole number of thousands of digits.
            if not typed.isdecimal() or len(typed) > 20:
                return f"Trials is {more_trials!r}: expected a whole number.", no_update, no_update, no_update, False
            changes["trials"] = int(typed)
        _, said = self.done(what, name, changes)
        return said, said, no_update, no_update, False

    def delete(self, n_clicks: int | None, name: str | None) -> tuple[Any, Any]:
        """Deletes the study that was asked about; a note, and the value of the page's own output."""
        if not n_clicks or name is None:
            return no_update, no_update
        return self._after_deletion(*self.done("delete", name, {}))

    def done(self, what: str, name: str, changes: Mapping[str, Any]) -> tuple[bool, str]:
        """Does what a button says, with settings that change as a study is resumed: success, and a note to show."""
        if not self._is_editor():
            return False, NOT_AN_EDITOR
        try:
            if what == "stop":
                self._actions.stop(name)
                return True, f"{name}: stops as soon as what is being evaluated has ended. Everything is kept."
            if what == "resume":
                self._actions.resume(name, changes)
                return True, f"{name}: goes on as soon as a runner is free."
            if what == "delete":
                self._actions.delete(name)
                return True, f"{name}: deleted."
        except (RefusedError, StudiesError) as error:
            return False, str(error)
        # Callbacks are requests, which may hold anything.
        return False, f"{name}: there is no {what!r}; expected stop, resume or delete. Nothing was done."

    def _after_deletion(self, was_done: bool, said: str) -> tuple[Any, Any]:
        return said, said

    def _controls(self) -> list[Any]:
        """Components without a place of their own."""
        return [
            dcc.Store(id=f"{self.prefix}changed"),
            dcc.Store(id=f"{self.prefix}to-delete"),
            dcc.ConfirmDialog(id=f"{self.prefix}confirm"),
        ]

    def _buttons(self, name: str, state: RunState) -> list[html.Button]:
        if not self._is_editor():
            return []
        doable = ["stop"] if state in (RunState.QUEUED, RunState.RUNNING) else []
        doable += ["resume", "delete"] if state.is_at_rest else []
        return [
            html.Button(
                one.capitalize(),
                id={"type": f"{self.prefix}act", "do": one, "study": study_key(name)},
                className="danger" if one == "delete" else "quiet",
                type="button",
                **attributes(aria_label=f"{one.capitalize()} {name}"),
            )
            for one in doable
        ]

    def _register_buttons(self, dash: Dash, after_deletion: Output) -> None:
        dash.callback(
            Output(f"{self.prefix}said", "children"),
            Output(f"{self.prefix}changed", "data"),
            Output(f"{self.prefix}to-delete", "data"),
            Output(f"{self.prefix}confirm", "message"),
            Output(f"{self.prefix}confirm", "displayed"),
            Input({"type": f"{self.prefix}act", "do": ALL, "study": ALL}, "n_clicks"),
            State({"type": "more-trials", "of": ALL}, "value"),
            prevent_initial_call=True,
        )(self._pressed)
        dash.callback(
            Output(f"{self.prefix}said", "children", allow_duplicate=True),
            after_deletion,
            Input(f"{self.prefix}confirm", "submit_n_clicks"),
            State(f"{self.prefix}to-delete", "data"),
            prevent_initial_call=True,
        )(self.delete)

    def _pressed(self, _: list[int | None], more: list[Any]) -> tuple[Any, Any, Any, Any, Any]:
        # Buttons that appear count as inputs, too.
        if not ctx.triggered or not ctx.triggered[0]["value"] or not isinstance(ctx.triggered_id, dict):
            return no_update, no_update, no_update, no_update, no_update
        try:
            name = self._name_of(str(ctx.triggered_id["study"]))
        except StudiesError as error:
            return complaint(error), no_update, no_update, no_update, False
        return self.press(str(ctx.triggered_id["do"]), name, more[0] if more else None)

    def _name_of(self, key: str) -> str:
        for name in self._watch.names():
            if study_key(name) == key:
                return name
        raise StudyNotFoundError(key)


def study_key(name: str) -> str:
    """What stands for a study in ids of components: Dash and browsers write text that is not ASCII differently."""
    return sha256(name.encode()).hexdigest()[:32]
