"""Figures of schedules: those of a front, block by block, and a single one."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import plotly.graph_objects as go

from dashboards.analysis.axes import Axis, Floats
from dashboards.analysis.trials import Found, Places
from dashboards.figures.appearance import (
    INK,
    LESS,
    SHARES,
    VARIANT_COLOURS,
    LogScale,
    block_axis,
    empty_figure,
    plain_text,
    styled,
)
from studies.records.halves import halves, n_blocks

# Beyond this many, rows are too thin to read.
_MOST_ROWS = 60
_LABELLED_ROWS = 30
_MOST_LINES = 400
_COLOUR = VARIANT_COLOURS["static"]


def schedules_figure(found: Found, selected: int | None = None) -> go.Figure:
    """Draws the schedules of a front: a row each, sorted by overall sparsity, and a column for each block.

    Args:
        found: Trials of the study.
        selected: Number of the selected trial, whose row is marked; it is shown though it may not be on the front.
    """
    title, columns = "Schedules on the front", found.columns
    front = found.front()
    chosen = None if selected is None else columns.place(selected)
    if chosen is not None and chosen not in front:
        front = np.append(front, chosen)
    if not len(front):
        return empty_figure(title, "No trial has finished.")
    rows = _rows(found, front, chosen)
    labels = [
        f"trial {number}: {share:.0%}"
        for number, share in zip(columns.number[rows], columns.overall_sparsity[rows], strict=True)
    ]
    blocks = columns.n_blocks
    marked = None if chosen is None else int(np.flatnonzero(rows == chosen)[0])
    # Labels that do not fit are left out evenly, but never the one of the selected row.
    stride = -(-len(rows) // _LABELLED_ROWS)
    labelled = [
        index
        for index in range(len(rows))
        if index == marked or (index % stride == 0 and (marked is None or abs(index - marked) >= stride))
    ]
    shares, places = columns.schedule[rows], [float(block) for block in range(blocks)]
    parts = [f"block {block}" for block in range(blocks)]
    if columns.has_halves:
        # Attention and MLP of a block side by side, in the order in which the model runs them.
        both = columns.halves[rows][:, : 2 * blocks].reshape(len(rows), 2, blocks)
        shares = both.transpose(0, 2, 1).reshape(len(rows), 2 * blocks)
        places = [block + offset for block in range(blocks) for offset in (-0.25, 0.25)]
        parts = [f"{half} of block {block}" for block in range(blocks) for half in ("attention", "MLP")]
    figure = go.Figure(_heatmap(np.round(shares.astype(float), 6).tolist(), places, labels, parts))
    figure.update_xaxes(**block_axis(blocks))
    figure.update_yaxes(
        tickvals=labelled,
        ticktext=[f"<b>▶ {labels[index]}</b>" if index == marked else labels[index] for index in labelled],
        tickfont={"size": 12},
        showgrid=False,
    )
    if marked is not None:
        figure.add_shape(
            type="rect",
            x0=-0.5,
            x1=blocks - 0.5,
            y0=marked - 0.5,
            y1=marked + 0.5,
            line={"color": INK, "width": 2},
        )
    subtitle = "One row a trial, with its overall sparsity"
    if columns.has_halves:
        subtitle += "; of each block its attention, then its MLP"
    subtitle += "<br>▶ and frame: the selected schedule" if marked is not None else "<br>none is selected yet"
    if len(rows) < len(front):
        subtitle += f"<br>drawn: {len(rows)} of {len(front)}, evenly spread along the front"
    height = 175 + round(min(24.0, 720 / len(rows)) * max(3, len(rows)))
    return styled(figure, title, subtitle, height=height)


def selected_schedules_figure(selected: Mapping[str, tuple[int, Sequence[float]]]) -> go.Figure:
    """Draws the schedules that several studies selected: a row each, and a column for each block.

    Args:
        selected: Number and schedule of the trial that each study selected, by the study's name.
    """
    title = "Selected schedules"
    if not selected:
        return empty_figure(title, "None of these studies has selected a trial.")
    parts_of = {name: halves(schedule) for name, (_, schedule) in selected.items()}
    apart = any(attention != mlp for attention, mlp, _ in parts_of.values())
    blocks = max(len(attention) for attention, _, _ in parts_of.values())
    places = [block + offset for block in range(blocks) for offset in ((-0.25, 0.25) if apart else (0.0,))]
    names = [
        f"{half}block {block}" for block in range(blocks) for half in (("attention of ", "MLP of ") if apart else ("",))
    ]
    rows: list[list[float | None]] = []
    labels = []
    for name, (attention, mlp, keeps_kv) in parts_of.items():
        own = [share for pair in zip(attention, mlp, strict=True) for share in (pair if apart else pair[:1])]
        # A model of fewer blocks has none there.
        rows.append([*own, *[None] * (len(places) - len(own))])
        share = (sum(attention) + sum(mlp)) / (2 * len(attention))
        kept = ", keeps keys and values" if any(keeps_kv) else ""
        labels.append(f"{plain_text(name)}<br>trial {selected[name][0]}: {share:.0%}{kept}")
    figure = go.Figure(_heatmap(rows, places, labels, names))
    figure.update_xaxes(**block_axis(blocks))
    figure.update_yaxes(
        tickvals=list(range(len(rows))), ticktext=labels, tickfont={"size": 12}, showgrid=False, autorange="reversed"
    )
    subtitle = "One row a study, with its trial's overall sparsity"
    subtitle += "; of each block its attention, then its MLP" if apart else ""
    return styled(figure, title, subtitle, height=190 + 44 * len(rows))


def _heatmap(
    shares: Sequence[Sequence[float | None]], places: Sequence[float], labels: Sequence[str], parts: Sequence[str]
) -> go.Heatmap:
    """The shares of tokens that skip each part, a row each schedule."""
    return go.Heatmap(
        z=shares,
        x=places,
        y=list(range(len(shares))),
        zmin=0.0,
        zmax=0.95,
        colorscale=SHARES,
        colorbar={
            "title": {"text": "share of tokens skipped", "side": "right", "font": {"size": 12}},
            "tickvals": [0, 0.25, 0.5, 0.75, 0.95],
            "tickformat": ".0%",
            "thickness": 12,
            "outlinewidth": 0,
        },
        customdata=[[f"{label}<br>{what}" for what in parts] for label in labels],
        hovertemplate="%{customdata}: %{z:.0%} of tokens skip it<extra></extra>",
        hoverongaps=False,
        xgap=1,
        ygap=1,
    )


def _rows(found: Found, places: Places, chosen: int | None) -> Places:
    """Places in the order of overall sparsity: so many as can be read, evenly spread, and the chosen one."""
    columns = found.columns
    places = places[np.lexsort((columns.number[places], columns.overall_sparsity[places]))]
    kept = np.arange(len(places)) % -(-len(places) // _MOST_ROWS) == 0
    return np.asarray(places[kept if chosen is None else kept | (places == chosen)])


def parallel_figure(found: Found, cost: str) -> go.Figure:
    """Draws a line for each trial through the shares of its blocks, its cost and its KL: the front, and some others.

    Args:
        found: Trials of the study.
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
    axis, kl = Axis(cost), found.values("kl")[shown]
    dimensions: list[dict[str, Any]] = [
        {"label": str(block), "values": found.columns.schedule[shown, block].tolist(), "range": [0, 1]}
        for block in range(found.columns.n_blocks)
    ]
    dimensions += [
        {"label": axis.title, "values": axis.shown(found.values(cost)[shown]).tolist()},
        {"label": "KL", **_kl_dimension(kl, LogScale.of(kl))},
    ]
    figure = go.Figure(
        go.Parcoords(
            dimensions=dimensions,
            line={"color": on_front.tolist(), "colorscale": [[0, LESS], [1, _COLOUR]], "cmin": 0, "cmax": 1},
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


def _kl_dimension(kl: Floats, scale: LogScale | None) -> dict[str, Any]:
    """The axis of KL in parallel coordinates, which know no logarithmic ones."""
    if scale is None:
        return {"values": kl.tolist()}
    steps = (1, 3) if scale.top < 1e3 * scale.floor else (1,)
    decades = range(math.floor(math.log10(scale.floor)), math.ceil(math.log10(scale.top)) + 1)
    ticks = [tick for power in decades for step in steps if scale.floor < (tick := step * 10.0**power) <= scale.top]
    shown = {math.log10(tick): f"{tick:.4g}" for tick in ticks}
    if scale.has_lower:
        shown = {math.log10(scale.rail): "lower"} | shown
    return {"values": np.log10(scale.drawn(kl)).tolist(), "tickvals": [*shown], "ticktext": [*shown.values()]}


def schedule_figure(schedule: Sequence[float], number: int) -> go.Figure:
    """Draws the share of tokens that skip each block, a bar for each, or two where its halves skip apart.

    Args:
        schedule: Share of tokens skipped, one per block, or apart for attention and MLPs (`Halves`).
        number: Number of the trial that it is of.
    """
    blocks = list(range(n_blocks(schedule)))
    attention, mlp, keeps_kv = halves(schedule)
    kept = " and keep keys and values" if any(keeps_kv) else ""
    parts = [("it", attention, _COLOUR)]
    if attention != mlp or kept:
        parts = [(f"attention{kept}", attention, _COLOUR), ("MLP", mlp, VARIANT_COLOURS["dynamic"])]
    figure = go.Figure(
        [
            go.Bar(
                x=blocks,
                y=list(shares),
                name=what,
                marker={"color": colour},
                hovertemplate=f"block %{{x}}: %{{y:.0%}} of tokens skip {what}<extra></extra>",
            )
            for what, shares, colour in parts
        ]
    )
    figure.update_xaxes(**block_axis(len(blocks)))
    figure.update_yaxes(title="share of tokens skipped", tickformat=".0%", range=[0, 1])
    return styled(figure, f"Schedule of trial {number}", "", height=260).update_layout(showlegend=len(parts) > 1)
