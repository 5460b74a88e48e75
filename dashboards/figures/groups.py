"""The figure of accuracy by group of items."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import plotly.graph_objects as go

from dashboards.analysis.records import NAMED_VARIANTS, VARIANT_TITLES
from dashboards.figures.appearance import INKED, empty_figure, hollow_marker, plain_text, styled, variant_marker
from dashboards.figures.marks import error_bars
from studies.records.records import GroupAccuracy


def groups_figure(
    groups: Sequence[GroupAccuracy], selected: str | None, titles: Mapping[str, str] = VARIANT_TITLES
) -> go.Figure:
    """Draws accuracy by group of items, dense and the selected variant in full, the others hollow.

    Args:
        groups: Groups in the order to draw them in.
        selected: Name of the selected variant; None draws all alike.
        titles: Title of each variant.
    """
    title = "Accuracy by group of items"
    if not groups:
        return empty_figure(title, "The data has no groups, or no choices.")
    variants = [variant for variant in NAMED_VARIANTS if any(variant in one.accuracy for one in groups)]
    named = {variant: plain_text(titles[variant]) for variant in variants}
    figure = go.Figure()
    for place, variant in enumerate(variants):
        known = [(index, one) for index, one in enumerate(groups) if variant in one.accuracy]
        # Side by side, or whiskers would cover each other.
        offset = 0.13 * (place - (len(variants) - 1) / 2)
        values = [one.accuracy[variant] for _, one in known]
        ends = [one.interval.get(variant, (value, value)) for (_, one), value in zip(known, values, strict=True)]
        figure.add_scatter(
            x=[index + offset for index, _ in known],
            y=values,
            error_y=error_bars([(low, value, high) for (low, high), value in zip(ends, values, strict=True)]),
            mode="markers",
            name=f"{named[variant]} (selected)" if variant == selected else named[variant],
            marker=(variant_marker if selected in (None, variant) or variant == "dense" else hollow_marker)(
                variant, 11
            ),
            hovertext=[
                f"<b>{named[variant]}</b><br>{plain_text(one.group)}, n = {one.n_items}<br>"
                f"accuracy {value:.1%} [{low:.1%}, {high:.1%}]"
                for (_, one), value, (low, high) in zip(known, values, ends, strict=True)
            ],
            hoverinfo="text",
            meta=INKED if variant == "dense" else None,
        )
    figure.update_xaxes(
        tickvals=list(range(len(groups))),
        ticktext=[f"{plain_text(_shortened(one.group))}<br>n = {one.n_items}" for one in groups],
        range=[-0.6, len(groups) - 0.4],
        showgrid=False,
    )
    lowest = min(low for one in groups for low, _ in one.interval.values()) if any(g.interval for g in groups) else 0.0
    figure.update_yaxes(title="accuracy (higher is better)", tickformat=".0%", range=[max(0.0, lowest - 0.05), 1.03])
    return styled(figure, title, "Test items; whiskers: 95% Wilson intervals", height=440).update_layout(margin_b=120)


def _shortened(text: str) -> str:
    """A name that leaves room for others on an axis."""
    return text if len(text) <= 24 else f"{text[:23]}…"
