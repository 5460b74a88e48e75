"""The look of all figures: one palette, one layout, and text that Plotly cannot mistake for markup."""

from __future__ import annotations

import html
import math
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import plotly.graph_objects as go
from numpy.typing import ArrayLike, NDArray

INK = "#1a1a1a"
SOFT_INK = "#5a5a5a"
_DARK_INK = "#e9e9ea"
# Opacity of points that stand back behind others: less, and they could not be told from the page.
FAINT = 0.75
# The colour of lines that do.
LESS = "#949494"
# The scale of shares, from none to all: what is more stands out more from the page, whether it is light or dark.
SHARES: Sequence[tuple[float, str]] = ((0.0, "#EAF2FA"), (0.5, "#6BAED6"), (1.0, "#08306B"))
# Traces with this `meta` are drawn in the colour of text: a page that turns dark has to repaint them.
INKED = "ink"
# By default Plotly 7 shows a button that uploads a figure with its data to cloud.plotly.com.
PLOT_CONFIG = {"displaylogo": False, "responsive": True, "showSendToCloud": False}

# Of a logarithmic axis.
_MOST_TICKS = 5

# Okabe and Ito's palette, which colour-blind readers can tell apart; a variant has one colour in every figure. What is
# too pale for a white page is darker here, and has its own lightness on a dark one.
VARIANT_COLOURS: Mapping[str, str] = {
    "dense": INK,
    "uniform": "#C38700",
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
    "deap": "#747427",
    "tpe": "#A85585",
    "evopress": "#00789C",
    "cmaes": "#882255",
    "additive": "#117733",
    "initial design": "#5A5A5A",
    "ablation": "#332288",
    "sample": "#6F6F6F",
    "random": "#6F6F6F",
}
# On a dark page, those that are too dark for it, or darker on a white one than they need be here.
_DARK_COLOURS: Mapping[str, str] = {
    "#C38700": "#E69F00",
    "#747427": "#B0B03C",
    "#A85585": "#CC79A7",
    "#00789C": "#56B4E9",
    "#6F6F6F": "#8C8C8C",
    "#2F776B": "#44AA99",
    "#0072B2": "#2E8BC9",
    LESS: "#6E747C",
    **dict(zip((colour for _, colour in SHARES), ("#1E2A36", "#2E7AB5", "#A6DCFF"), strict=True)),
    "#882255": "#F0605C",
    "#117733": "#4DBB6A",
    "#5A5A5A": "#A8A8A8",
    "#332288": "#9F8FF0",
    "#661100": "#C9925A",
    "#AA4499": "#D070C0",
}
_OTHER_PROPOSERS = ("#AA4499", "#2F776B", "#661100")


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


def hollow_marker(variant: str, size: int) -> dict[str, Any]:
    """The marker of a variant that stands back; colours for white pages have no opacity to spare."""
    return variant_marker(variant, size) | {"symbol": f"{VARIANT_SYMBOLS[variant]}-open", "line": {"width": 2}}


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
    """The same figure for a dark page: text, grid, background and what has the colour of text, and colours too dark."""
    dark = go.Figure(figure).update_layout(template=_DARK_LOOK)
    dark.update_shapes({"line.color": _DARK_INK}, selector={"line.color": INK})
    for trace in dark.data:
        for part in ("marker.color", "marker.line.color", "line.color", "line.colorscale", "colorscale"):
            if part in trace and trace[part] is not None:
                trace[part] = _on_dark(trace[part], trace.meta == INKED)
    return dark


def _on_dark(colour: Any, is_inked: bool) -> Any:
    """The colour of a trace on a dark page, or those of its points or of its scale."""
    if isinstance(colour, (list, tuple)):
        return [_on_dark(one, is_inked) for one in colour]
    if not isinstance(colour, str):
        return colour
    return _DARK_INK if is_inked and colour == INK else _DARK_COLOURS.get(colour, colour)


def empty_figure(title: str, reason: str) -> go.Figure:
    """A figure that says why it shows nothing."""
    figure = go.Figure()
    figure.add_annotation(text=reason, showarrow=False, x=0.5, y=0.5, xref="paper", yref="paper", font={"size": 14})
    figure.update_xaxes(visible=False)
    figure.update_yaxes(visible=False)
    return styled(figure, title, height=220)


@dataclass(frozen=True)
class LogScale:
    """A logarithmic axis that begins at the lowest value that counts; lower ones stand on a rail below its beginning.

    The KL of the dense schedule is 0 up to rounding, and would stretch the axis over empty decades. So what lies four
    decades below the largest value does not count.

    Attributes:
        floor: Where the scale begins.
        top: The highest that is drawn, whiskers included.
        has_lower: True if something lower is drawn, which the axis leaves room for.
    """

    floor: float
    top: float
    has_lower: bool

    @classmethod
    def of(cls, values: ArrayLike, whiskers: ArrayLike = (), spread: float = 30.0) -> LogScale | None:
        """The scale of the values that will be drawn; None where a linear one serves better.

        Args:
            values: Values of points, of which those count that are not too low.
            whiskers: Ends of whiskers, which the scale reaches to as far as they count.
            spread: The ratio of largest to smallest value from which on an axis is logarithmic.
        """
        drawn, ends = (np.asarray(own, dtype=float) for own in (values, whiskers))
        drawn, ends = drawn[np.isfinite(drawn)], ends[np.isfinite(ends)]
        most = float(drawn.max(initial=0.0))
        least, lowest_end = (
            float(own[(own > 0) & (own >= 1e-4 * most)].min(initial=math.inf)) for own in (drawn, ends)
        )
        if most <= 0 or most < spread * least:
            return None
        floor = _tick_below(min(least, lowest_end) / 1.1)
        return cls(floor, max(most, float(ends.max(initial=0.0))), bool((drawn < floor).any()))

    @property
    def rail(self) -> float:
        """The height at which lower values stand."""
        return self.floor / 1.4

    def lower(self, values: ArrayLike) -> NDArray[np.bool_]:
        """Marks the values that the scale cannot show."""
        return np.asarray(np.asarray(values, dtype=float) < self.floor)

    def drawn(self, values: ArrayLike) -> NDArray[np.float64]:
        """The heights at which values are drawn."""
        return np.where(self.lower(values), self.rail, np.asarray(values, dtype=float))

    def axis(self, room: float = 0.0) -> dict[str, Any]:
        """The axis: Plotly sets its ticks, so that there are some at every zoom, but they are numbers, and not 100μ.

        Args:
            room: Share of the axis that is left free above it, for labels.
        """
        span = math.log10(self.top / self.floor)
        # Marks at either end have a size of their own.
        margin = max(0.08, 0.04 * span)
        above = room / (1 - room) * (span + 2 * margin)
        # Below the beginning there is room for the rail, and not for another tick.
        bottom = math.log10(self.floor) - (math.log10(1.95) if self.has_lower else margin)
        return {
            "type": "log",
            "range": [bottom, math.log10(self.top) + margin + above],
            "tickformat": "~g",
            # With more, Plotly labels all of 1 to 9 in every decade.
            "nticks": _MOST_TICKS,
        }

    @property
    def note(self) -> str:
        """What to know of the rail, for a subtitle; empty where nothing stands on it."""
        return "below the dotted line: lower, not to scale" if self.has_lower else ""

    def mark(self, figure: go.Figure, **panel: int) -> None:
        """Say where the scale ends, if there is anything below it.

        Args:
            figure: Figure with this axis.
            panel: Row and column of the panel that has the axis.
        """
        if not self.has_lower:
            return
        figure.add_hline(self.floor, line={"color": INK, "width": 1, "dash": "dot"}, layer="below", **panel)
        figure.add_annotation(
            # As if it were a tick.
            x=0,
            xref="x domain",
            xanchor="right",
            xshift=-3,
            y=math.log10(self.rail),
            text="lower",
            showarrow=False,
            font={"size": 12},
            **panel,
        )


def _tick_below(value: float) -> float:
    """The next lower number that a tick may have: 1, 2 or 5 times a power of ten."""
    decade = math.floor(math.log10(value))
    # A logarithm is rounded, so its decade may be one too high.
    ticks = (float(f"{step}e{power}") for power in (decade - 1, decade) for step in (1, 2, 5))
    return max(tick for tick in ticks if tick <= value)
