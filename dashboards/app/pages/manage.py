"""Stop, resume and delete: buttons for editors, and what becomes of pressing them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from dash import html

from dashboards.app.actions import Actions, RefusedError
from dashboards.app.parts import attributes
from studies import StudiesError
from studies.service.submissions import RunState

NOT_AN_EDITOR = "Your token is a reader's: only editors may change studies."


def buttons(name: str, state: RunState, kind: str = "act") -> list[html.Button]:
    """Buttons for what may be done with a study as it stands; `kind` says whose callbacks hear of it."""
    doable = ["stop"] if state in (RunState.QUEUED, RunState.RUNNING) else []
    doable += ["resume", "delete"] if state.is_at_rest else []
    return [
        html.Button(
            one.capitalize(),
            id={"type": kind, "do": one, "study": name},
            className="danger" if one == "delete" else "quiet",
            type="button",
            **attributes(aria_label=f"{one.capitalize()} {name}"),
        )
        for one in doable
    ]


def done(
    what: str, name: str, actions: Actions, is_editor: Callable[[], bool], changes: Mapping[str, Any] | None = None
) -> tuple[bool, str]:
    """Do what a button says.

    Args:
        what: "stop", "resume" or "delete".
        name: The study.
        actions: Do it.
        is_editor: Tells whether an editor pressed it.
        changes: Settings that change as it is resumed.

    Returns:
        Whether it was done, and what to say of it; anything else than the three is refused.
    """
    if not is_editor():
        return False, NOT_AN_EDITOR
    try:
        if what == "stop":
            actions.stop(name)
            return True, f"{name}: stops as soon as what is being evaluated has ended. Everything is kept."
        if what == "resume":
            actions.resume(name, changes or {})
            return True, f"{name}: goes on as soon as a runner is free."
        if what == "delete":
            actions.delete(name)
            return True, f"{name}: deleted."
    except (RefusedError, StudiesError) as error:
        return False, str(error)
    # Callbacks are requests like others: whoever sends one may write anything into it.
    return False, f"{name}: there is no {what!r}; expected stop, resume or delete. Nothing was done."


def question(name: str) -> str:
    """The question before a study is deleted."""
    return f"Delete the study {name} with all its trials? This cannot be undone. Files of its report stay."
