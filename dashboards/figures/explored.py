"""Figures to look around in: trials against quantities that are chosen, with the front and what was measured."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import plotly.graph_objects as go

from dashboards.analysis.axes import Axis, Floats
from dashboards.analysis.records import NAMED_VARIANTS, measured_cost, row_title
from dashboards.analysis.trials import Found, Places
from dashboards.figures.appearance import (
    INK,
    INKED,
    VARIANT_COLOURS,
    VARIANT_SYMBOLS,
    empty_figure,
    log_axis,
    log_floor,
    plain_text,
    proposer_colour,
    styled,
)
from dashboards.figures.marks import hover, made_from
from studies import Measurement

# The height of figures of fronts.
EXPLORED_PX = 560
# The ring of what is selected is always the first trace, so that a page can move it alone.
RING = 0
_FRONT_COLOUR = VARIANT_COLOURS["static"]
# Studies on one plot: Okabe and Ito's palette, with another mark for each.
STUDY_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#882255", "#999933")
_STUDY_SYMBOLS = ("circle", "square", "diamond", "triangle-up", "triangle-down", "cross", "x", "star")
_MOST_LINES = 400
# From so many points on, WebGL draws faster than SVG; browsers have few contexts of it to give.
_MANY = 1000


def explored_figure(
    found: Found,
    x: str,
    y: str,
    measurements: Sequence[Measurement] = (),
    selected: int | None = None,
    x_range: tuple[float, float] | None = None,
    y_range: tuple[float, float] | None = None,
    webgl: bool = True,
) -> go.Figure:
    """Trials against two quantities: those that another beats are faint, a staircase joins the others.

    Of points that would cover each other one is drawn. Points carry their trial's number as custom data.

    Args:
        found: The trials.
        x: Name of the quantity across.
        y: Name of the quantity upwards.
        measurements: Measured on test items: drawn over the trials where they know both quantities.
        selected: Number of the trial to ring.
        x_range: What is looked at, as it is stored: points are chosen anew for it; None for everything.
        y_range: The same upwards.
        webgl: Whether the browser has WebGL, which draws many points faster.
    """
    across, upwards = Axis(x), Axis(y)
    title = f"{_capital(upwards.title)} against {across.title}"
    if not len(found.drawable(x, y)):
        n_aside = len(found.columns.left_aside)
        if n_aside and not len(found):
            return empty_figure(title, f"No trial has finished yet, but for {n_aside} that other programs added.")
        return empty_figure(title, "No trial has finished yet." if not len(found) else "No trial knows both of these.")
    columns, front = found.columns, found.front(x, y)
    floor = _floor(found, y)
    places = found.representatives(x, y, x_range, y_range, floor)
    beaten = np.setdiff1d(places, front)
    figure = go.Figure(_ring(found, x, y, selected, floor))
    for number, proposer in enumerate(columns.proposers):
        own = beaten[columns.proposer[beaten] == number]
        if len(own):
            figure.add_trace(
                (go.Scattergl if webgl and len(beaten) > _MANY else go.Scatter)(
                    **_points(found, own, across, upwards, floor),
                    mode="markers",
                    name=f"by {plain_text(proposer)}",
                    marker={"color": proposer_colour(proposer), "size": 5, "opacity": 0.35},
                    customdata=columns.number[own].tolist(),
                    hovertemplate=_template(across, upwards, plain_text(proposer)),
                )
            )
    figure.add_scatter(
        **_points(found, front, across, upwards, floor),
        mode="lines+markers",
        name="front",
        line={"color": _FRONT_COLOUR, "width": 1.5, "shape": "hv" if not across.higher_is_better else "vh"},
        marker={"color": _FRONT_COLOUR, "size": 8},
        customdata=columns.number[front].tolist(),
        text=[made_from(columns.parents_of(int(place))) for place in front],
        hovertemplate=_template(across, upwards, "on the front%{text}"),
    )
    _add_measured(figure, found, measurements, across, upwards, floor)
    _set_axes(figure, found, across, upwards, floor, [m.kl for m in measurements if m.variant in NAMED_VARIANTS])
    # A page that draws itself anew while somebody looks at a part of it goes on showing that part.
    if x_range is not None:
        figure.update_xaxes(range=across.shown(np.array(x_range)).tolist(), autorange=False)
    if y_range is not None:
        ends = upwards.shown(np.array(y_range))
        ends = ends if floor is None else np.log10(np.maximum(ends, 1e-12))
        figure.update_yaxes(range=ends.tolist(), autorange=False)
    drawable = len(found.drawable(x, y))
    subtitle = f"{_spaced(drawable)} comparable trials, {len(front)} on the front<br>{_better(across, upwards)}"
    n_aside = len(columns.left_aside)
    subtitle += f"<br>left aside: {_spaced(n_aside)} that other programs added" if n_aside else ""
    n_drawn = len(np.union1d(places, front))
    if n_drawn < drawable:
        subtitle += f"<br>drawn: {_spaced(n_drawn)}, one where several would cover each other"
    return styled(figure, title, subtitle, height=EXPLORED_PX).update_layout(
        hovermode="closest", margin_b=110, uirevision=f"{x} {y}"
    )


def ring_position(found: Found, x: str, y: str, selected: int | None) -> tuple[list[float], list[float]]:
    """Where the ring of a selected trial lies; nowhere if none is, or if it knows not both quantities."""
    ring = _ring(found, x, y, selected, _floor(found, y))
    return list(ring.x), list(ring.y)


def compared_figure(studies: Mapping[str, Found], x: str, y: str) -> go.Figure:
    """The fronts of several studies against two quantities.

    Args:
        studies: The trials of each study, by name.
        x: Name of the quantity across.
        y: Name of the quantity upwards.
    """
    across, upwards = Axis(x), Axis(y)
    title = f"{_capital(upwards.title)} against {across.title}"
    known = {name: found for name, found in studies.items() if len(found.drawable(x, y))}
    if not known:
        return empty_figure(title, "Choose studies whose trials know both of these.")
    floor = log_floor(value for found in known.values() for value in _front_values(found, x, y).tolist())
    floor = floor if y == "kl" else None
    figure = go.Figure()
    for place, (name, found) in enumerate(known.items()):
        front = found.front(x, y)
        colour = STUDY_COLOURS[place % len(STUDY_COLOURS)]
        figure.add_scatter(
            **_points(found, front, across, upwards, floor),
            mode="lines+markers",
            name=plain_text(name),
            line={"color": colour, "width": 1.5, "shape": "hv" if not across.higher_is_better else "vh"},
            marker={"color": colour, "size": 8, "symbol": _STUDY_SYMBOLS[place % len(_STUDY_SYMBOLS)]},
            customdata=found.columns.number[front].tolist(),
            hovertemplate=_template(across, upwards, plain_text(name)),
        )
    figure.update_xaxes(title=across.heading, **_form(across))
    figure.update_yaxes(title=upwards.heading, **_form(upwards))
    if floor is not None:
        top = max(float(_front_values(found, x, y).max()) for found in known.values())
        figure.update_yaxes(**log_axis(floor, top))
    missing = len(studies) - len(known)
    subtitle = f"Each front is of what its study searched on<br>{_better(across, upwards)}"
    subtitle += f"<br>left out, since no trial knows both: {missing}" if missing else ""
    return styled(figure, title, subtitle, height=EXPLORED_PX).update_layout(
        hovermode="closest", margin_b=110, uirevision=f"{x} {y}"
    )


def parallel_figure(found: Found, cost: str) -> go.Figure:
    """A line for each trial through its blocks' shares, its cost and its KL: the front, and some of the others.

    Args:
        found: The trials.
        cost: Name of the cost.
    """
    title = "Schedules, block by block"
    places = found.drawable(cost, "kl")
    if not len(places):
        return empty_figure(title, "No trial has finished yet.")
    front = found.front("kl", cost)
    others = np.setdiff1d(places, front)
    stride = max(1, -(-len(others) // max(1, _MOST_LINES - len(front))))
    shown = np.concatenate([others[::stride], front])
    on_front = np.concatenate([np.zeros(len(others[::stride])), np.ones(len(front))])
    log_kl = np.log10(np.maximum(found.values("kl")[shown], 1e-6))
    axis = Axis(cost)
    ticks = [value for value in range(-6, 3) if log_kl.min() - 1 < value < log_kl.max() + 1]
    dimensions: list[dict[str, Any]] = [
        {"label": str(block), "values": found.columns.schedule[shown, block].tolist(), "range": [0, 1]}
        for block in range(found.columns.n_blocks)
    ]
    dimensions += [
        {"label": axis.title, "values": axis.shown(found.values(cost)[shown]).tolist()},
        {
            "label": "KL",
            "values": log_kl.tolist(),
            "tickvals": ticks,
            "ticktext": [f"{10.0**tick:g}" for tick in ticks],
        },
    ]
    figure = go.Figure(
        go.Parcoords(
            dimensions=dimensions,
            line={"color": on_front.tolist(), "colorscale": [[0, "#c9c9c9"], [1, _FRONT_COLOUR]], "cmin": 0, "cmax": 1},
            labelfont={"size": 12},
            tickfont={"size": 10},
            rangefont={"size": 10},
        )
    )
    subtitle = f"Blue: {len(front)} trials of the front; grey: {len(shown) - len(front)} of the {len(others)} others"
    subtitle += "<br>drag along an axis to keep the lines that pass there"
    return styled(figure, title, subtitle, height=480).update_layout(
        margin={"l": 50, "r": 50, "b": 40, "t": 130}, uirevision="parallel"
    )


def _better(across: Axis, upwards: Axis) -> str:
    towards = ("up" if upwards.higher_is_better else "down", "right" if across.higher_is_better else "left")
    return f"better: {' and '.join(towards)}"


def _spaced(number: int) -> str:
    return f"{number:,}".replace(",", "\u202f")


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]


def _floor(found: Found, y: str) -> float | None:
    if y != "kl":
        return None
    values = found.values(y)[found.comparable]
    values = values[np.isfinite(values) & (values > 0)]
    if not len(values):
        return None
    # The least that counts and the most are all that it needs: no loop over a hundred thousand.
    counted = values[values >= 1e-4 * values.max()]
    return log_floor([float(counted.min()), float(counted.max())])


def _front_values(found: Found, x: str, y: str) -> Floats:
    return np.asarray(found.values(y)[found.front(x, y)])


def _points(found: Found, places: Places, across: Axis, upwards: Axis, floor: float | None) -> dict[str, Floats]:
    heights = upwards.shown(found.values(upwards.name)[places])
    if floor is not None:
        heights = np.maximum(heights, floor)
    return {"x": across.shown(found.values(across.name)[places]), "y": heights}


def _ring(found: Found, x: str, y: str, selected: int | None, floor: float | None) -> go.Scatter:
    place = None if selected is None else found.columns.place(selected)
    places = np.array([] if place is None else [place], dtype=np.intp)
    points = _points(found, places, Axis(x), Axis(y), floor)
    if not np.isfinite([*points["x"], *points["y"]]).all():
        points = {"x": np.empty(0), "y": np.empty(0)}
    return go.Scatter(
        **points,
        mode="markers",
        name="selected",
        marker={"symbol": "circle-open", "size": 18, "color": INK, "line": {"width": 2.5}},
        hoverinfo="skip",
        showlegend=False,
        meta=INKED,
    )


def _template(across: Axis, upwards: Axis, what: str) -> str:
    def value(axis: Axis, letter: str) -> str:
        return f"{axis.title} %{{{letter}:{'.1%' if axis.is_share else '.4g'}}}"

    return f"<b>trial %{{customdata}}</b>, {what}<br>{value(upwards, 'y')}<br>{value(across, 'x')}<extra></extra>"


def _form(axis: Axis) -> dict[str, Any]:
    return {"tickformat": ".0%"} if axis.is_share else {}


def _set_axes(
    figure: go.Figure, found: Found, across: Axis, upwards: Axis, floor: float | None, measured: Sequence[float]
) -> None:
    figure.update_xaxes(title=across.heading, **_form(across))
    figure.update_yaxes(title=upwards.heading, **_form(upwards))
    if floor is not None:
        heights = found.values(upwards.name)[found.comparable]
        # On test items a KL may be higher than any that the search saw.
        figure.update_yaxes(**log_axis(floor, max(float(heights[np.isfinite(heights)].max()), *measured, floor)))


def _measured(m: Measurement, axis: Axis) -> float | None:
    if axis.name in ("kl", "accuracy", "perplexity", "overall_sparsity"):
        value: float | None = getattr(m, axis.name)
        return value
    return measured_cost(m, axis.name)


def _add_measured(
    figure: go.Figure,
    found: Found,
    measurements: Sequence[Measurement],
    across: Axis,
    upwards: Axis,
    floor: float | None,
) -> None:
    """Lay the comparison methods over the trials: they are measured, on test items and on the clock."""
    for variant in NAMED_VARIANTS:
        for m in (one for one in measurements if one.variant == variant):
            x, y = _measured(m, across), _measured(m, upwards)
            if x is None or y is None:
                continue
            shown = float(upwards.shown(np.array(y)))
            proposer = None if m.trial is None else found.proposer(m.trial)
            figure.add_scatter(
                x=[float(across.shown(np.array(x)))],
                y=[shown if floor is None else max(shown, floor)],
                mode="markers",
                name=f"{variant}, measured",
                marker={
                    "color": VARIANT_COLOURS[variant],
                    "symbol": VARIANT_SYMBOLS[variant],
                    "size": 13,
                    "line": {"color": "#ffffff", "width": 1.5},
                },
                customdata=[m.trial],
                hovertext=[f"measured on test items<br>{hover(m, {variant: row_title(m, proposer)})}"],
                hoverinfo="text",
                meta=INKED if variant == "dense" else None,
            )
