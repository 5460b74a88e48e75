"""The form in which editors ask a trial their own prompt, and its callbacks."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from dash import ALL, Dash, Input, Output, State, ctx, dcc, html, no_update

from dashboards.app.actions import Actions, RefusedError
from dashboards.app.data_source import Standing
from dashboards.app.pages.manage import NOT_AN_EDITOR
from dashboards.app.parts import alert, attributes
from dashboards.app.shaded import article, legend_line
from dashboards.report.prompts import own_prompt, shaded_prompts
from studies import StudiesError
from studies.records.records import ReportExamples

# Characters of a prompt, of a trial's number, and of the number of new tokens.
_LONGEST, _LONGEST_NUMBER, _LONGEST_TOKENS = 200_000, 10, 3
_NEW_TOKENS = 32
_ABOUT = "Both models answer it, and each token is shaded by how many blocks it runs. Nothing of it is kept."
_WAITS = "The model is loaded, and both answer. That takes some seconds; a large model takes a minute or more."
# Says which trial is asked, from the button beside it.
ASK = "trial-ask"


class OwnPrompt:
    """One's own prompt under the schedule of any trial."""

    def __init__(self, actions: Actions, is_editor: Callable[[], bool]) -> None:
        self._actions = actions
        self._is_editor = is_editor

    def layout(self, standing: Standing, trial: str) -> list[Any]:
        """The form, for editors; `trial` is the one that the page shows, as its number or nothing."""
        if not self._is_editor():
            return []
        chosen = standing.study.chosen_trial
        number = trial or ("" if chosen is None else str(chosen))
        box = dcc.Textarea(id="prompt-text", maxLength=_LONGEST, rows=3)
        text = html.Label([html.Span("Text", className="unseen"), box])
        kept: dict[str, Any] = {"type": "text", "inputMode": "numeric", "autoComplete": "off"}
        boxes = [
            html.Label([html.Span(words), dcc.Input(value, id=place, maxLength=longest, **kept)], className="small")
            for words, place, value, longest in (
                ("trial", "prompt-trial", number, _LONGEST_NUMBER),
                ("new tokens, at most", "prompt-tokens", str(_NEW_TOKENS), _LONGEST_TOKENS),
            )
        ]
        ask = html.Button("Ask", id="prompt-ask", className="button", type="button")
        return [
            html.Div(
                [
                    html.H2("Your own prompt"),
                    html.P(_ABOUT, className="soft"),
                    text,
                    html.Div([*boxes, ask], className="acts"),
                ],
                className="own",
            ),
            html.Div(id="prompt-waits", role="status", className="said"),
            html.Div(id="prompt-answer", **attributes(aria_live="polite")),
        ]

    def register(self, dash: Dash) -> None:
        """Adds the callbacks."""
        dash.callback(
            Output("prompt-answer", "children"),
            Input("prompt-ask", "n_clicks"),
            State("prompt-text", "value"),
            State("prompt-trial", "value"),
            State("prompt-tokens", "value"),
            State("study", "data"),
            prevent_initial_call=True,
            running=[
                (Output("prompt-ask", "disabled"), True, False),
                (Output("prompt-waits", "children"), _WAITS, ""),
            ],
        )(self._asked)
        dash.callback(
            Output("view", "value", allow_duplicate=True),
            Output("prompt-trial", "value"),
            Input({"type": ASK, "trial": ALL}, "n_clicks"),
            prevent_initial_call=True,
        )(self._chosen)

    def ask(self, text: str | None, trial: str | None, tokens: str | None, name: str) -> Any:
        """The prompt as the models read it, with their answers; or what is wrong."""
        if not self._is_editor():
            return alert(NOT_AN_EDITOR)
        numbers = {}
        for field, typed in (("trial", trial), ("new tokens", tokens)):
            given = (typed or "").strip()
            # Python reads no whole number of thousands of digits.
            if not given.isdecimal() or len(given) > _LONGEST_NUMBER:
                return alert(f"{field} is {typed or ''!r}: expected a whole number.")
            numbers[field] = int(given)
        try:
            found = self._actions.prompt(name, numbers["trial"], text or "", numbers["new tokens"])
        except (RefusedError, StudiesError) as error:
            return alert(str(error))
        examples = ReportExamples(prompts=(own_prompt(found),))
        (shaded,) = shaded_prompts(examples)
        about = (
            f"Trial {found['trial']}: overall sparsity {found['overall_sparsity']:.1%}, {found['router']} router; "
            f"{found['flops_saved']:.1%} of the operations of its {found['n_tokens']} tokens are saved."
        )
        return [html.P(about), legend_line(examples), article(shaded, "pruned")]

    def _asked(self, n_clicks: int | None, text: str | None, trial: str | None, tokens: str | None, name: str) -> Any:
        return self.ask(text, trial, tokens, name) if n_clicks else no_update

    def _chosen(self, _: list[int | None]) -> tuple[Any, Any]:
        # Buttons that appear count as inputs, too.
        if not ctx.triggered or not ctx.triggered[0]["value"] or not isinstance(ctx.triggered_id, dict):
            return no_update, no_update
        number = ctx.triggered_id["trial"]
        return ("prompts", str(number)) if isinstance(number, int) else (no_update, no_update)
