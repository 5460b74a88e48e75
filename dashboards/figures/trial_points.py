"""How trials are drawn against two quantities: places, symbols, hover labels, and the words around them."""

from __future__ import annotations

import numpy as np
import plotly.graph_objects as go

from dashboards.analysis.axes import Axis, Floats
from dashboards.analysis.trials import Found, Places
from dashboards.figures.appearance import LogScale


def title_of(across: Axis, upwards: Axis) -> str:
    """The title of a figure of two quantities."""
    return f"{upwards.title[:1].upper()}{upwards.title[1:]} against {across.title}"


def better(across: Axis, upwards: Axis) -> str:
    """The direction in which points of a figure are better."""
    towards = ("up" if upwards.higher_is_better else "down", "right" if across.higher_is_better else "left")
    return f"better: {' and '.join(towards)}"


def stairs(across: Axis) -> str:
    """The shape of a line along a front, which claims nothing between two trials."""
    return "vh" if across.higher_is_better else "hv"


def points(found: Found, places: Places, across: Axis, upwards: Axis, scale: LogScale | None) -> dict[str, Floats]:
    """Coordinates of trials; what a logarithmic scale cannot show stands on its rail."""
    heights = upwards.shown(found.values(upwards.name)[places])
    return {
        "x": across.shown(found.values(across.name)[places]),
        "y": heights if scale is None else scale.drawn(heights),
    }


def lower_symbols(
    found: Found, places: Places, upwards: Axis, scale: LogScale | None, symbol: str = "circle"
) -> str | list[str]:
    """The symbol of each trial, which is another one where a logarithmic scale cannot show it."""
    lower = lower_places(found, upwards.name, places, scale)
    return ["triangle-down" if one else symbol for one in np.isin(places, lower)] if len(lower) else symbol


def templates(
    found: Found, places: Places, across: Axis, upwards: Axis, what: str, scale: LogScale | None, more: str = ""
) -> str | list[str]:
    """The hover label of trials, whose number is their custom data: one for all, unless the scale cannot show some."""
    said = _template(across, upwards, what, found.uncertainty, more)
    lower = set(lower_places(found, upwards.name, places, scale).tolist())
    if not lower:
        return said
    values = found.values(upwards.name)
    return [
        _template(across, upwards, what, found.uncertainty, more, float(values[place])) if place in lower else said
        for place in places.tolist()
    ]


def _template(
    across: Axis, upwards: Axis, what: str, uncertainty: float | None, more: str, lower: float | None = None
) -> str:
    """The hover label of a trial; `lower` is its true value upwards where it is drawn at another height."""

    def value(axis: Axis, letter: str) -> str:
        shown = f"{axis.title} %{{{letter}:{'.1%' if axis.is_share else '.4g'}}} {axis.unit}".rstrip()
        return shown + within(axis, uncertainty)

    height = value(upwards, "y") if lower is None else f"{upwards.title} {upwards.text(lower)}, below the scale"
    return f"<b>trial %{{customdata}}</b>, {what}<br>{height}<br>{value(across, 'x')}{more}<extra></extra>"


def within(axis: Axis, uncertainty: float | None) -> str:
    """Uncertainty of a quantity, in words: latencies of trials are predicted."""
    return "" if uncertainty is None or axis.name != "latency_ms" else f" ± {uncertainty:.0%}"


def set_titles(figure: go.Figure, across: Axis, upwards: Axis) -> None:
    """Give the axes of a figure their titles, and shares their form."""
    for update, axis in ((figure.update_xaxes, across), (figure.update_yaxes, upwards)):
        update(title=axis.heading, **({"tickformat": ".0%"} if axis.is_share else {}))


def lower_places(found: Found, y: str, places: Places, scale: LogScale | None) -> Places:
    """Places of the trials that a logarithmic scale cannot show."""
    return places[:0] if scale is None else places[scale.lower(found.values(y)[places])]
