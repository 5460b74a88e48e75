"""The figure that compares dense, uniform, static, dynamic and refined over all test items."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from dashboards.analysis.records import NAMED_VARIANTS, VARIANT_TITLES
from dashboards.figures.appearance import INKED, VARIANT_COLOURS, LogScale, empty_figure, styled, variant_marker
from dashboards.figures.marks import (
    Range,
    accuracy_range,
    all_have_accuracy,
    error_bars,
    hover,
    kl_range,
    kl_scale,
    latency_range,
    shown_range,
    span,
)
from studies import Measurement
from studies.analysis.shortened_prompt import is_uniform

_TITLE = "Dense, uniform, static, dynamic, refined"
# Share of an axis that the numbers above marks need.
_NUMBERS = 0.13
# Grey is read on white and on black.
_WHISKERS: dict[str, Any] = {"color": "#808080", "thickness": 1.5, "width": 5}


def comparison_figure(
    measurements: Sequence[Measurement],
    selected: Measurement | None = None,
    titles: Mapping[str, str] = VARIANT_TITLES,
    chance: float | None = None,
) -> go.Figure:
    """Draws KL, accuracy where data has choices, and latency of dense, uniform, static, dynamic and refined.

    KL is drawn as bars from 0, or, where it spans more than a decade and a half, as points on a logarithmic axis, on
    which the length of a bar would mean nothing.

    Args:
        measurements: Results on test items; candidates of the front are left out.
        selected: The selected point, whose name is bold.
        titles: Title of each variant.
        chance: Accuracy of guessing, which gets a line; None where it is not known.
    """
    shown = [m for variant in NAMED_VARIANTS for m in measurements if m.variant == variant]
    if not shown:
        return empty_figure(_TITLE, "Nothing has been measured yet.")
    by_accuracy = all_have_accuracy(shown)
    panels = ["KL to dense, nats per token<br>(lower is better)"]
    guessing = "" if chance is None else f"; dotted: chance, {chance:.1%}"
    panels += [f"Accuracy<br>(higher is better{guessing})"] if by_accuracy else []
    panels += ["Measured latency, ms<br>(lower is better)"]
    figure = make_subplots(rows=1, cols=len(panels), subplot_titles=panels, horizontal_spacing=0.07)
    last, scale = len(panels), kl_scale(shown)
    for m in shown:
        said = hover(m, titles)
        _add_mark(figure, m, kl_range(m), f"{m.kl:.3g}", 1, said, scale)
        if by_accuracy:
            _add_mark(figure, m, accuracy_range(m), f"{m.accuracy:.1%}", 2, said)
        _add_mark(figure, m, latency_range(m), f"{m.latency_ms:.1f}", last, said)
    if scale is None:
        top = max(kl_range(m)[2] for m in shown)
        figure.update_yaxes(range=[0, top / (1 - _NUMBERS) or 1.0], tickformat="~g", row=1, col=1)
    else:
        figure.update_yaxes(**scale.axis(_NUMBERS), row=1, col=1)
        scale.mark(figure, row=1, col=1)
    if by_accuracy:
        if chance is not None:
            figure.add_hline(chance, line={"dash": "dot", "width": 1.5}, layer="below", row=1, col=2)
        figure.update_yaxes(
            tickformat=".0%", range=[0, 1 / (1 - _NUMBERS)], tickvals=[0, 0.25, 0.5, 0.75, 1], row=1, col=2
        )
    figure.update_yaxes(range=[0, max(m.latency_high_ms for m in shown) / (1 - _NUMBERS)], row=1, col=last)
    names, labels = [m.variant for m in shown], [_label(m, m is selected) for m in shown]
    # Marks alone would take less room than bars, and cut off what stands above the last one.
    figure.update_xaxes(range=[-0.6, len(names) - 0.4])
    figure.update_xaxes(showgrid=False, tickvals=names, ticktext=labels, tickangle=0, tickfont_size=11)
    figure.update_annotations(font_size=13)
    whiskers = "95% intervals; of latency, quartiles" if by_accuracy or shown[0].kl_low is not None else "quartiles"
    subtitle = f"{_sparsities(shown)}<br>n = {span([m.n_items for m in shown])} test items; whiskers: {whiskers}"
    subtitle += f"<br>KL {scale.note}" if scale is not None and scale.note else ""
    figure = styled(figure, _TITLE, subtitle, height=430, panels=True)
    return figure.update_layout(showlegend=False, margin_b=40)


def _label(m: Measurement, is_selected: bool) -> str:
    label = f"<b>{m.variant}</b>" if is_selected else m.variant
    # A name of a search's find is no name for what no search has found.
    is_named = m.variant in ("static", "refined") and is_uniform(m.schedule)
    return f"{label}<br>{'uniform' if any(m.schedule) else 'dense'}" if is_named else label


def _sparsities(shown: Sequence[Measurement]) -> str:
    """The overall sparsity of what is compared; each by itself where they differ, for then it is no fair comparison."""
    pruned = {m.variant: f"{m.overall_sparsity:.1%}" for m in shown if m.variant != "dense"}
    if len(set(pruned.values())) <= 1:
        return f"All pruned at {next(iter(pruned.values()))} overall sparsity" if pruned else "Nothing pruned"
    return "Overall sparsity: " + ", ".join(f"{variant} {share}" for variant, share in pruned.items())


def _add_mark(
    figure: go.Figure, m: Measurement, ends: Range, number: str, panel: int, said: str, scale: LogScale | None = None
) -> None:
    """Add a bar, or a point on a logarithmic axis, and its number above."""
    low, middle, high = shown_range(ends, scale)
    common: dict[str, Any] = {
        "x": [m.variant],
        "y": [middle],
        "error_y": error_bars([(low, middle, high)]) | _WHISKERS,
        "name": m.variant,
        "hovertext": [said],
        "hoverinfo": "text",
        "meta": INKED if m.variant == "dense" else None,
    }
    if scale is None:
        figure.add_bar(**common, width=0.62, marker={"color": VARIANT_COLOURS[m.variant]}, row=1, col=panel)
    else:
        figure.add_scatter(**common, mode="markers", marker=variant_marker(m.variant, 13), row=1, col=panel)
    # The number stands above the whisker, which would cross a label of the mark's own, and above the mark itself where
    # there is none: text keeps clear of a mark of its own trace, which is not seen here.
    figure.add_scatter(
        x=[m.variant],
        y=[high],
        mode="markers+text",
        marker={"size": 0 if scale is None else 16, "opacity": 0},
        text=[number],
        textposition="top center",
        name=f"{m.variant} number",
        hoverinfo="skip",
        row=1,
        col=panel,
    )
