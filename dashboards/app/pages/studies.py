"""The page of all studies: their state, and buttons to manage them."""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import sha256
from typing import Any

from dash import Dash, Input, Output, State, dcc, html, no_update

from dashboards.app.data_source import Line
from dashboards.app.pages.manage import ManagingPage
from dashboards.app.parts import alert, attributes, badge, complaint, nothing, study_address
from studies import StudiesError
from studies.records.objectives import objective
from studies.service.runners import RunnerRecord
from studies.service.submissions import RunState

_EVERY_MS = 2000
_HEADINGS = ("study", "state", "progress", "trials/s", "best point", "run by", "")


class StudiesPage(ManagingPage):
    """All studies."""

    def layout(self, _: str) -> Any:
        """The page."""
        shown, seen = self.rows(0, None, None)
        return html.Div(
            [
                html.Div(
                    [
                        html.H1("Studies"),
                        *([dcc.Link("New study", href="/new", className="button")] if self._is_editor() else []),
                    ],
                    className="title",
                ),
                html.Div(id="said", role="status", className="said"),
                html.Div(shown, id="studies"),
                dcc.Store(id="studies-seen", data=seen),
                *self._controls(),
                dcc.Interval(id="studies-interval", interval=_EVERY_MS),
            ]
        )

    def register(self, dash: Dash) -> None:
        """Adds the callbacks."""
        dash.callback(
            Output("studies", "children"),
            Output("studies-seen", "data"),
            Input("studies-interval", "n_intervals"),
            Input("changed", "data"),
            State("studies-seen", "data"),
            prevent_initial_call=True,
        )(self.rows)
        self._register_buttons(dash, Output("changed", "data", allow_duplicate=True))

    def rows(self, n: int | None, _: Any, seen: str | None) -> tuple[Any, Any]:
        """The table, if it has changed."""
        try:
            lines, runners = self._watch.lines(), self._watch.runners()
        except StudiesError as error:
            return alert(complaint(error)), None
        content = self._content(lines, runners)
        # Unchanged rows keep the keyboard focus.
        now = sha256(repr(content).encode()).hexdigest()
        return (no_update, no_update) if now == seen else (content, now)

    def _content(self, lines: Sequence[Line], runners: Sequence[RunnerRecord]) -> Any:
        if not lines:
            first: list[Any] = ["There is none yet. "]
            first += [dcc.Link("Create the first one", href="/new"), "."] if self._is_editor() else []
            return nothing("No studies", first)
        idle = sum(runner.study is None for runner in runners)
        words = f"{len(runners)} runner{'s' * (len(runners) != 1)}, {idle} idle" if runners else "No runner is running"
        table = html.Table(
            [
                html.Thead(html.Tr([html.Th(heading, scope="col") for heading in _HEADINGS])),
                html.Tbody([self._row(line) for line in lines]),
            ],
            className="studies",
        )
        waiting = not runners and any(line.state is RunState.QUEUED for line in lines)
        hint = ": studies wait until one is started with `ftp-search runner`." if waiting else "."
        return [html.Div(table, className="scroll"), html.P(words + hint, className="soft")]

    def _row(self, line: Line) -> html.Tr:
        summary, speed = line.summary, line.figures.get("trials_per_s")
        runs = line.state in (RunState.RUNNING, RunState.STOPPING)
        cells: list[Any] = [
            [
                dcc.Link(summary.name, href=study_address(summary.name), className="name"),
                html.Small(f"{summary.model} on {summary.data}"),
            ],
            [badge(line.state), *([html.Small(line.stage)] if line.stage else []), *_error(line)],
            _progress(line),
            f"{speed:.3g}" if runs and speed is not None else "–",
            _best(line),
            _runner(line),
            html.Div(self._buttons(summary.name, line.state), className="acts"),
        ]
        return html.Tr(
            [html.Td(cell, **attributes(data_label=heading)) for heading, cell in zip(_HEADINGS, cells, strict=True)]
        )


def _error(line: Line) -> list[html.Small]:
    error = None if line.submission is None else line.submission.error
    return [html.Small(error, className="error")] if error and line.state is RunState.FAILED else []


def _progress(line: Line) -> Any:
    n = line.summary.n_trials
    words = f"{n} trials" if line.wanted is None else f"{n} trials, {line.wanted} in the first search"
    share = 1.0 if line.state is RunState.FINISHED else min(1.0, n / line.wanted) if line.wanted else 0.0
    bar = html.Progress(value=str(round(share, 3)), max="1", **attributes(aria_label=words))
    return [bar, html.Small(words)]


def _best(line: Line) -> Any:
    if line.best is None or len(line.best) < 2:
        return "–"
    return [f"KL {line.best[0]:.4g}", html.Small(objective(line.cost).text(line.best[1]))]


def _runner(line: Line) -> Any:
    submission = line.submission
    if submission is None or submission.holder is None or not submission.holder.alive:
        by = None if submission is None else submission.submitted_by
        return ["–", *([html.Small(f"submitted by {by}")] if by else [])]
    holder = submission.holder
    return [holder.host.split("/")[0], html.Small(f"process {holder.pid}")]
