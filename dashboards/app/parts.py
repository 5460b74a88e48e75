"""Pieces that pages share: addresses, badges, messages, tables, figures."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from datetime import datetime
from hashlib import sha256
from typing import Any
from urllib.parse import quote, urlencode

import plotly.graph_objects as go
from dash import dcc, html

from dashboards.analysis.axes import OFFERED, Axis
from dashboards.analysis.tables import Table
from dashboards.figures.appearance import INK, PLOT_CONFIG, darkened
from studies import StorageError, StudiesError, StudyNotFoundError
from studies.service.submissions import RunState
from studies.sql.times import local_text

# Words of the page's look, which the browser knows.
DARK, NARROW = "dark", "narrow"
_BUTTONS = ["toImage", "zoom2d", "pan2d", "resetScale2d"]
_PLOT_CONFIG: Any = PLOT_CONFIG | {"modeBarButtons": [_BUTTONS], "toImageButtonOptions": {"scale": 2}}
# Four lines; the legend scrolls beyond.
_MOST_LEGEND_PX = 96
_STATE_WORDS = {RunState.CREATED: "created", RunState.QUEUED: "waits for a runner"}
_STATE_SIGNS = {
    RunState.CREATED: "○",
    RunState.QUEUED: "◔",
    RunState.RUNNING: "▶",
    RunState.STOPPING: "◼",
    RunState.STOPPED: "◼",
    RunState.FAILED: "✕",
    RunState.FINISHED: "✓",
}


def moment(at: datetime) -> html.Time:
    """A time, which browsers show on their own clock."""
    return html.Time(local_text(at), dateTime=at.isoformat())


def attributes(**said: str) -> dict[str, Any]:
    """Attributes whose names have hyphens, for which underscores stand: `aria_label`, `data_label`."""
    return {name.replace("_", "-"): value for name, value in said.items()}


def study_address(name: str) -> str:
    """The address of a study's page."""
    return f"/study/{quote(name, safe='')}"


def badge(state: RunState, n: int | None = None) -> html.Span:
    """The state of a study, or of several: a sign, a colour and a word, since not everybody sees all three."""
    words = _STATE_WORDS.get(state, state.value) if n is None else f"{n} {state.value}"
    sign = html.Span(_STATE_SIGNS[state], **attributes(aria_hidden="true"))
    return html.Span([sign, f" {words}"], className=f"badge {state.value}")


def tag_links(tags: Sequence[str]) -> list[html.Div]:
    """Tags, each of which leads to the studies that have it."""
    links = [dcc.Link(tag, href=f"/?{urlencode({'tag': tag})}", className="tag") for tag in tags]
    return [html.Div(links, className="tags")] if links else []


def alert(text: str) -> html.Div:
    """A message about something that went wrong."""
    return html.Div(text, className="alert", role="alert")


def nothing(title: str, text: Any) -> html.Div:
    """A note where there is nothing to show, with the reason."""
    return html.Div([html.H2(title), html.P(text)], className="nothing")


def complaint(error: StudiesError) -> str:
    """An error of the database in words for a page; its own text would name the address."""
    if isinstance(error, StudyNotFoundError):
        return "There is no such study: it may have been deleted."
    if isinstance(error, StorageError):
        return "The database does not answer at the moment. This page tries again by itself."
    return str(error)


def in_theme(figure: go.Figure, theme: str | None) -> go.Figure:
    """A figure for the page as it looks: `theme` has the words "light" or "dark", and "narrow" on a phone."""
    # Plotly keeps what somebody chose in the legend for the trace of the same identity: by itself, of the same place.
    known: Counter[str] = Counter()
    for trace in figure.data:
        known[trace.name] += 1
        # Which selectors of Plotly's contain.
        trace.uid = sha256(f"{trace.name} {known[trace.name]}".encode()).hexdigest()[:12]
    words = (theme or "").split()
    figure = darkened(figure) if DARK in words else figure
    return narrowed(figure) if NARROW in words else figure


def narrowed(figure: go.Figure) -> go.Figure:
    """The same figure with a small legend of short names, which scrolls if it is long: the plot needs the height."""
    narrow = go.Figure(figure)
    for trace in narrow.data:
        # The longest name sets the width of all columns. Marks and hover labels tell the two kinds apart.
        trace.name = trace.name and trace.name.removeprefix("by ").removesuffix(", measured")
    narrow.update_layout(margin={"l": 48, "r": 8})
    return narrow.update_layout(legend={"xref": "container", "font_size": 10, "maxheight": _MOST_LEGEND_PX})


def graph(name: str, label: str, *, wide: bool = False, height: int | None = None) -> html.Div:
    """A figure's place, which says that it is loading until it is there.

    Args:
        name: Its id.
        label: Description of the figure.
        wide: Lets it scroll on narrow pages.
        height: Height of the figure in pixels; None where the page sets it together with the figure.
    """
    return _plot(label, wide, height, id=name)


def drawn(figure: go.Figure, label: str, *, wide: bool = False) -> html.Div:
    """A figure that is there already."""
    return _plot(label, wide, figure.layout.height, figure=figure)


def _plot(label: str, wide: bool, height: int | None, **of_graph: Any) -> html.Div:
    # Plotly takes the height of a figure's place for the figure's own when a page changes its width.
    style = {} if height is None else {"height": f"{height}px"}
    return html.Div(
        dcc.Graph(config=_PLOT_CONFIG, className="figure", style=style, **of_graph),
        className="plot wide" if wide else "plot",
        role="group",
        **attributes(aria_label=f"Figure: {label}"),
    )


def axis_choices(*choices: tuple[str, str, str]) -> list[html.Label]:
    """Lists to choose quantities from, each with its words, its id, and the name of the one that is chosen first."""
    options = [{"label": Axis(one).title, "value": one} for one in OFFERED]
    return [
        html.Label([html.Span(words), dcc.Dropdown(options, value, id=place, clearable=False, searchable=False)])
        for words, place, value in choices
    ]


def choice(words: str, place: str, value: str, choices: Mapping[str, str]) -> html.Label:
    """A list to choose one of, with its words, its id, the value at first, and words by value."""
    options: Any = [{"label": label, "value": key} for key, label in choices.items()]
    return html.Label([html.Span(words), dcc.Dropdown(options, value, id=place, clearable=False, searchable=False)])


def page_buttons(of: str, is_first: bool, is_last: bool) -> list[html.Button]:
    """The buttons that turn the pages of a list; `of` begins their ids.

    Args:
        of: Beginning of the ids.
        is_first: True if there is no page before.
        is_last: True if there is no page after.
    """
    return [
        html.Button(
            sign, id=f"{of}-{place}", className="quiet", type="button", disabled=is_end, **attributes(aria_label=words)
        )
        for sign, place, words, is_end in (
            ("←", "before", "Previous page", is_first),
            ("→", "after", "Next page", is_last),
        )
    ]


def read_table(title: str, table: Table, label: str) -> list[Any]:
    """A table under its title, with what to know before reading it."""
    return [html.H2(title), html.P(table.reading, className="soft"), _shown(table, label)]


def _shown(table: Table, label: str) -> html.Div:
    headings = [
        html.Th([column.title, *([html.Small(f"[{column.unit}]")] if column.unit else [])], scope="col")
        for column in table.columns
    ]
    rows = []
    for row in table.rows:
        cells = []
        for place, cell in enumerate(row.cells):
            colour = "var(--ink)" if row.colour == INK else row.colour
            dot = [html.Span(className="dot", style={"background": colour})] if row.colour and not place else []
            detail = [html.Small(cell.detail)] if cell.detail else []
            cells.append(html.Td([*dot, cell.text, *detail], className=cell.tone))
        rows.append(html.Tr(cells, className="chosen" if row.marked else ""))
    body = html.Table([html.Thead(html.Tr(headings)), html.Tbody(rows)])
    return html.Div(body, className="scroll", role="region", tabIndex=0, **attributes(aria_label=label))


def terms(pairs: Sequence[tuple[str, Any]]) -> html.Dl:
    """Names with what holds for each."""
    return html.Dl([part for name, value in pairs for part in (html.Dt(name), html.Dd(value))], className="terms")
