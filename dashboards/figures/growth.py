"""The figure of how a study's front grew."""

from __future__ import annotations

import numpy as np
import plotly.graph_objects as go

from dashboards.analysis.growth import recent_growth
from dashboards.analysis.trials import Found
from dashboards.figures.appearance import INK, VARIANT_COLOURS, empty_figure, styled
from studies.records.objectives import reference_text, shown_volume, volume_unit


def growth_figure(found: Found, by_seconds: bool = False) -> go.Figure:
    """Draws the hypervolume of a study's front over its trials or over time; refinements are marked.

    Args:
        found: Trials of the study.
        by_seconds: Draws over the seconds since the first trial began, pauses included.
    """
    growth = found.growth
    title = f"Hypervolume over {'seconds' if by_seconds else 'trials'}"
    if growth is None:
        return empty_figure(title, "No trial has finished on the whole search set.")
    unit = volume_unit(found.objectives)
    at = growth.seconds if by_seconds else growth.counted
    last = float(growth.ended_s[-1]) if by_seconds else growth.n_comparable
    volume = [0.0, *(shown_volume(one, found.objectives) for one in growth.volume.tolist())]
    figure = go.Figure(
        go.Scatter(
            x=[0, *at.tolist(), last],
            y=[*volume, volume[-1]],
            mode="lines",
            line={"color": VARIANT_COLOURS["static"], "shape": "hv", "width": 2},
            hovertemplate=f"after %{{x:.4~g}} {'s' if by_seconds else 'trials'}: %{{y:.4g}} {unit}<extra></extra>",
        )
    )
    for number in np.unique(growth.round[growth.round > 0]).tolist():
        first = int(np.argmax(growth.round == number))
        begun = float(growth.ended_s[first]) if by_seconds else first + 0.5
        # A line is a shape, which a page that turns dark repaints.
        figure.add_vline(x=begun, line={"color": INK, "width": 1, "dash": "dot"})
        figure.add_annotation(
            x=begun,
            y=0,
            yref="paper",
            text=f"round {number}",
            showarrow=False,
            xanchor="left",
            yanchor="bottom",
            xshift=4,
            font={"size": 12},
        )
    figure.update_xaxes(title="seconds since the first trial began" if by_seconds else "comparable trials")
    figure.update_yaxes(title=volume_axis(found.objectives), rangemode="tozero")
    reference = reference_text(growth.reference, found.objectives[:2])
    subtitle = f"Up to the reference point {reference}<br>{recent_growth(growth)}"
    return styled(figure, title, subtitle, height=380).update_layout(showlegend=False)


def volume_axis(objectives: tuple[str, ...]) -> str:
    """The title of an axis of hypervolume, see `studies.pareto.front_volume`."""
    unit = volume_unit(objectives)
    return f"hypervolume, {unit}" if unit else "hypervolume"
