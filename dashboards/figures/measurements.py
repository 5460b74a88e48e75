"""The figure of what a choice costs: every measured point, quality against cost."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
import plotly.graph_objects as go

from dashboards.analysis.other_methods import method_points
from dashboards.analysis.records import VARIANT_TITLES, measured_cost
from dashboards.figures.appearance import (
    INK,
    INKED,
    VARIANT_COLOURS,
    empty_figure,
    hollow_marker,
    plain_text,
    ring,
    styled,
    variant_marker,
)
from dashboards.figures.marks import (
    Range,
    accuracy_range,
    all_have_accuracy,
    conditions,
    error_bars,
    hover,
    kl_range,
    kl_scale,
    latency_range,
    shown_range,
)
from dashboards.figures.other_methods import add_other_methods, drawable_points, quality_range, with_room
from studies import Measurement
from studies.pareto import dominations
from studies.records.compared import Compared
from studies.records.objectives import DEFAULT_COST, objective

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
    compared: Sequence[Compared] = (),
) -> go.Figure:
    """Draws accuracy against a cost, one trace a variant; KL in place of accuracy where data has no choices.

    A line joins the non-dominated points; the others are hollow. Error bars are the 95 % intervals of quality and
    the quartiles of latency; what is counted has none.

    Args:
        measurements: Results on test items.
        selected: The selected point: ringed and named.
        cost: Name of the cost to show; measured latency where a measurement does not know it.
        titles: Title of each variant.
        chance: Accuracy of guessing, which gets a line where points come near it; None where it is not known.
        compared: Other methods, drawn as far as they were timed on the same prefill.
    """
    if any(measured_cost(m, cost) is None for m in measurements):
        cost = DEFAULT_COST
    is_timed = cost == DEFAULT_COST
    title = "measured latency" if is_timed else objective(cost).title
    if not measurements:
        return empty_figure(f"Accuracy against {title}", "Nothing has been measured yet.")
    by_accuracy = all_have_accuracy(measurements)
    y = "accuracy" if by_accuracy else "kl"
    dense = next((m for m in measurements if m.variant == "dense"), None)
    others = drawable_points(method_points(compared), dense, cost, y)
    beside = [quality_range(one, y) for one in others]
    scale = None if by_accuracy else kl_scale(measurements, beside)

    def cost_of(m: Measurement) -> float:
        return objective(cost).shown(measured_cost(m, cost) or 0.0)

    def quality(m: Measurement) -> Range:
        return accuracy_range(m) if by_accuracy else shown_range(kl_range(m), scale)

    figure = go.Figure()
    best = measured_front(measurements, cost)
    # What everything is compared with stays in full, though a candidate may dominate it by the clock's noise.
    dominated = [m for m in measurements if m not in best and m is not selected and m.variant != "dense"]
    line = sorted(best, key=cost_of)
    figure.add_scatter(
        x=list(map(cost_of, line)),
        y=[quality(m)[1] for m in line],
        mode="lines",
        name="front as measured",
        line={"color": VARIANT_COLOURS["candidate"], "width": 1.5},
        hoverinfo="skip",
    )
    for variant in _DRAWN:
        points = [m for m in measurements if m.variant == variant]
        for is_hollow in (True, False):
            own = [m for m in points if (m in dominated) == is_hollow]
            if not own:
                continue
            figure.add_scatter(
                x=list(map(cost_of, own)),
                y=[quality(m)[1] for m in own],
                error_x=error_bars(list(map(latency_range, own))) if is_timed else None,
                error_y=error_bars(list(map(quality, own))),
                mode="markers",
                name=plain_text(titles[variant]),
                legendgroup=variant,
                showlegend=not any(trace.legendgroup == variant for trace in figure.data),
                marker=(hollow_marker if is_hollow else variant_marker)(variant, _SIZES.get(variant, 12)),
                hovertext=[hover(m, titles) for m in own],
                hoverinfo="text",
                meta=INKED if variant == "dense" else None,
            )
    add_other_methods(figure, others, dense, cost, y, scale, whiskers=True)
    if selected is not None:
        across, upwards, costs = cost_of(selected), quality(selected)[1], list(map(cost_of, measurements))
        figure.add_trace(ring([across], [upwards], "selected", 24))
        to_the_right = across <= min(costs) + 0.6 * (max(costs) - min(costs))
        # Plotly wants the logarithm of a place on such an axis.
        height = upwards if scale is None else math.log10(upwards)
        _add_label(figure, selected, across, height, to_the_right, below=by_accuracy)
    figure.update_xaxes(title=f"{title}, {objective(cost).unit} (lower is better)")
    if by_accuracy:
        figure.update_yaxes(title="accuracy (higher is better)", tickformat=".0%")
        least = min(low for low, _, _ in [*map(accuracy_range, measurements), *beside])
        if chance is not None and least <= chance + _NEAR_CHANCE:
            dotted = {"dash": "dot", "width": 1.5}
            figure.add_hline(chance, line=dotted, annotation_text=f"chance, {chance:.1%}", annotation_showarrow=False)
    else:
        figure.update_yaxes(title="KL to dense, nats per token<br>(lower is better)")
        if scale is None:
            top = max(high for _, _, high in [*map(kl_range, measurements), *beside])
            # A little below 0, or marks there would be cut in half; "400μ" is read by few.
            figure.update_yaxes(range=[-0.06 * top, 1.06 * top] if top > 0 else [-0.06, 1.0], tickformat="~g")
        else:
            figure.update_yaxes(**scale.axis(0.0 if selected is None else _LABEL))
            scale.mark(figure)
    known = by_accuracy or any(m.kl_low is not None for m in measurements)
    whiskers = (["95% interval"] if known else []) + (["quartiles"] if is_timed else [])
    note = "" if scale is None or not scale.note else f"<br>{scale.note}"
    subtitle, of = conditions(measurements, whiskers, is_timed), "Accuracy" if by_accuracy else "KL"
    styled(figure, f"{of} against {title}", subtitle + note, height=560).update_layout(margin_b=110)
    return with_room(figure) if others else figure


def measured_front(measurements: Sequence[Measurement], cost: str = DEFAULT_COST) -> list[Measurement]:
    """The non-dominated measurements by cost and by accuracy, or by KL where data has no choices."""
    by_accuracy = all_have_accuracy(measurements)

    def losses(m: Measurement) -> tuple[float, float]:
        return (-(m.accuracy or 0.0) if by_accuracy else m.kl), measured_cost(m, cost) or 0.0

    is_dominated = dominations([losses(m) for m in measurements]).max(axis=0)
    return [measurements[place] for place in np.flatnonzero(~is_dominated).tolist()]


def _add_label(figure: go.Figure, selected: Measurement, x: float, y: float, to_the_right: bool, below: bool) -> None:
    """Name the selected point where there is room: a front leaves some on its bad side, and its right edge none."""
    figure.add_annotation(
        x=x,
        y=y,
        text=f"<b>selected: {selected.variant}</b><br>trial {selected.trial}, {selected.overall_sparsity:.1%}",
        ax=40 if to_the_right else -40,
        ay=62 if below else -62,
        xanchor="left" if to_the_right else "right",
        align="left",
        arrowcolor=INK,
        arrowwidth=1,
        arrowhead=0,
        standoff=13,
        font={"size": 12.5},
    )
