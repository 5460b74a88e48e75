"""The figure of how sensitive a model is to what each block skips."""

from __future__ import annotations

import plotly.graph_objects as go

from dashboards.analysis.sensitivities import Ablations, ablations, importance
from dashboards.analysis.trials import Found
from dashboards.figures.appearance import VARIANT_COLOURS, block_axis, empty_figure, styled

# Bars with a label, and the KL, in nats per token, below which it only says so.
_MOST_LABELLED, _LEAST_LABELLED = 16, 0.01
_TITLE = "Which blocks matter"
_COLOUR = VARIANT_COLOURS["static"]


def sensitivities_figure(found: Found) -> go.Figure:
    """Draws the KL that blocks cause by themselves; where a search did not evaluate that, a linear fit over all trials.

    Args:
        found: Trials of the study.
    """
    alone = ablations(found)
    if alone is not None:
        return _alone_figure(alone)
    fit = importance(found)
    if fit is None:
        needed = 3 * (found.columns.n_blocks + 1)
        return empty_figure(_TITLE, f"Too few trials to tell: it takes {needed} that finished.")
    subtitle = (
        f"As all tokens skip the block rather than none:<br>a linear fit to {fit.n} trials, "
        f"R² {fit.r2:.2f}; whiskers: 95% intervals<br>the trials of a search are no random sample"
    )
    bars = go.Bar(
        x=list(range(len(fit.effect))),
        y=fit.effect.tolist(),
        error_y={"type": "data", "array": (1.96 * fit.error).tolist(), "thickness": 1, "width": 3},
        marker={"color": _COLOUR},
        hovertemplate="block %{x}: %{y:.3g}<extra></extra>",
    )
    return _bar_figure(bars, {"title": "growth of log(KL + 0.02)"}, subtitle)


def _alone_figure(alone: Ablations) -> go.Figure:
    together = alone.last > alone.first
    blocks = [
        f"block {first} alone" if first == last else f"blocks {first} to {last} together"
        for first, last in zip(alone.first.tolist(), alone.last.tolist(), strict=True)
    ]
    bars = go.Bar(
        x=((alone.first + alone.last) / 2).tolist(),
        y=alone.kl.tolist(),
        width=(alone.last - alone.first + 0.8).tolist(),
        customdata=blocks,
        marker={"color": _COLOUR},
        text=list(map(_label, alone.kl.tolist())) if len(alone.first) <= _MOST_LABELLED else None,
        textposition="outside",
        textangle=0,
        cliponaxis=False,
        hovertemplate="%{customdata}: KL %{y:.3g}<extra></extra>",
    )
    subtitle = (
        f"KL as {alone.sparsity:.0%} of the tokens skip this block alone"
        f"{', or the neighbours under one bar together' if together.any() else ''}<br>"
        "that blocks stand in for each other, it does not show"
    )
    return _bar_figure(bars, {"title": "KL to dense, nats per token", "rangemode": "tozero"}, subtitle)


def _bar_figure(bars: go.Bar, upwards: dict[str, str], subtitle: str) -> go.Figure:
    figure = go.Figure(bars).update_xaxes(**block_axis(len(bars.x))).update_yaxes(**upwards)
    return styled(figure, _TITLE, subtitle, height=400).update_layout(showlegend=False)


def _label(kl: float) -> str:
    return f"{kl:.2g}" if kl >= _LEAST_LABELLED else f"<{_LEAST_LABELLED:g}"
