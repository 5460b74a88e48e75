"""The figure of how busy the workers of a study were."""

from __future__ import annotations

import numpy as np
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from dashboards.analysis.trials import Found
from dashboards.analysis.workers import busy, timeline
from dashboards.figures.appearance import INK, VARIANT_COLOURS, empty_figure, plain_text, styled

_COLOUR = VARIANT_COLOURS["static"]
# Heights of a worker's row, of all rows at most, of the panels below and of the space between.
_ROW_PX, _MOST_ROWS_PX, _PANEL_PX, _GAP_PX = 18, 480, 210, 64


def workers_figure(found: Found, workers: int | None = None) -> go.Figure:
    """Draws when each worker was busy, the evaluations at a time, and the trials that ended per second.

    Args:
        found: Trials of the study.
        workers: Number of workers of the study; None if it is not known.
    """
    title = "How busy the workers were"
    if not len(found.columns.work):
        return empty_figure(title, "No worker has evaluated a trial yet.")
    rows, (at, evaluations, rate) = timeline(found.columns), busy(found.columns)
    rows_px = min(_MOST_ROWS_PX, _ROW_PX * max(2, len(rows.workers)))
    figure = make_subplots(
        rows=2,
        cols=2,
        specs=[[{"colspan": 2}, None], [{}, {}]],
        subplot_titles=("Each worker: the stronger, the busier", "Evaluations at a time", "Trials per second"),
        row_heights=[rows_px, _PANEL_PX],
        vertical_spacing=_GAP_PX / (rows_px + _GAP_PX + _PANEL_PX),
    )
    figure.add_heatmap(
        x=rows.at.tolist(),
        y=[plain_text(name) for name in rows.workers],
        z=np.round(rows.busy, 3).tolist(),
        zmin=0.0,
        zmax=1.0,
        # Pale and not white, nor grey: on a dark page, too, it is seen where a row is.
        colorscale=[[0.0, "rgba(0, 114, 178, 0.12)"], [1.0, _COLOUR]],
        showscale=False,
        ygap=2,
        hovertemplate="worker %{y}, %{x:.4~g} s: busy for %{z:.0%}<extra></extra>",
        row=1,
        col=1,
    )
    for col, values, unit in ((1, evaluations, "evaluations at a time"), (2, rate, "trials per second")):
        figure.add_scatter(
            x=at.tolist(),
            y=values.tolist(),
            mode="lines",
            line={"color": _COLOUR, "width": 1.5},
            fill="tozeroy",
            hovertemplate=f"%{{x:.4~g}} s: %{{y:.3~g}} {unit}<extra></extra>",
            row=2,
            col=col,
        )
    figure.update_xaxes(showgrid=False, row=1)
    figure.update_yaxes(title="worker", type="category", autorange="reversed", showgrid=False, row=1)
    figure.update_xaxes(title="seconds since the first trial began", row=2)
    figure.update_yaxes(rangemode="tozero", row=2)
    if workers:
        figure.add_hline(y=workers, line={"color": INK, "width": 1, "dash": "dot"}, row=2, col=1)
        figure.update_yaxes(range=[0, 1.1 * max(workers, float(evaluations.max()))], row=2, col=1)
    figure.update_annotations(font_size=13)
    share = "" if not workers else f"; dotted: {workers} workers, {evaluations.mean() / workers:.0%} busy on average"
    subtitle = f"Averages over {at[1] - at[0]:.3g} s each{share}"
    subtitle += "<br>by the workers' own clocks, evaluations that failed included"
    height = 360 + rows_px + _GAP_PX
    return styled(figure, title, subtitle, height=height, panels=True).update_layout(showlegend=False)
