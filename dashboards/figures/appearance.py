"""The look of all figures: one palette, one layout, and text that Plotly cannot mistake for markup."""

from __future__ import annotations

import html
import math
import zlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import plotly.graph_objects as go

INK = "#1a1a1a"
SOFT_INK = "#5a5a5a"
_DARK_INK = "#e9e9ea"
# Traces with this `meta` are drawn in the colour of text: a page that turns dark has to repaint them.
INKED = "ink"
# By default Plotly 7 shows a button that uploads a figure with its data to cloud.plotly.com.
PLOT_CONFIG = {"displaylogo": False, "responsive": True, "showSendToCloud": False}

# Okabe and Ito's palette, which colour-blind readers can tell apart; a variant has one colour in every figure.
VARIANT_COLOURS: Mapping[str, str] = {
    "dense": INK,
    "uniform": "#E69F00",
    "static": "#0072B2",
    "dynamic": "#D55E00",
    "refined": "#009E73",
    "candidate": "#808080",
}
VARIANT_SYMBOLS: Mapping[str, str] = {
    "dense": "diamond",
    "uniform": "square",
    "static": "circle",
    "dynamic": "triangle-up",
    "refined": "star",
    "candidate": "circle",
}

# The rest of that palette, so that nobody takes a proposer for a variant.
PROPOSER_COLOURS: Mapping[str, str] = {
    "deap": "#999933",
    "tpe": "#CC79A7",
    "evopress": "#56B4E9",
    "cmaes": "#882255",
    "additive": "#117733",
    "initial design": "#5A5A5A",
    "ablation": "#332288",
    "sample": "#8C8C8C",
    "random": "#8C8C8C",
}
_OTHER_PROPOSERS = ("#AA4499", "#44AA99", "#661100")


def proposer_colour(name: str) -> str:
    """The colour of a proposer; a name that is not known gets the same one in every figure and every process."""
    fallback = _OTHER_PROPOSERS[zlib.crc32(name.encode()) % len(_OTHER_PROPOSERS)]
    return PROPOSER_COLOURS.get(name, fallback)


def plain_text(text: str) -> str:
    """Text for a figure: Plotly reads labels as a subset of HTML, links included."""
    return html.escape(text, quote=False)


def percentages(schedule: Sequence[float]) -> str:
    """A schedule for a hover label: the percentages of the blocks, in lines of twelve."""
    shares = [f"{100 * share:.0f}" for share in schedule]
    return "<br>".join(" ".join(shares[start : start + 12]) for start in range(0, len(shares), 12))


def variant_marker(variant: str, size: int, **others: Any) -> dict[str, Any]:
    """The marker of a variant."""
    return {"color": VARIANT_COLOURS[variant], "symbol": VARIANT_SYMBOLS[variant], "size": size, **others}


def ring(x: Any, y: Any, name: str, size: int, width: float = 2) -> go.Scatter:
    """A ring around a point; nothing is drawn where there are no coordinates."""
    marker = {"symbol": "circle-open", "size": size, "color": INK, "line": {"width": width}}
    look = {"mode": "markers", "hoverinfo": "skip", "showlegend": False, "meta": INKED}
    return go.Scatter(x=x, y=y, name=name, marker=marker, **look)


def block_axis(n_blocks: int) -> dict[str, Any]:
    """The axis of blocks; few have a tick each."""
    return {"title": "block", "dtick": 1 if n_blocks <= 16 else 4, "showgrid": False}


def _look(*, paper: str, ink: str, soft_ink: str, grid: str) -> go.layout.Template:
    """The template of all figures. Plotly copies it into each: its own, of all charts, take 30 ms."""
    axis = {
        "gridcolor": grid,
        "linecolor": grid,
        "zeroline": False,
        # A tick may be wider than foreseen; a title beside it must then move and not overlap.
        "automargin": True,
        "ticks": "",
        "title": {"font": {"size": 13}, "standoff": 15},
    }
    colorbar = {"outlinewidth": 0, "ticks": ""}
    return go.layout.Template(
        layout={
            "autotypenumbers": "strict",
            "paper_bgcolor": paper,
            "plot_bgcolor": paper,
            "font": {"family": "system-ui, sans-serif", "size": 13, "color": ink},
            "title": {
                "font": {"size": 16},
                "subtitle": {"font": {"size": 12.5, "color": soft_ink}},
                # The container and not the plot: a title keeps the left edge of the text around it.
                "xref": "container",
                "x": 0,
                "xanchor": "left",
                "yref": "container",
                "y": 1,
                "yanchor": "top",
                "pad": {"t": 14},
            },
            "legend": {
                "orientation": "h",
                "yref": "container",
                "y": 0,
                "yanchor": "bottom",
                "x": 0,
                "xanchor": "left",
                "bgcolor": "rgba(0,0,0,0)",
            },
            "hovermode": "closest",
            "hoverlabel": {"align": "left"},
            "margin": {"l": 64, "r": 24, "b": 56},
            "xaxis": axis,
            "yaxis": axis,
            "annotationdefaults": {"arrowcolor": ink, "arrowhead": 0, "arrowwidth": 1},
            "shapedefaults": {"line": {"color": ink}},
        },
        data={
            "bar": [{"error_x": {"color": ink}, "error_y": {"color": ink}, "marker": {"line": {"color": paper}}}],
            "heatmap": [{"colorbar": colorbar}],
            "parcoords": [{"line": {"colorbar": colorbar}}],
        },
    )


_LIGHT_LOOK = _look(paper="#ffffff", ink=INK, soft_ink=SOFT_INK, grid="#e6e6e6")
_DARK_LOOK = _look(paper="#15171a", ink=_DARK_INK, soft_ink="#a9adb3", grid="#33373d")


def styled(figure: go.Figure, title: str, subtitle: str = "", *, height: int = 440, panels: bool = False) -> go.Figure:
    """Give a figure the look that all of them share, and return it.

    Args:
        figure: Figure with its traces and axis titles.
        title: Short enough for a phone: Plotly does not break lines.
        subtitle: Conditions of the whole figure; lines are separated by `<br>`.
        height: Height in pixels.
        panels: Leaves room for titles of panels.
    """
    subtitle_lines = subtitle.count("<br>") + bool(subtitle)
    top = 52 + 17 * subtitle_lines + (30 if panels else 0)
    return figure.update_layout(
        template=_LIGHT_LOOK, title={"text": title, "subtitle": {"text": subtitle}}, margin_t=top, height=height
    )


def darkened(figure: go.Figure) -> go.Figure:
    """The same figure for a dark page: text, grid and background change, and what is drawn in the colour of text."""
    dark = go.Figure(figure).update_layout(template=_DARK_LOOK)
    dark.update_shapes({"line.color": _DARK_INK}, selector={"line.color": INK})
    for trace in dark.data:
        if trace.meta != INKED:
            continue
        for part in ("marker", "line"):
            if part in trace and trace[part].color == INK:
                trace[part].color = _DARK_INK
    return dark


def empty_figure(title: str, reason: str) -> go.Figure:
    """A figure that says why it shows nothing."""
    figure = go.Figure()
    figure.add_annotation(text=reason, showarrow=False, x=0.5, y=0.5, xref="paper", yref="paper", font={"size": 14})
    figure.update_xaxes(visible=False)
    figure.update_yaxes(visible=False)
    return styled(figure, title, height=220)


def log_floor(values: Iterable[float], spread: float = 30.0) -> float | None:
    """The value at which a logarithmic axis begins; None where a linear one serves better.

    The KL of the dense schedule is 0 up to rounding, and would stretch the axis over empty decades. So what lies four
    decades below the largest value does not count, and belongs at the floor.

    Args:
        values: Values that will be drawn.
        spread: The ratio of largest to smallest value from which on an axis is logarithmic.
    """
    positive = [value for value in values if value > 0 and math.isfinite(value)]
    counted = [value for value in positive if value >= 1e-4 * max(positive)]
    if not counted or max(counted) < spread * min(counted):
        return None
    return min(counted) / 1.5


def log_axis(floor: float, top: float, room: float = 0.0) -> dict[str, Any]:
    """A logarithmic axis with few, readable ticks (Plotly writes 100μ and an unexplained 2 and 5).

    Args:
        floor: The lowest that is drawn.
        top: The highest, whiskers included.
        room: Share of the axis that is left free above it, for labels.
    """
    # Marks at either end have a size of their own.
    margin = max(0.08, 0.04 * math.log10(top / floor))
    above = room / (1 - room) * (math.log10(top / floor) + 2 * margin)
    decades = range(math.floor(math.log10(floor)), math.ceil(math.log10(top)) + 1)
    steps = (1, 3) if math.log10(top / floor) < 3 else (1,)
    ticks = [step * 10.0**decade for decade in decades for step in steps]
    return {
        "type": "log",
        "range": [math.log10(floor) - margin, math.log10(top) + margin + above],
        "tickvals": ticks,
        "ticktext": [f"{tick:.4g}" for tick in ticks],
    }
