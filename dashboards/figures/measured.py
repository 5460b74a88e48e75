"""Figures of what was measured: the price of a schedule, and who should decide which tokens skip."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from dashboards.data import measured_cost
from dashboards.figures.appearance import (
    INK,
    INKED,
    VARIANT_COLOURS,
    VARIANT_SYMBOLS,
    VARIANT_TITLES,
    empty_figure,
    log_axis,
    log_floor,
    percentages,
    styled,
)
from studies import Measurement
from studies.objectives import COSTS, DEFAULT_COST, objective

_NOTHING = "Nothing has been measured yet."


def pareto_figure(measurements: Sequence[Measurement], chosen_trial: int | None, cost: str = DEFAULT_COST) -> go.Figure:
    """Accuracy against a cost, one trace a variant; KL in place of accuracy where data has no choices.

    Error bars are the 95 % interval of accuracy and the quartiles of latency; what is counted has none.

    Args:
        measurements: What was measured.
        chosen_trial: Number of the chosen trial: ringed and named.
        cost: Which cost to show; measured latency where a measurement does not know it.
    """
    if any(measured_cost(m, cost) is None for m in measurements):
        cost = DEFAULT_COST
    title, is_timed = _cost_title(cost), cost == DEFAULT_COST
    if not measurements:
        return empty_figure(f"Accuracy against {title}", _NOTHING)
    by_accuracy = _all_have_accuracy(measurements)
    figure = go.Figure()
    # The lone points come last, so that the line of the front does not cover them.
    for variant in ("static", "uniform", "dense", "dynamic"):
        points = sorted((m for m in measurements if m.variant == variant), key=lambda m: _cost_shown(m, cost))
        if not points:
            continue
        colour = VARIANT_COLOURS[variant]
        figure.add_scatter(
            x=[_cost_shown(m, cost) for m in points],
            y=[m.accuracy if by_accuracy else m.kl for m in points],
            error_x=_error_bars([_latency_range(m) for m in points]) if is_timed else None,
            error_y=_error_bars([_accuracy_range(m) for m in points]) if by_accuracy else None,
            mode="lines+markers" if variant == "static" else "markers",
            name=VARIANT_TITLES[variant],
            line={"color": colour, "width": 1.5},
            marker={
                "color": colour,
                "symbol": VARIANT_SYMBOLS[variant],
                "size": {"static": 8, "dynamic": 17}.get(variant, 12),
            },
            hovertext=[_hover(m) for m in points],
            hoverinfo="text",
            meta=INKED if variant == "dense" else None,
        )
    _ring_chosen(figure, measurements, chosen_trial, by_accuracy, cost)
    figure.update_xaxes(title=f"{title}, {objective(cost).unit} (lower is better)")
    if by_accuracy:
        figure.update_yaxes(title="accuracy (higher is better)", tickformat=".0%")
    else:
        figure.update_yaxes(title="KL to dense, nats per token (lower is better)")
    quality = "Accuracy" if by_accuracy else "KL"
    return styled(figure, f"{quality} against {title}", _conditions(measurements, is_timed), height=520)


def comparison_figure(measurements: Sequence[Measurement], chosen_trial: int | None = None) -> go.Figure:
    """KL and, where data has choices, accuracy of dense, uniform, static and dynamic at the chosen schedule.

    KL is drawn as bars from 0, or, where it spans more than a decade and a half, as points on a logarithmic axis, on
    which the length of a bar would mean nothing.

    Args:
        measurements: What was measured.
        chosen_trial: Which of the static measurements to show; by default the one of the distilled router's schedule.
    """
    if chosen_trial is None:
        chosen_trial = next((m.trial for m in measurements if m.variant == "dynamic"), None)
    shown = [m for m in measurements if m.variant != "static" or m.trial == chosen_trial]
    shown.sort(key=lambda m: list(VARIANT_COLOURS).index(m.variant))
    if not shown:
        return empty_figure("Dense, uniform, static and dynamic", _NOTHING)
    by_accuracy = _all_have_accuracy(shown)
    titles = ["KL to dense, nats per token<br>(lower is better)"]
    titles += ["Accuracy, 95% intervals<br>(higher is better)"] if by_accuracy else []
    figure = make_subplots(rows=1, cols=len(titles), subplot_titles=titles, horizontal_spacing=0.1)
    floor = log_floor(m.kl for m in shown)
    for m in shown:
        _add_kl(figure, m, floor)
        if by_accuracy:
            _add_accuracy(figure, m)
    top = max(m.kl for m in shown)
    if floor is None:
        figure.update_yaxes(range=[0, 1.15 * top or 1.0], row=1, col=1)
    else:
        figure.update_yaxes(**log_axis(floor, 1.5 * top), row=1, col=1)
    if by_accuracy:
        figure.update_yaxes(tickformat=".0%", range=[0, 1.12], tickvals=[0, 0.25, 0.5, 0.75, 1], row=1, col=2)
    figure.update_xaxes(showgrid=False)
    figure.update_annotations(font_size=13)
    subtitle = f"{_sparsities(shown)}<br>n = {_span([m.n_items for m in shown])} test items"
    figure = styled(figure, "Dense, uniform, static and dynamic", subtitle, height=430, panels=True)
    return figure.update_layout(showlegend=False, margin_b=40)


def _all_have_accuracy(measurements: Sequence[Measurement]) -> bool:
    return all(m.accuracy is not None for m in measurements)


def _accuracy_range(m: Measurement) -> tuple[float, float, float]:
    accuracy = m.accuracy or 0.0
    low = accuracy if m.accuracy_low is None else m.accuracy_low
    high = accuracy if m.accuracy_high is None else m.accuracy_high
    return low, accuracy, high


def _latency_range(m: Measurement) -> tuple[float, float, float]:
    return m.latency_low_ms, m.latency_ms, m.latency_high_ms


def _cost_title(cost: str) -> str:
    return "measured latency" if cost == DEFAULT_COST else objective(cost).title


def _cost_shown(m: Measurement, cost: str) -> float:
    """A cost in the unit that people read."""
    return objective(cost).shown(measured_cost(m, cost) or 0.0)


def _error_bars(ranges: Sequence[tuple[float, float, float]]) -> dict[str, Any]:
    """Error bars from (low, middle, high)."""
    return {
        "type": "data",
        "symmetric": False,
        "array": [high - middle for _, middle, high in ranges],
        "arrayminus": [middle - low for low, middle, _ in ranges],
        "thickness": 1,
        "width": 3,
    }


def _span(values: Sequence[int]) -> str:
    low, high = min(values), max(values)
    return f"{low}" if low == high else f"{low} to {high}"


def _conditions(measurements: Sequence[Measurement], is_timed: bool) -> str:
    """What the cost is of and on how many items: without it, no number of the figure means anything."""
    shapes = dict.fromkeys(f"batch {m.batch} × {m.length} tokens" for m in measurements)
    repeats = _span([m.repeats for m in measurements])
    items = _span([m.n_items for m in measurements])
    whiskers = [
        name for name, shown in (("95% interval", _all_have_accuracy(measurements)), ("quartiles", is_timed)) if shown
    ]
    runs = f", median of {repeats} runs" if is_timed else ""
    said = f"; whiskers: {', '.join(whiskers)}" if whiskers else ""
    return f"Prefill of {' and '.join(shapes)}{runs}<br>n = {items} test items{said}"


def _sparsities(shown: Sequence[Measurement]) -> str:
    """The overall sparsity of what is compared; each by itself where they differ, for then it is no fair comparison."""
    pruned = {m.variant: f"{m.overall_sparsity:.1%}" for m in shown if m.variant != "dense"}
    if len(set(pruned.values())) <= 1:
        return f"All pruned at {next(iter(pruned.values()))} overall sparsity" if pruned else "Nothing pruned"
    return "Overall sparsity: " + ", ".join(f"{variant} {share}" for variant, share in pruned.items())


def _hover(m: Measurement) -> str:
    trial = "" if m.trial is None else f", trial {m.trial}"
    low, accuracy, high = _accuracy_range(m)
    counted = [(objective(name), measured_cost(m, name)) for name in COSTS if name != DEFAULT_COST]
    lines = [
        f"<b>{VARIANT_TITLES.get(m.variant, m.variant)}</b>{trial}",
        *([] if m.accuracy is None else [f"accuracy {accuracy:.1%} [{low:.1%}, {high:.1%}]"]),
        f"KL {m.kl:.4g} nats per token, perplexity {m.perplexity:.4g}, n = {m.n_items}",
        f"latency {m.latency_ms:.1f} ms [{m.latency_low_ms:.1f}, {m.latency_high_ms:.1f}], "
        f"batch {m.batch} × {m.length} tokens",
        ", ".join(f"{one.title} {one.text(value)}" for one, value in counted if value is not None),
        f"overall sparsity {m.overall_sparsity:.1%}; % skipped by block:",
        percentages(m.schedule),
    ]
    return "<br>".join(lines)


def _ring_chosen(
    figure: go.Figure, measurements: Sequence[Measurement], chosen_trial: int | None, by_accuracy: bool, cost: str
) -> None:
    ringed = [m for m in measurements if m.variant == "static" and m.trial is not None and m.trial == chosen_trial]
    if not ringed:
        return
    m = ringed[0]
    height = m.accuracy if by_accuracy else m.kl
    figure.add_scatter(
        x=[_cost_shown(m, cost)],
        y=[height],
        mode="markers",
        name="chosen",
        marker={"symbol": "circle-open", "size": 20, "color": INK, "line": {"width": 2}},
        hoverinfo="skip",
        showlegend=False,
        meta=INKED,
    )
    # A front leaves room on its bad side: below it where higher is better, above it where lower is. Near the right
    # edge the text turns to the left.
    costs = [_cost_shown(p, cost) for p in measurements]
    to_the_right = _cost_shown(m, cost) <= min(costs) + 0.6 * (max(costs) - min(costs))
    figure.add_annotation(
        x=_cost_shown(m, cost),
        y=height,
        text=f"<b>chosen: trial {m.trial}</b><br>{m.overall_sparsity:.1%} overall sparsity",
        ax=64 if to_the_right else -64,
        ay=62 if by_accuracy else -62,
        xanchor="left" if to_the_right else "right",
        align="left",
        arrowcolor=INK,
        arrowwidth=1,
        arrowhead=0,
        standoff=11,
        font={"size": 12.5},
    )


def _add_kl(figure: go.Figure, m: Measurement, floor: float | None) -> None:
    colour = VARIANT_COLOURS[m.variant]
    common: dict[str, Any] = {
        "x": [m.variant],
        "text": [f"{m.kl:.3g}"],
        "name": m.variant,
        "hovertext": [_hover(m)],
        "hoverinfo": "text",
        "meta": INKED if m.variant == "dense" else None,
    }
    if floor is None:
        figure.add_bar(**common, y=[m.kl], marker={"color": colour}, width=0.62, textposition="outside", row=1, col=1)
        return
    figure.add_scatter(
        **common,
        # A KL of 0 has no place on the axis: it stands at the bottom, with its number beside it.
        y=[max(m.kl, floor)],
        mode="markers+text",
        marker={"color": colour, "symbol": VARIANT_SYMBOLS[m.variant], "size": 13},
        textposition="top center",
        row=1,
        col=1,
    )


def _add_accuracy(figure: go.Figure, m: Measurement) -> None:
    low, accuracy, high = _accuracy_range(m)
    inked = INKED if m.variant == "dense" else None
    figure.add_bar(
        x=[m.variant],
        y=[accuracy],
        width=0.62,
        name=m.variant,
        marker={"color": VARIANT_COLOURS[m.variant]},
        error_y=_error_bars([(low, accuracy, high)]) | {"color": "#808080", "thickness": 1.5, "width": 5},
        hovertext=[_hover(m)],
        hoverinfo="text",
        meta=inked,
        row=1,
        col=2,
    )
    # The number stands above the whisker, which would cross a label of the bar's own.
    figure.add_scatter(
        x=[m.variant],
        y=[high],
        mode="text",
        text=[f"{accuracy:.1%}"],
        textposition="top center",
        name=f"{m.variant} accuracy",
        hoverinfo="skip",
        row=1,
        col=2,
    )
