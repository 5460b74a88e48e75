"""The page of all studies: their state, and buttons to manage them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from hashlib import sha256
from typing import Any
from urllib.parse import urlencode

from dash import ClientsideFunction, Dash, Input, Output, State, dcc, html, no_update

from dashboards.app.actions import Actions
from dashboards.app.addresses import NAMESPACE, NOTHING_ASKED, Asked, Kept, keep, register_kept
from dashboards.app.data_source import MOST_STUDIES, Line, Watch
from dashboards.app.listing import GROUPED, ORDERS, ROWS, Group, Listed, Wanted, listed, submitter
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
    tag_links,
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
    Kept("tag", "list-tag"),
    Kept("seeds", "list-seeds", prop="data"),
    Kept("rows", "list-rows", GROUPED, tuple(ROWS)),
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
        wanted = Wanted(*(one.of(asked) for one in _KEPT))
        shown, sweeps, tags, seen, words, is_first, is_last = self._news(wanted, None)
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
                                    wanted.typed,
                                    id="list-search",
                                    type="search",
                                    debounce=_TYPED_S,
                                    placeholder="name, model, tag, note",
                                    maxLength=_LONGEST,
                                    autoComplete="off",
                                ),
                            ],
                            className="search",
                        ),
                        choice("state", "list-state", wanted.state or "", _STATES),
                        choice(
                            "order",
                            "list-order",
                            wanted.order or "",
                            {key: words for key, (words, _) in ORDERS.items()},
                        ),
                        _filter("sweep", sweeps, wanted.sweep),
                        _filter("tag", tags, wanted.tag),
                        choice("rows", "list-rows", wanted.rows or "", ROWS),
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
                dcc.Store(id="list-page", data=wanted.page),
                dcc.Store(id="list-seeds", data=wanted.seeds),
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
            Output("list-tag", "options"),
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
        tag: str | None,
        seeds: str | None,
        rows: str | None,
        seen: str | None,
    ) -> tuple[Any, Any, Any, Any, str, bool, bool]:
        """See `_news`."""
        return self._news(Wanted(typed, state, order, page, sweep, tag, seeds, rows), seen)

    def _news(self, wanted: Wanted, seen: str | None) -> tuple[Any, Any, Any, Any, str, bool, bool]:
        """The table, the sweeps, the tags and what is seen, if changed, how much is shown, and which ends it shows."""
        try:
            lines, runners = self._watch.lines(), self._watch.runners()
        except StudiesError as error:
            return alert(complaint(error)), no_update, no_update, None, "", True, True
        shown = listed(lines, wanted)
        content = self._content(shown, runners, wanted)
        labels = [line.summary.labels for line in lines]
        # What an address asks for is shown, whether there is one or not.
        sweeps = sorted({*(one.sweep for one in labels if one.sweep), *([wanted.sweep] if wanted.sweep else [])})
        tags = sorted({*(tag for one in labels for tag in one.tags), *([wanted.tag] if wanted.tag else [])})
        # Unchanged rows keep the keyboard focus.
        now = sha256(repr((content, sweeps, tags)).encode()).hexdigest()
        parts = (no_update,) * 4 if now == seen else (content, sweeps, tags, now)
        return *parts, shown.words, shown.pages.is_first, shown.pages.is_last

    def _content(self, shown: Listed, runners: Sequence[RunnerRecord], wanted: Wanted) -> Any:
        if not shown.n_all:
            first: list[Any] = ["There is none yet. "]
            first += [dcc.Link("Create the first one", href="/new"), "."] if self._is_editor() else []
            return nothing("No studies", first)
        lines = [line for one in shown.rows for line in (one.lines if isinstance(one, Group) else [one])]
        within = _within(wanted, lines)
        if not shown.rows:
            return [*within, nothing("No such studies", "None matches what is searched and chosen.")]
        idle = sum(runner.study is None for runner in runners)
        words = f"{len(runners)} runner{'s' * (len(runners) != 1)}, {idle} idle" if runners else "No runner is running"
        table = html.Table(
            [
                html.Thead(html.Tr([html.Th(heading, scope="col") for heading in self._headings()])),
                html.Tbody([self._row(one, wanted) for one in shown.rows]),
            ],
            className="studies",
        )
        waits = not runners and any(line.state is RunState.QUEUED for line in lines)
        alone = [html.P(NO_RUNNER, className="alert", role="status")] if waits else []
        return [*within, *alone, html.Div(table, className="scroll"), html.P(f"{words}.", className="soft")]

    def _headings(self) -> tuple[str, ...]:
        return ("choose", *_HEADINGS) if self._is_editor() else _HEADINGS

    def _row(self, line: Line | Group, wanted: Wanted) -> html.Tr:
        if isinstance(line, Group):
            return self._group(line, wanted)
        summary, speed = line.summary, line.figures.get("trials_per_s")
        by, name, has_note = submitter(line), summary.name, bool(summary.labels.note)
        cells: list[Any] = [
            *([self._chosen.box(name)] if self._is_editor() else []),
            [
                dcc.Link(summary.name, href=study_address(summary.name), className="name"),
                html.Small(f"{summary.model} on {summary.data}"),
                *_of_sweep(None if wanted.sweep else summary.labels.sweep),
                *tag_links(summary.labels.tags),
                *([html.Small(summary.labels.note, title=summary.labels.note, className="note")] * has_note),
            ],
            [badge(line.state), *_place(line), *_error(line)],
            _progress(line),
            f"{speed:.3g}" if _runs(line) and speed is not None else "–",
            _best(line),
            _runner(line),
            [moment(summary.created_at), *([html.Small(f"submitted by {by}")] if by else [])],
            moment(line.changed_at),
            html.Div([*self._buttons(name, line.state), *self._clone(name)], className="acts"),
        ]
        return self._drawn(cells)

    def _group(self, group: Group, wanted: Wanted) -> html.Tr:
        """Studies in one row, from which one comes to each of them."""
        lines = group.lines
        works = {(line.summary.model, line.summary.data) for line in lines}
        speeds = [line.figures["trials_per_s"] for line in lines if _runs(line) and "trials_per_s" in line.figures]
        kls = [line.best[0] for line in lines if line.best is not None]
        seeds = f": seeds {_some(group.seeds)}" if group.differs_by_seed else ""
        n_trials = sum(line.summary.n_trials for line in lines)
        cells: list[Any] = [
            *([""] if self._is_editor() else []),
            [
                dcc.Link(group.title, href=_address(wanted, group), className="name"),
                html.Small(f"{'sweep of ' if group.kind == 'sweep' else ''}{len(lines)} studies{seeds}"),
                html.Small(" on ".join(works.pop()) if len(works) == 1 else f"{len(works)} models and data sets"),
                *tag_links(group.tags),
            ],
            html.Div([badge(state, n) for state, n in group.states], className="states"),
            html.Small(f"{n_trials} trials"),
            f"{sum(speeds):.3g}" if speeds else "–",
            f"KL {_span(kls)}" if kls else "–",
            "–",
            moment(min(line.summary.created_at for line in lines)),
            moment(max(line.changed_at for line in lines)),
            html.Div(_compare(lines), className="acts"),
        ]
        return self._drawn(cells, "group")

    def _drawn(self, cells: Sequence[Any], kind: str = "") -> html.Tr:
        return html.Tr(
            [
                html.Td(cell, **attributes(data_label=heading))
                for heading, cell in zip(self._headings(), cells, strict=True)
            ],
            className=kind,
        )

    def _clone(self, name: str) -> list[dcc.Link]:
        words: list[Any] = ["Clone", html.Span(f" {name}", className="unseen")]
        link = dcc.Link(words, href=f"/new?{urlencode({'like': name})}", className="quiet")
        return [link] if self._is_editor() else []


def _filter(of: str, known: Sequence[str], chosen: str | None) -> html.Label:
    return html.Label([html.Span(of), dcc.Dropdown(known, chosen or None, id=f"list-{of}", placeholder="any")])


def _runs(line: Line) -> bool:
    return line.state in (RunState.RUNNING, RunState.STOPPING)


def _within(wanted: Wanted, lines: Sequence[Line]) -> list[Any]:
    """A note on the sweep, or the seeds, that alone are shown, and the way out."""
    of = [f"sweep {wanted.sweep}"] if wanted.sweep else []
    of = [f"studies equal to {wanted.seeds} but for the seed", *of] if wanted.seeds else of
    if not of:
        return []
    words = html.Span(f"Shown: {', of '.join(of)}.")
    all_studies = dcc.Link("Show all studies", href="/")
    return [html.Div([words, all_studies, *(_compare(lines) if len(lines) > 1 else [])], className="acts")]


def _address(wanted: Wanted, group: Group) -> str:
    """The address at which a group is shown alone, with what else is asked for."""
    kept = {"q": wanted.typed, "state": wanted.state, "tag": wanted.tag, "sweep": wanted.sweep}
    kept |= {group.kind: group.title}
    return f"/?{urlencode({key: value for key, value in kept.items() if value})}"


def _compare(lines: Sequence[Line]) -> list[dcc.Link]:
    shown = [line.summary.name for line in lines[:MOST_STUDIES]]
    words = "Compare these" if len(shown) == len(lines) else f"Compare the first {len(shown)}"
    href = f"/compare?{urlencode([('study', name) for name in shown])}"
    return [dcc.Link(words, href=href, className="quiet")]


def _span(values: Sequence[float]) -> str:
    low, high = f"{min(values):.4g}", f"{max(values):.4g}"
    return low if low == high else f"{low} to {high}"


def _some(values: Sequence[Any]) -> str:
    """Values with commas; of many the first few."""
    return ", ".join(map(str, values[:8])) + (", …" if len(values) > 8 else "")


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
