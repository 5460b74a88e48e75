"""The points of other methods in figures of a study's own: a mark for each method."""

from __future__ import annotations

from collections.abc import Sequence

import plotly.graph_objects as go

from dashboards.analysis.other_methods import MethodPoint
from dashboards.analysis.tables import bracketed
from dashboards.figures.appearance import VARIANT_COLOURS, LogScale, plain_text
from dashboards.figures.marks import Range, error_bars, shown_range
from studies import Measurement
from studies.records.compared import OURS
from studies.records.objectives import objective

# Colours that no variant has, for white pages and dark ones, where reports leave them as they are. There are more
# methods than symbols that can be told apart.
_COLOURS = ("#AA4499", "#8C6D31")
_SYMBOLS = ("cross", "x", "pentagon", "hexagon", "triangle-left", "triangle-right", "star-diamond", "star-triangle-up")
_SIZE = 11
# Six rows, and four; the legend scrolls beyond, so that a phone keeps the plot.
_MOST_LEGEND_PX, _LEAST_LEGEND_PX = 190, 130
_MORE_PX = 120
# Plotly's own are 1000.
_LAST = 1001


def drawable_points(points: Sequence[MethodPoint], dense: Measurement | None, x: str, y: str) -> list[MethodPoint]:
    """Those that know both quantities as a study's measurements do."""
    return [one for one in points if one.value(x, dense) is not None and one.value(y, dense) is not None]


def add_other_methods(
    figure: go.Figure,
    points: Sequence[MethodPoint],
    dense: Measurement | None,
    x: str,
    y: str,
    scale: LogScale | None,
    whiskers: bool = False,
) -> None:
    """Lays other methods over a figure, a trace for each, which the legend hides.

    Args:
        figure: The figure.
        points: Points that know both quantities (`drawable_points`).
        dense: Measurement of the dense model; None if there is none.
        x: Quantity across.
        y: Quantity upwards.
        scale: Logarithmic axis upwards; None for a linear one.
        whiskers: Draws the intervals of KL or accuracy.
    """
    marks = {OURS: (VARIANT_COLOURS["static"], "hexagram")}
    for place, name in enumerate(sorted({one.method for one in points} - {OURS})):
        marks[name] = _COLOURS[place // len(_SYMBOLS) % len(_COLOURS)], _SYMBOLS[place % len(_SYMBOLS)]
    for name, (colour, symbol) in marks.items():
        own = [one for one in points if one.method == name]
        if not own:
            continue
        ranges = [shown_range(quality_range(one, y, dense), scale) for one in own]
        figure.add_scatter(
            x=[objective(x).shown(one.value(x, dense) or 0.0) for one in own],
            y=[middle for _, middle, _ in ranges],
            error_y=error_bars(ranges) if whiskers else None,
            mode="markers",
            name="ours, compared" if name == OURS else plain_text(name),
            # Behind the study's own.
            legendrank=_LAST,
            marker={"color": colour, "symbol": symbol, "size": _SIZE},
            # They are no trials.
            customdata=[None] * len(own),
            hovertext=list(map(_hover, own)),
            hoverinfo="text",
        )


def with_room(figure: go.Figure, grows: bool = True) -> go.Figure:
    """A styled figure that other methods were added to: with a legend that scrolls, and height for it if it grows."""
    height = figure.layout.height + (_MORE_PX if grows else 0)
    return figure.update_layout(height=height, legend_maxheight=_MOST_LEGEND_PX if grows else _LEAST_LEGEND_PX)


def quality_range(one: MethodPoint, quantity: str, dense: Measurement | None = None) -> Range:
    """Lower end, value and upper end of a quantity of a point that has it; all the same where no interval is known."""
    middle = objective(quantity).shown(one.value(quantity, dense) or 0.0)
    low, high = {"kl": one.kl_interval, "accuracy": one.accuracy_interval}.get(quantity) or (middle, middle)
    return low, middle, high


def _hover(one: MethodPoint) -> str:
    own, seeds = one.first, f", mean of {len(one.models)} seeds" if len(one.models) > 1 else ""
    right = [] if one.accuracy is None else [f"accuracy {one.accuracy:.1%} {bracketed(one.accuracy_interval, '.1%')}"]
    lines = [
        f"<b>{plain_text(one.method)}</b>, {one.title}",
        f"KL {one.kl:.4g} {bracketed(one.kl_interval, '.4g')} nats per token{seeds}",
        *right,
        f"speed-up {own.speedup:.2f}× {bracketed(one.speedup_interval, '.2f')} in turns with the dense model",
        f"FLOPs saved {own.flops_saved:.1%}, batch {own.batch} × {own.length} tokens",
        f"removed: {plain_text(own.sparsity)}",
    ]
    return "<br>".join(lines)
