"""The figure of what a choice costs: every measured point, quality against cost."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
import plotly.graph_objects as go

from dashboards.analysis.records import VARIANT_TITLES, measured_cost
from dashboards.figures.appearance import (
    INK,
    INKED,
    VARIANT_COLOURS,
    VARIANT_SYMBOLS,
    empty_figure,
    log_axis,
    plain_text,
    styled,
)
from dashboards.figures.marks import (
    accuracy_range,
    all_have_accuracy,
    conditions,
    error_bars,
    hover,
    kl_ends,
    kl_range,
    latency_range,
)
from studies import Measurement
from studies.pareto import dominations
from studies.records.objectives import DEFAULT_COST, objective

_NOTHING = "Nothing has been measured yet."
# One of many candidates may almost vanish; the rows that have a name may not.
_FAINT, _FAINT_NAMED = 0.4, 0.6
# How near to guessing accuracies have to come for its line to be worth the room.
_NEAR_CHANCE = 0.1
# Share of a logarithmic axis that the label of the selected point needs above it.
_LABEL = 0.18
# The lone points come last, so that those of the front do not cover them.
_DRAWN = ("candidate", "uniform", "dense", "static", "dynamic", "refined")
_SIZES = {"candidate": 8, "static": 11, "dynamic": 14, "refined": 17}


def measurements_figure(
    measurements: Sequence[Measurement],
    selected: Measurement | None,
    cost: str = DEFAULT_COST,
    titles: Mapping[str, str] = VARIANT_TITLES,
    chance: float | None = None,
) -> go.Figure:
    """Draws accuracy against a cost, one trace a variant; KL in place of accuracy where data has no choices.

    A line joins the non-dominated points; the others are faint. Error bars are the 95 % intervals of quality and
    the quartiles of latency; what is counted has none.

    Args:
        measurements: Results on test items.
        selected: The selected point: ringed and named.
        cost: Name of the cost to show; measured latency where a measurement does not know it.
        titles: Title of each variant.
        chance: Accuracy of guessing, which gets a line where points come near it; None where it is not known.
    """
    if any(measured_cost(m, cost) is None for m in measurements):
        cost = DEFAULT_COST
    title, is_timed = _cost_title(cost), cost == DEFAULT_COST
    if not measurements:
        return empty_figure(f"Accuracy against {title}", _NOTHING)
    by_accuracy = all_have_accuracy(measurements)
    floor, top = (None, 0.0) if by_accuracy else kl_ends(measurements)

    def height_of(m: Measurement) -> float:
        quality = m.accuracy if by_accuracy else m.kl
        return (quality or 0.0) if floor is None else max(quality or 0.0, floor)

    figure = go.Figure()
    best = measured_front(measurements, cost)
    # What everything is compared with stays in full, though a candidate may dominate it by the clock's noise.
    dominated = [m for m in measurements if m not in best and m is not selected and m.variant != "dense"]
    line = sorted(best, key=lambda m: _cost_shown(m, cost))
    figure.add_scatter(
        x=[_cost_shown(m, cost) for m in line],
        y=[height_of(m) for m in line],
        mode="lines",
        name="front as measured",
        line={"color": VARIANT_COLOURS["candidate"], "width": 1.5},
        hoverinfo="skip",
    )
    for variant in _DRAWN:
        points = [m for m in measurements if m.variant == variant]
        # Error bars have no opacity of their own, so points that differ in it are separate traces.
        for faint in (True, False):
            shown = [m for m in points if (m in dominated) == faint]
            if shown:
                _add_points(figure, variant, shown, faint, cost, floor, [height_of(m) for m in shown], titles)
    if selected is not None:
        _ring(figure, measurements, selected, height_of(selected), by_accuracy, cost, floor is not None)
    figure.update_xaxes(title=f"{title}, {objective(cost).unit} (lower is better)")
    if by_accuracy:
        figure.update_yaxes(title="accuracy (higher is better)", tickformat=".0%")
        if chance is not None and min(accuracy_range(m)[0] for m in measurements) <= chance + _NEAR_CHANCE:
            dotted = {"dash": "dot", "width": 1.5}
            figure.add_hline(chance, line=dotted, annotation_text=f"chance, {chance:.1%}", annotation_showarrow=False)
    else:
        figure.update_yaxes(title="KL to dense, nats per token<br>(lower is better)")
        if floor is None:
            # A little below 0, or marks there would be cut in half; "400μ" is read by few.
            figure.update_yaxes(range=[-0.06 * top, 1.06 * top] if top > 0 else [-0.06, 1.0], tickformat="~g")
        else:
            figure.update_yaxes(**log_axis(floor, top, 0.0 if selected is None else _LABEL))
    known = by_accuracy or any(m.kl_low is not None for m in measurements)
    whiskers = (["95% interval"] if known else []) + (["quartiles"] if is_timed else [])
    quality = "Accuracy" if by_accuracy else "KL"
    subtitle = conditions(measurements, whiskers, is_timed)
    return styled(figure, f"{quality} against {title}", subtitle, height=560).update_layout(margin_b=110)


def measured_front(measurements: Sequence[Measurement], cost: str = DEFAULT_COST) -> list[Measurement]:
    """The non-dominated measurements by cost and by accuracy, or by KL where data has no choices.

    Args:
        measurements: The measurements, at least one.
        cost: Name of the cost.
    """
    by_accuracy = all_have_accuracy(measurements)

    def losses(m: Measurement) -> tuple[float, float]:
        return (-(m.accuracy or 0.0) if by_accuracy else m.kl), measured_cost(m, cost) or 0.0

    is_dominated = dominations([losses(m) for m in measurements]).max(axis=0)
    return [measurements[place] for place in np.flatnonzero(~is_dominated).tolist()]


def _add_points(
    figure: go.Figure,
    variant: str,
    points: Sequence[Measurement],
    faint: bool,
    cost: str,
    floor: float | None,
    heights: Sequence[float],
    titles: Mapping[str, str],
) -> None:
    colour, by_accuracy = VARIANT_COLOURS[variant], all_have_accuracy(points)
    ranges = [accuracy_range(m) if by_accuracy else kl_range(m) for m in points]
    if floor is not None:
        # What is too small for the axis stands at its bottom, without whiskers.
        ranges = [(max(low, floor), max(middle, floor), max(high, floor)) for low, middle, high in ranges]
    shown_before = any(trace.legendgroup == variant for trace in figure.data)
    figure.add_scatter(
        x=[_cost_shown(m, cost) for m in points],
        y=list(heights),
        error_x=error_bars([latency_range(m) for m in points]) if cost == DEFAULT_COST else None,
        error_y=error_bars(ranges),
        mode="markers",
        name=plain_text(titles[variant]),
        legendgroup=variant,
        showlegend=not shown_before,
        opacity=1.0 if not faint else _FAINT if variant == "candidate" else _FAINT_NAMED,
        marker={"color": colour, "symbol": VARIANT_SYMBOLS[variant], "size": _SIZES.get(variant, 12)},
        hovertext=[hover(m, titles) for m in points],
        hoverinfo="text",
        meta=INKED if variant == "dense" else None,
    )


def _cost_title(cost: str) -> str:
    return "measured latency" if cost == DEFAULT_COST else objective(cost).title


def _cost_shown(m: Measurement, cost: str) -> float:
    """A cost in the unit that people read."""
    return objective(cost).shown(measured_cost(m, cost) or 0.0)


def _ring(
    figure: go.Figure,
    measurements: Sequence[Measurement],
    m: Measurement,
    height: float,
    by_accuracy: bool,
    cost: str,
    logarithmic: bool,
) -> None:
    x = _cost_shown(m, cost)
    figure.add_scatter(
        x=[x],
        y=[height],
        mode="markers",
        name="selected",
        marker={"symbol": "circle-open", "size": 24, "color": INK, "line": {"width": 2}},
        hoverinfo="skip",
        showlegend=False,
        meta=INKED,
    )
    # A front leaves room on its bad side: below it where higher is better, above it where lower is. Near the right
    # edge the text turns to the left.
    costs = [_cost_shown(p, cost) for p in measurements]
    to_the_right = x <= min(costs) + 0.6 * (max(costs) - min(costs))
    figure.add_annotation(
        x=x,
        # Plotly wants the logarithm of a place on such an axis.
        y=math.log10(height) if logarithmic else height,
        text=f"<b>selected: {m.variant}</b><br>trial {m.trial}, {m.overall_sparsity:.1%}",
        ax=40 if to_the_right else -40,
        ay=62 if by_accuracy else -62,
        xanchor="left" if to_the_right else "right",
        align="left",
        arrowcolor=INK,
        arrowwidth=1,
        arrowhead=0,
        standoff=13,
        font={"size": 12.5},
    )
