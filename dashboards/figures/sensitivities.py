"""The figure of how sensitive a model is to what each block skips."""

from __future__ import annotations

from typing import Any

import numpy as np
import plotly.graph_objects as go

from dashboards.analysis.axes import Floats
from dashboards.analysis.sensitivities import Ablations, Importance, ablations, importance, trials_needed
from dashboards.analysis.trials import Found
from dashboards.figures.appearance import VARIANT_COLOURS, block_axis, empty_figure, styled

# Bars with a label, and the KL, in nats per token, below which it only says so.
_MOST_LABELLED, _LEAST_LABELLED = 16, 0.01
_TITLE = "Which blocks matter"
_COLOURS = {
    "block": VARIANT_COLOURS["static"],
    "attention": VARIANT_COLOURS["static"],
    "MLP": VARIANT_COLOURS["dynamic"],
}
# Effects are of so many more tokens that skip a part.
_STEP = 0.1


def sensitivities_figure(found: Found) -> go.Figure:
    """Draws the KL that blocks cause by themselves; where a search did not evaluate that, a linear fit over all trials.

    Where attention and MLP skip apart, each has a bar. Fitted effects have 95 % intervals, and are relative to the mean
    block where the study has a target.

    Args:
        found: Trials of the study.
    """
    alone = ablations(found)
    if alone is not None:
        return _alone_figure(alone, found.columns.n_blocks)
    fit = importance(found)
    if fit is None:
        return empty_figure(_TITLE, f"Too few trials to tell: it takes {trials_needed(found)} below 1 nat.")
    if not np.isfinite(fit.effect).any():
        return empty_figure(_TITLE, "The trials skip the same blocks together: they do not tell.")
    return _fit_figure(fit, found.columns.n_blocks)


def _fit_figure(fit: Importance, n_blocks: int) -> go.Figure:
    figure = go.Figure()
    part = "half of a block" if fit.halves else "block"
    against = f" against the mean {part}" if fit.is_relative else ""
    known = np.flatnonzero(np.isfinite(fit.effect))
    for name, own in _by_kind(known, fit.halves):
        effect, low, high = (_STEP * ends[own] for ends in (fit.effect, fit.low, fit.high))
        figure.add_bar(
            x=_middle(own, own, fit.halves).tolist(),
            y=effect.tolist(),
            width=_width(own, own, fit.halves).tolist(),
            name=name,
            error_y={
                "type": "data",
                "symmetric": False,
                "array": (high - effect).tolist(),
                "arrayminus": (effect - low).tolist(),
                "thickness": 1,
                "width": 3,
            },
            customdata=[
                f"{part_name(place, fit.halves)}: {value:+.3g} [{a:+.3g}, {b:+.3g}] nats per token{against}"
                for place, value, a, b in zip(own.tolist(), effect, low, high, strict=True)
            ],
            marker={"color": _COLOURS[name]},
            hovertemplate="%{customdata}<extra></extra>",
        )
    subtitle = (
        f"KL as {_STEP:.0%} more of the tokens skip it{against}<br>"
        f"linear fit to {fit.n} trials below 1 nat, R² {fit.r2:.2f}; whiskers: 95% intervals<br>"
        "the trials of a search are no random sample"
    )
    if len(known) < len(fit.effect):
        subtitle += f"<br>no bar: {len(fit.effect) - len(known)} that these trials do not tell from others"
    return _bar_figure(
        figure, {"title": f"KL, nats per token<br>{against.strip()}".removesuffix("<br>")}, subtitle, n_blocks
    )


def _alone_figure(alone: Ablations, n_blocks: int) -> go.Figure:
    together = alone.last > alone.first
    names = [
        _group_name(first, last, alone.halves)
        for first, last in zip(alone.first.tolist(), alone.last.tolist(), strict=True)
    ]
    figure, is_labelled = go.Figure(), len(alone.first) <= _MOST_LABELLED
    single = np.flatnonzero(~together) if alone.halves else np.arange(len(together))
    groups = [(name, single[np.isin(alone.first[single], own)]) for name, own in _by_kind(alone.first, alone.halves)]
    # A group of neighbours is of neither kind.
    groups += [("block", np.flatnonzero(together))] if alone.halves else []
    for name, own in groups:
        if not len(own):
            continue
        figure.add_bar(
            x=_middle(alone.first[own], alone.last[own], alone.halves).tolist(),
            y=alone.kl[own].tolist(),
            width=_width(alone.first[own], alone.last[own], alone.halves).tolist(),
            name="neighbours" if alone.halves and name == "block" else name,
            customdata=[names[place] for place in own.tolist()],
            marker={"color": VARIANT_COLOURS["candidate"] if alone.halves and name == "block" else _COLOURS[name]},
            text=list(map(_label, alone.kl[own].tolist())) if is_labelled else None,
            textposition="outside",
            textangle=0,
            cliponaxis=False,
            hovertemplate="%{customdata}: KL %{y:.3g} nats per token<extra></extra>",
        )
    part = "this half" if alone.halves else "this block"
    share = "" if alone.fidelity == 1 else f", on {alone.fidelity:.0%} of the search set"
    subtitle = (
        f"KL as {alone.sparsity:.0%} of the tokens skip {part} alone"
        f"{', or the neighbours under one bar together' if together.any() else ''}{share}<br>"
        "one evaluation each: no interval is known<br>"
        "that blocks stand in for each other, it does not show"
    )
    return _bar_figure(figure, {"title": "KL to dense, nats per token", "rangemode": "tozero"}, subtitle, n_blocks)


def _by_kind(parts: Any, halves: bool) -> list[tuple[str, Any]]:
    """Parts by what they are: whole blocks, or attention and MLPs."""
    return [("attention", parts[parts % 2 == 0]), ("MLP", parts[parts % 2 == 1])] if halves else [("block", parts)]


def part_name(part: int, halves: bool) -> str:
    """The name of a block, or of a half of one."""
    return f"{('attention', 'MLP')[part % 2]} of block {part // 2}" if halves else f"block {part}"


def _group_name(first: int, last: int, halves: bool) -> str:
    if first == last:
        return f"{part_name(first, halves)} alone"
    ends = [part_name(first, halves), part_name(last, halves)] if halves else [f"blocks {first}", str(last)]
    return f"{' to '.join(ends)} together"


def _middle(first: Any, last: Any, halves: bool) -> Floats:
    """Where the bar of neighbouring parts stands on the axis of blocks."""
    middle = (first + last) / 2
    # Two parts of a block stand within its unit: at -0.25 and 0.25 of its number.
    return np.asarray(middle / 2 - 0.25 if halves else middle)


def _width(first: Any, last: Any, halves: bool) -> Floats:
    return np.asarray((last - first + 0.8) / (2 if halves else 1))


def _bar_figure(figure: go.Figure, upwards: dict[str, str], subtitle: str, n_blocks: int) -> go.Figure:
    figure.update_xaxes(**block_axis(n_blocks), range=[-0.6, n_blocks - 0.4]).update_yaxes(**upwards)
    figure.update_layout(barmode="overlay")
    return styled(figure, _TITLE, subtitle, height=420).update_layout(showlegend=len(figure.data) > 1)


def _label(kl: float) -> str:
    return f"{kl:.2g}" if kl >= _LEAST_LABELLED else f"<{_LEAST_LABELLED:g}"
