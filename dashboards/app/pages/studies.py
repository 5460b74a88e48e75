"""The page of all studies: their state, and buttons to manage them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from hashlib import sha256
from typing import Any
from urllib.parse import urlencode

from dash import ClientsideFunction, Dash, Input, Output, State, dcc, html, no_update

from dashboards.app.actions import Actions
from dashboards.app.addresses import NAMESPACE, NOTHING_ASKED, Asked, Kept, keep, register_kept
from dashboards.app.data_source import Line, Watch
from dashboards.app.listing import ORDERS, Listed, listed, submitter, sweeps
from dashboards.app.pages.chosen import ChosenStudies
from dashboards.app.pages.manage import ManagingPage
from dashboards.app.parts import (
    alert,
    attributes,
    badge,
    choice,
    complaint,
    moment,
    nothing,
    page_buttons,
    study_address,
)
from dashboards.app.run_progress import NO_RUNNER, bar, elapsed
from studies import StudiesError
from studies.records.objectives import objective
from studies.service.runners import RunnerRecord
from studies.service.submissions import RunState

_EVERY_MS = 2000
_WORDS = {RunState.QUEUED: "waits for a runner"}
# How long nothing is typed until the list is searched.
_TYPED_S = 0.3
_LONGEST = 200
_STATES = {"": "any", **{one.value: _WORDS.get(one, one.value) for one in RunState}}
_KEPT = (
    Kept("q", "list-search", is_typed=True),
    Kept("state", "list-state", choices=tuple(_STATES)),
    Kept("order", "list-order", "newest", tuple(ORDERS)),
    Kept("page", "list-page", "1", prop="data"),
    Kept("sweep", "list-sweep"),
)
_PAGE = _KEPT[3]
_HEADINGS = ("study", "state", "progress", "trials/s", "best point", "run by", "created", "last changed", "")


class StudiesPage(ManagingPage):
    """All studies."""

    def __init__(self, watch: Watch, actions: Actions, is_editor: Callable[[], bool]) -> None:
        super().__init__(watch, actions, is_editor)
        self._chosen = ChosenStudies(watch, self.done)

    def layout(self, _: str, asked: Asked = NOTHING_ASKED) -> Any:
        """The page."""
        typed, state, order, page, sweep = (one.of(asked) for one in _KEPT)
        shown, known, seen, words, is_first, is_last = self.rows(0, None, typed, state, order, page, sweep, None)
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
                html.Div(
                    [
                        html.Label(
                            [
                                html.Span("search"),
                                dcc.Input(
                                    typed,
                                    id="list-search",
                                    type="search",
                                    debounce=_TYPED_S,
                                    placeholder="name, model, data",
                                    maxLength=_LONGEST,
                                    autoComplete="off",
                                ),
                            ],
                            className="search",
                        ),
                        choice("state", "list-state", state, _STATES),
                        choice("order", "list-order", order, {key: words for key, (words, _) in ORDERS.items()}),
                        html.Label(
                            [html.Span("sweep"), dcc.Dropdown(known, sweep or None, id="list-sweep", placeholder="any")]
                        ),
                    ],
                    className="bar",
                ),
                *([html.Div(self._chosen.buttons(), className="acts")] if self._is_editor() else []),
                html.Div(shown, id="studies"),
                html.Div(
                    [
                        html.Span(words, id="list-count", role="status", className="soft"),
                        *page_buttons("list", is_first, is_last),
                    ],
                    className="acts",
                ),
                dcc.Store(id="studies-seen", data=seen),
                dcc.Store(id="list-page", data=page),
                keep("list", _KEPT),
                *self._controls(),
                dcc.Interval(id="studies-interval", interval=_EVERY_MS),
            ]
        )

    def register(self, dash: Dash) -> None:
        """Adds the callbacks."""
        dash.callback(
            Output("studies", "children"),
            Output("list-sweep", "options"),
            Output("studies-seen", "data"),
            Output("list-count", "children"),
            Output("list-before", "disabled"),
            Output("list-after", "disabled"),
            Input("studies-interval", "n_intervals"),
            Input("changed", "data"),
            *(Input(one.component, one.prop) for one in _KEPT),
            State("studies-seen", "data"),
            prevent_initial_call=True,
        )(self.rows)
        dash.clientside_callback(
            ClientsideFunction(NAMESPACE, "turnPage"),
            Output("list-page", "data"),
            Input("list-before", "n_clicks"),
            Input("list-after", "n_clicks"),
            *(Input(one.component, one.prop) for one in _KEPT if one is not _PAGE),
            State("list-page", "data"),
            prevent_initial_call=True,
        )
        register_kept(dash, "list", [(one.component, one.prop) for one in _KEPT])
        self._register_buttons(dash, Output("changed", "data", allow_duplicate=True))
        self._chosen.register(dash)

    def rows(
        self,
        _: int | None,
        __: Any,
        typed: str | None,
        state: str | None,
        order: str | None,
        page: str | None,
        sweep: str | None,
        seen: str | None,
    ) -> tuple[Any, Any, Any, str, bool, bool]:
        """The table and the sweeps, if changed, what is shown of how many, and whether it is the first and the last."""
        try:
            lines, runners = self._watch.lines(), self._watch.runners()
        except StudiesError as error:
            return alert(complaint(error)), no_update, None, "", True, True
        of_sweeps = sweeps(lines)
        shown = listed(lines, typed, state, order, page, sweep)
        content = self._content(shown, runners, of_sweeps)
        # One that an address asks for is shown, whether there is one or not.
        known = sorted({*of_sweeps.values(), *([sweep] if sweep else [])})
        # Unchanged rows keep the keyboard focus.
        now = sha256(repr((content, known)).encode()).hexdigest()
        table = (no_update, no_update, no_update) if now == seen else (content, known, now)
        return *table, shown.words, shown.pages.is_first, shown.pages.is_last

    def _content(self, shown: Listed, runners: Sequence[RunnerRecord], of_sweeps: Mapping[str, str]) -> Any:
        if not shown.n_all:
            first: list[Any] = ["There is none yet. "]
            first += [dcc.Link("Create the first one", href="/new"), "."] if self._is_editor() else []
            return nothing("No studies", first)
        if not shown.lines:
            return nothing("No such studies", "None matches the search, the state and the sweep.")
        idle = sum(runner.study is None for runner in runners)
        words = f"{len(runners)} runner{'s' * (len(runners) != 1)}, {idle} idle" if runners else "No runner is running"
        table = html.Table(
            [
                html.Thead(html.Tr([html.Th(heading, scope="col") for heading in self._headings()])),
                html.Tbody([self._row(line, of_sweeps.get(line.summary.name)) for line in shown.lines]),
            ],
            className="studies",
        )
        waits = not runners and any(line.state is RunState.QUEUED for line in shown.lines)
        alone = [html.P(NO_RUNNER, className="alert", role="status")] if waits else []
        return [*alone, html.Div(table, className="scroll"), html.P(f"{words}.", className="soft")]

    def _headings(self) -> tuple[str, ...]:
        return ("choose", *_HEADINGS) if self._is_editor() else _HEADINGS

    def _row(self, line: Line, sweep: str | None) -> html.Tr:
        summary, speed = line.summary, line.figures.get("trials_per_s")
        runs = line.state in (RunState.RUNNING, RunState.STOPPING)
        by, name = submitter(line), summary.name
        cells: list[Any] = [
            *([self._chosen.box(name)] if self._is_editor() else []),
            [
                dcc.Link(summary.name, href=study_address(summary.name), className="name"),
                html.Small(f"{summary.model} on {summary.data}"),
                *_of_sweep(sweep),
            ],
            [badge(line.state), *_place(line), *_error(line)],
            _progress(line),
            f"{speed:.3g}" if runs and speed is not None else "–",
            _best(line),
            _runner(line),
            [moment(summary.created_at), *([html.Small(f"submitted by {by}")] if by else [])],
            moment(line.changed_at),
            html.Div([*self._buttons(name, line.state), *self._clone(name)], className="acts"),
        ]
        return html.Tr(
            [
                html.Td(cell, **attributes(data_label=heading))
                for heading, cell in zip(self._headings(), cells, strict=True)
            ]
        )

    def _clone(self, name: str) -> list[dcc.Link]:
        words: list[Any] = ["Clone", html.Span(f" {name}", className="unseen")]
        link = dcc.Link(words, href=f"/new?{urlencode({'like': name})}", className="quiet")
        return [link] if self._is_editor() else []


def _of_sweep(sweep: str | None) -> list[html.Small]:
    if sweep is None:
        return []
    return [html.Small(["of ", dcc.Link(f"sweep {sweep}", href=f"/?{urlencode({'sweep': sweep})}")])]


def _error(line: Line) -> list[html.Small]:
    error = None if line.submission is None else line.submission.error
    return [html.Small(error, className="error")] if error and line.state is RunState.FAILED else []


def _place(line: Line) -> list[html.Small]:
    now = line.progress
    if now.queue:
        return [html.Small(now.queue)]
    return [html.Small([now.place, *elapsed(now)])] if now.place else []


def _progress(line: Line) -> Any:
    now = line.progress
    if now.counts:
        said = [html.Small(now.line, title=now.line, className="line")] if now.line else []
        return [bar(now), html.Small(now.counts), *said]
    n = line.summary.n_trials
    words = f"{n} trials" if line.wanted is None else f"{n} trials, {line.wanted} in the first search"
    share = 1.0 if line.state is RunState.FINISHED else min(1.0, n / line.wanted) if line.wanted else 0.0
    whole = html.Progress(value=str(round(share, 3)), max="1", **attributes(aria_label=words))
    said = [html.Small(now.line, title=now.line, className="line")] if now.line else []
    return [whole, html.Small(words), *said]


def _best(line: Line) -> Any:
    if line.best is None or len(line.best) < 2:
        return "–"
    return [f"KL {line.best[0]:.4g}", html.Small(objective(line.cost).text(line.best[1]))]


def _runner(line: Line) -> Any:
    submission = line.submission
    if submission is None or submission.holder is None or not submission.holder.alive:
        return "–"
    holder = submission.holder
    return [holder.host.split("/")[0], html.Small(f"process {holder.pid}")]
