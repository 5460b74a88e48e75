"""Figures of how a search went: the front's growth, who proposed, how busy its workers were, which blocks matter."""

from __future__ import annotations

import numpy as np
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from dashboards.analysis.tables import counted
from dashboards.analysis.trials import Ablations, Found, Timeline
from dashboards.figures.appearance import INK, VARIANT_COLOURS, empty_figure, plain_text, styled
from dashboards.figures.proposed import Credit, drawn_credits, volume_axis
from studies import Trial
from studies.records.objectives import DEFAULT_COST, objective

_WINDOWS = 24
# Bars with a label, and the KL, in nats per token, below which it only says so.
_MOST_LABELLED, _LEAST_LABELLED = 16, 0.01
_COLOUR = VARIANT_COLOURS["static"]
# Heights of a worker's row, of all rows at most, of the panels below and of the space between.
_ROW_PX, _MOST_ROWS_PX, _PANEL_PX, _GAP_PX = 18, 480, 210, 64


def growth_figure(found: Found, by_seconds: bool = False) -> go.Figure:
    """The front's hypervolume over trials, or over time.

    Args:
        found: The trials.
        by_seconds: Over seconds since the first trial began, pauses included.
    """
    growth = found.growth
    title = f"Hypervolume over {'seconds' if by_seconds else 'trials'}"
    if growth is None:
        return empty_figure(title, "No trial has finished on the whole search set.")
    cost = objective(found.objectives[1])
    at = growth.seconds if by_seconds else growth.counted
    last = growth.last_s if by_seconds else growth.n_comparable
    volume = growth.volume / cost.per_unit
    figure = go.Figure(
        go.Scatter(
            x=[*at.tolist(), last],
            y=[*volume.tolist(), float(volume[-1]) if len(volume) else 0.0],
            mode="lines",
            line={"color": _COLOUR, "shape": "hv", "width": 2},
            hovertemplate=f"after %{{x:.4~g}} {'s' if by_seconds else 'trials'}: %{{y:.4g}}<extra></extra>",
        )
    )
    figure.update_xaxes(title="seconds since the first trial began" if by_seconds else "comparable trials")
    figure.update_yaxes(title=volume_axis(found.objectives), rangemode="tozero")
    kl, corner, *_ = growth.reference
    subtitle = f"Above a corner at KL {kl:.3g}, {cost.text(corner)}<br>{len(at)} trials enlarged it"
    return styled(figure, title, subtitle, height=380).update_layout(showlegend=False, uirevision=title)


def credit_figure(found: Found) -> go.Figure:
    """Each proposer's share of the trials over time, and what its trials added to the front.

    Args:
        found: The trials.
    """
    title, columns = "Who proposed", found.columns
    if not len(found):
        return empty_figure(title, "No trial has ended yet.")
    edges = np.linspace(0, len(found), min(_WINDOWS, len(found)) + 1).astype(int)
    middles, widths = (edges[:-1] + edges[1:]) / 2, np.diff(edges)
    gains = np.zeros(len(columns.proposers))
    growth, cost = found.growth, found.objectives[1] if len(found.objectives) > 1 else DEFAULT_COST
    if growth is not None:
        np.add.at(gains, growth.proposer, np.diff(growth.volume, prepend=0.0) / objective(cost).per_unit)
    totals = np.bincount(columns.proposer, minlength=len(columns.proposers))
    credits = [
        Credit(
            columns.proposers[number],
            (np.add.reduceat((columns.proposer == number).astype(float), edges[:-1]) / widths).tolist(),
            int(totals[number]),
            float(gains[number]),
        )
        for number in np.argsort(-totals)
    ]
    subtitle = f"{len(found)} trials; anchors, the initial design, have no bar on the right"
    figure = drawn_credits(credits, middles.tolist(), widths.tolist(), cost, title, subtitle)
    return figure.update_layout(uirevision=title)


def busy_figure(found: Found, workers: int | None) -> go.Figure:
    """When each worker was busy, how many evaluations went on at a time, and how many trials ended per second.

    Workers have a row each where trials know theirs. Those of earlier versions do not: of these it is worked out how
    many evaluations went on, from when they ended and how long they took.

    Args:
        found: The trials.
        workers: How many workers the study has; None if that is not known.
    """
    title = "How busy the workers were"
    at, evaluations, rate = found.busy()
    if not len(at):
        return empty_figure(title, "No trial has ended yet.")
    timeline = found.timeline()
    panels = ("Evaluations at a time", "Trials per second")
    row, height = 1, 360
    if timeline is None:
        figure = make_subplots(rows=1, cols=2, subplot_titles=panels)
    else:
        row, rows_px = 2, min(_MOST_ROWS_PX, max(_ROW_PX * len(timeline.workers), 2 * _ROW_PX))
        figure = make_subplots(
            rows=2,
            cols=2,
            specs=[[{"colspan": 2}, None], [{}, {}]],
            subplot_titles=("Each worker: the darker, the busier", *panels),
            row_heights=[rows_px, _PANEL_PX],
            vertical_spacing=_GAP_PX / (rows_px + _GAP_PX + _PANEL_PX),
        )
        height += rows_px + _GAP_PX
        _add_workers(figure, timeline)
    for col, values in ((1, evaluations), (2, rate)):
        figure.add_scatter(
            x=at.tolist(),
            y=values.tolist(),
            mode="lines",
            line={"color": _COLOUR, "width": 1.5},
            fill="tozeroy",
            hovertemplate="%{x:.4~g} s: %{y:.3~g}<extra></extra>",
            row=row,
            col=col,
        )
    if workers:
        figure.add_hline(y=workers, line={"color": INK, "width": 1, "dash": "dot"}, row=row, col=1)
        figure.update_yaxes(range=[0, 1.1 * max(workers, float(evaluations.max()))], row=row, col=1)
    figure.update_xaxes(title="seconds since the first trial began", row=row)
    figure.update_yaxes(rangemode="tozero", row=row)
    figure.update_annotations(font_size=13)
    share = "" if not workers else f"; dotted: {workers} workers, {evaluations.mean() / workers:.0%} busy on average"
    subtitle = f"Averages over {at[1] - at[0]:.3g} s each{share}<br>{_known_of(timeline)}"
    return styled(figure, title, subtitle, height=height, panels=True).update_layout(showlegend=False, uirevision=title)


def _add_workers(figure: go.Figure, timeline: Timeline) -> None:
    names = [plain_text(name) for name in timeline.workers]
    figure.add_heatmap(
        x=timeline.at.tolist(),
        y=names,
        z=np.round(timeline.busy, 3).tolist(),
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
    figure.update_yaxes(title="worker", type="category", autorange="reversed", showgrid=False, row=1, col=1)
    figure.update_xaxes(showgrid=False, row=1, col=1)


def _known_of(timeline: Timeline | None) -> str:
    """What the figure knows of who evaluated what."""
    worked_out = "worked out from<br>when each ended and how long it took"
    if timeline is None:
        return f"no trial knows its worker: {worked_out}"
    if timeline.n_unknown:
        return f"in no row: {counted(timeline.n_unknown, 'trial')} of unknown workers, {worked_out}"
    return "by the workers' own clocks, evaluations that failed included"


def importance_figure(found: Found) -> go.Figure:
    """What blocks harm by themselves; where a search did not evaluate that, a linear fit of KL over all trials.

    Args:
        found: The trials.
    """
    title, importance = "Which blocks matter", found.importance
    if found.alone is not None:
        return _alone_figure(found.alone, title)
    if importance is None:
        needed = 3 * (found.columns.n_blocks + 1)
        return empty_figure(title, f"Too few trials to tell: it takes {needed} that finished.")
    blocks = list(range(len(importance.effect)))
    figure = go.Figure(
        go.Bar(
            x=blocks,
            y=importance.effect.tolist(),
            error_y={"type": "data", "array": (1.96 * importance.error).tolist(), "thickness": 1, "width": 3},
            marker={"color": _COLOUR},
            hovertemplate="block %{x}: %{y:.3g}<extra></extra>",
        )
    )
    figure.update_xaxes(title="block", dtick=1 if len(blocks) <= 16 else 4, showgrid=False)
    figure.update_yaxes(title="growth of log(KL + 0.02)")
    subtitle = (
        f"As all tokens skip the block rather than none:<br>a linear fit to {importance.n} trials, "
        f"R² {importance.r2:.2f}; whiskers: 95% intervals<br>the trials of a search are no random sample"
    )
    return styled(figure, title, subtitle, height=400).update_layout(showlegend=False, uirevision=title)


def _alone_figure(alone: Ablations, title: str) -> go.Figure:
    few, together = len(alone.first) <= _MOST_LABELLED, alone.last > alone.first
    blocks = [
        f"block {first} alone" if first == last else f"blocks {first} to {last} together"
        for first, last in zip(alone.first.tolist(), alone.last.tolist(), strict=True)
    ]
    figure = go.Figure(
        go.Bar(
            x=((alone.first + alone.last) / 2).tolist(),
            y=alone.kl.tolist(),
            width=(alone.last - alone.first + 0.8).tolist(),
            customdata=blocks,
            marker={"color": _COLOUR},
            text=list(map(_label, alone.kl.tolist())) if few else None,
            textposition="outside",
            textangle=0,
            cliponaxis=False,
            hovertemplate="%{customdata}: KL %{y:.3g}<extra></extra>",
        )
    )
    figure.update_xaxes(title="block", dtick=1 if few else 4, showgrid=False)
    figure.update_yaxes(title="KL to dense, nats per token", rangemode="tozero")
    subtitle = (
        f"KL as {alone.sparsity:.0%} of the tokens skip this block alone"
        f"{', or the neighbours under one bar together' if together.any() else ''}<br>"
        "that blocks stand in for each other, it does not show"
    )
    return styled(figure, title, subtitle, height=400).update_layout(showlegend=False, uirevision=title)


def _label(kl: float) -> str:
    return f"{kl:.2g}" if kl >= _LEAST_LABELLED else f"<{_LEAST_LABELLED:g}"


def schedule_figure(trial: Trial) -> go.Figure:
    """What a trial skips, a bar for each block.

    Args:
        trial: The trial.
    """
    blocks = list(range(len(trial.schedule)))
    figure = go.Figure(
        go.Bar(
            x=blocks,
            y=list(trial.schedule),
            marker={"color": _COLOUR},
            hovertemplate="block %{x}: %{y:.0%} of tokens skip it<extra></extra>",
        )
    )
    figure.update_xaxes(title="block", dtick=1 if len(blocks) <= 16 else 4, showgrid=False)
    figure.update_yaxes(title="share of tokens skipped", tickformat=".0%", range=[0, 1])
    return styled(figure, f"Schedule of trial {trial.number}", "", height=260).update_layout(showlegend=False)
