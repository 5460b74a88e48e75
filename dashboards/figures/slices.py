"""The figure of an objective against the sparsity of each block by itself."""

from __future__ import annotations

import numpy as np
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from dashboards.analysis.axes import Axis
from dashboards.analysis.sensitivities import part_shares
from dashboards.analysis.trials import Found
from dashboards.figures.appearance import LESS, VARIANT_COLOURS, LogScale, empty_figure, styled
from dashboards.figures.sensitivities import part_name

_COLUMNS = 6
_ROW_PX = 120


def slices_figure(found: Found) -> go.Figure:
    """Draws the first objective against the sparsity of each block: the median and the lowest of the trials there.

    Optuna's slice plots draw every trial, which thousands of them would cover. Where attention and MLP skip apart, each
    has a panel. A block whose line rises with its sparsity is one that others cannot make up for.

    Args:
        found: Trials of the study.
    """
    axis = Axis(found.objectives[0])
    title = f"{axis.title} by the sparsity of each block"
    values = found.values(axis.name)
    places = found.comparable[np.isfinite(values[found.comparable])]
    shares, halves = part_shares(found.columns)
    n_parts = shares.shape[1]
    if not len(places) or not n_parts:
        return empty_figure(title, "No trial has finished on the whole search set.")
    names = [part_name(part, halves) for part in range(n_parts)]
    n_rows = -(-n_parts // _COLUMNS)
    height = 130 + _ROW_PX * n_rows
    figure = make_subplots(
        rows=n_rows,
        cols=min(_COLUMNS, n_parts),
        subplot_titles=names,
        shared_xaxes="all",
        shared_yaxes="all",
        horizontal_spacing=0.02,
        vertical_spacing=34 / (_ROW_PX * n_rows),
    )
    levels = [np.unique(shares[places, part]) for part in range(n_parts)]
    groups = [[values[places][shares[places, part] == level] for level in own] for part, own in enumerate(levels)]
    scale = LogScale.of(axis.shown(values[places]))
    for part, name in enumerate(names):
        for kind, colour, statistic in (("median", LESS, np.median), ("lowest", VARIANT_COLOURS["static"], np.min)):
            reached = np.array([statistic(group) for group in groups[part]])
            heights = axis.shown(reached)
            figure.add_scatter(
                x=levels[part].tolist(),
                y=(heights if scale is None else scale.drawn(heights)).tolist(),
                mode="lines+markers",
                name=kind,
                legendgroup=kind,
                showlegend=not part,
                line={"color": colour, "width": 1.5},
                marker={"color": colour, "size": 4},
                # Some are drawn higher than they are.
                customdata=[
                    f"{axis.title} {axis.text(float(value))}, {len(group)} trials"
                    for value, group in zip(reached, groups[part], strict=True)
                ],
                hovertemplate=f"{name}, %{{x:.0%}} of tokens skip it<br>{kind} %{{customdata}}<extra></extra>",
                row=part // _COLUMNS + 1,
                col=part % _COLUMNS + 1,
            )
    figure.update_xaxes(tickformat=".0%", nticks=4)
    if scale is None:
        figure.update_yaxes(tickformat="~g", nticks=4)
    else:
        figure.update_yaxes(**scale.axis() | {"nticks": 4})
    figure.update_yaxes(title=axis.unit, col=1)
    figure.update_annotations(font_size=12)
    subtitle = f"{len(places)} comparable trials; across: share of tokens that skip the block"
    subtitle += f"<br>up: {axis.heading}, whatever the other blocks skip: a hint, and no effect of the block alone"
    subtitle += "<br>what lies at the lower edge is lower" if scale is not None and scale.has_lower else ""
    return styled(figure, title, subtitle, height=height, panels=True)
