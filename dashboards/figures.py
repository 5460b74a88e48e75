"""Pictures of a study: pure functions from what was remembered to Plotly figures."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from studies import (
    Measurement,
    RouterRun,
    TrialRecord,
    TrialState,
    front,
    hypervolume_history,
    reference_point,
)

# Okabe and Ito's palette, which colour-blind readers can tell apart; a variant has one colour in every figure.
VARIANT_COLOURS: Mapping[str, str] = {
    "dense": "#000000",
    "uniform": "#E69F00",
    "static": "#0072B2",
    "dynamic": "#D55E00",
}
PROPOSER_COLOURS = ("#0072B2", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
_VARIANT_TITLES: Mapping[str, str] = {
    "dense": "dense",
    "uniform": "uniform sparsity, static router",
    "static": "searched schedules, static router",
    "dynamic": "chosen schedule, distilled router",
}
_SYMBOLS: Mapping[str, str] = {"dense": "diamond", "uniform": "square", "static": "circle", "dynamic": "star"}
_GRID = "#e6e6e6"


def _styled(figure: go.Figure, title: str, subtitle: str = "", height: int = 440) -> go.Figure:
    figure.update_layout(
        template="plotly_white",
        title={"text": title, "subtitle": {"text": subtitle}, "x": 0, "xref": "paper", "xanchor": "left"},
        font={"family": "system-ui, sans-serif", "size": 13},
        legend={"orientation": "h", "y": -0.22, "yanchor": "top", "x": 0, "xanchor": "left"},
        margin={"l": 70, "r": 30, "t": 80, "b": 60},
        height=height,
    )
    figure.update_xaxes(gridcolor=_GRID, zeroline=False, automargin=True)
    figure.update_yaxes(gridcolor=_GRID, zeroline=False, automargin=True)
    return figure


def _percentages(schedule: Sequence[float]) -> str:
    return " ".join(f"{100 * share:.0f}" for share in schedule)


def _measurement_hover(m: Measurement) -> str:
    trial = "" if m.trial is None else f", trial {m.trial}"
    accuracy = (
        ""
        if m.accuracy is None
        else f"accuracy {m.accuracy:.1%} [{m.accuracy_low:.1%}, {m.accuracy_high:.1%}], {m.n_items} items<br>"
    )
    return (
        f"<b>{_VARIANT_TITLES.get(m.variant, m.variant)}</b>{trial}<br>{accuracy}"
        f"KL {m.kl:.4g} nats a token, perplexity {m.perplexity:.4g}<br>"
        f"{m.latency_ms:.1f} ms [{m.latency_low_ms:.1f}, {m.latency_high_ms:.1f}], {m.batch} x {m.length} tokens<br>"
        f"overall sparsity {m.overall_sparsity:.1%}<br>% skipped by block: {_percentages(m.schedule)}"
    )


def pareto_figure(measurements: Sequence[Measurement], chosen_trial: int | None) -> go.Figure:
    """Accuracy against measured latency, one trace a variant; KL in place of accuracy where data has no choices.

    Args:
        measurements: What was measured.
        chosen_trial: Number of the chosen trial, which is ringed.
    """
    by_accuracy = all(m.accuracy is not None for m in measurements) and bool(measurements)

    def height_of(m: Measurement) -> float:
        return m.accuracy if by_accuracy and m.accuracy is not None else m.kl

    figure = go.Figure()
    for variant, colour in VARIANT_COLOURS.items():
        points = sorted((m for m in measurements if m.variant == variant), key=lambda m: m.latency_ms)
        if not points:
            continue
        error_y = None
        if by_accuracy:
            error_y = {
                "array": [(m.accuracy_high or 0) - height_of(m) for m in points],
                "arrayminus": [height_of(m) - (m.accuracy_low or 0) for m in points],
                "thickness": 1,
                "width": 3,
            }
        figure.add_scatter(
            x=[m.latency_ms for m in points],
            y=[height_of(m) for m in points],
            error_x={
                "array": [m.latency_high_ms - m.latency_ms for m in points],
                "arrayminus": [m.latency_ms - m.latency_low_ms for m in points],
                "thickness": 1,
                "width": 3,
            },
            error_y=error_y,
            mode="lines+markers" if variant == "static" else "markers",
            name=_VARIANT_TITLES[variant],
            line={"color": colour, "width": 1},
            marker={"color": colour, "symbol": _SYMBOLS[variant], "size": 14 if variant == "dynamic" else 10},
            hovertext=[_measurement_hover(m) for m in points],
            hoverinfo="text",
        )
    ringed = [m for m in measurements if m.variant == "static" and m.trial is not None and m.trial == chosen_trial]
    if ringed:
        figure.add_scatter(
            x=[m.latency_ms for m in ringed],
            y=[height_of(m) for m in ringed],
            mode="markers",
            name=f"chosen: trial {chosen_trial}",
            marker={"symbol": "circle-open", "size": 22, "color": VARIANT_COLOURS["static"], "line": {"width": 2}},
            hoverinfo="skip",
        )
    subtitle = ""
    if measurements:
        m = measurements[0]
        subtitle = f"prefill of {m.batch} x {m.length} tokens, quartiles of {m.repeats} runs; {m.n_items} test items"
    figure.update_xaxes(title="measured latency, ms (lower is better)")
    if by_accuracy:
        figure.update_yaxes(title="accuracy (higher is better)", tickformat=".0%")
        return _styled(figure, "Accuracy against measured latency", subtitle, 520)
    figure.update_yaxes(title="KL to the dense model, nats a token (lower is better)")
    return _styled(figure, "KL against measured latency", subtitle, 520)


def search_figure(trials: Sequence[TrialRecord]) -> go.Figure:
    """Every finished trial: KL against predicted latency, coloured by proposer, with the front as a staircase."""
    finished = [t for t in trials if t.state is TrialState.FINISHED and t.values is not None]
    figure = go.Figure()
    proposers = list(dict.fromkeys(t.proposer for t in finished))
    for index, proposer in enumerate(proposers):
        own = [t for t in finished if t.proposer == proposer]
        figure.add_scatter(
            x=[t.values[1] for t in own if t.values],
            y=[t.values[0] for t in own if t.values],
            mode="markers",
            name=f"proposed by {proposer}",
            marker={"color": PROPOSER_COLOURS[index % len(PROPOSER_COLOURS)], "size": 6, "opacity": 0.7},
            hovertext=[
                f"trial {t.number}, overall sparsity {t.overall_sparsity:.1%}<br>{_percentages(t.schedule)}"
                for t in own
            ],
            hoverinfo="x+y+text",
        )
    points = sorted(front(trials), key=lambda t: (t.values or (0, 0))[1])
    figure.add_scatter(
        x=[t.values[1] for t in points if t.values],
        y=[t.values[0] for t in points if t.values],
        mode="lines",
        name="front",
        line={"color": "#000000", "width": 1.5, "shape": "hv"},
        hoverinfo="skip",
    )
    figure.update_xaxes(title="predicted latency, ms")
    figure.update_yaxes(title="KL to the dense model, nats a token")
    positive = [t.values[0] for t in finished if t.values and t.values[0] > 0]
    if positive and max(positive) > 50 * min(positive):
        # The dense schedule's KL is 0 up to rounding, and would stretch a logarithmic axis over empty decades.
        floor = max(1e-4, min(positive))
        figure.update_yaxes(type="log", range=[math.log10(floor), math.log10(max(positive)) + 0.1])
    return _styled(figure, "Every schedule that was evaluated", f"{len(finished)} trials, {len(points)} on the front")


def schedule_heatmap(points: Sequence[TrialRecord], chosen_trial: int | None) -> go.Figure:
    """The schedules of a front: a row each, from sparse to dense, a column each block."""
    ordered = sorted(points, key=lambda t: t.overall_sparsity)
    labels = [f"{'▶ ' if t.number == chosen_trial else ''}trial {t.number}: {t.overall_sparsity:.0%}" for t in ordered]
    figure = go.Figure(
        go.Heatmap(
            z=[list(t.schedule) for t in ordered],
            x=list(range(len(ordered[0].schedule))) if ordered else [],
            y=labels,
            zmin=0.0,
            zmax=0.95,
            colorscale="Blues",
            colorbar={"title": {"text": "share of<br>tokens<br>skipped"}, "tickformat": ".0%"},
            hovertemplate="%{y}<br>block %{x}: %{z:.0%} of tokens skip it<extra></extra>",
            xgap=1,
            ygap=1,
        )
    )
    figure.update_xaxes(title="block", dtick=1 if not ordered or len(ordered[0].schedule) <= 16 else 4, showgrid=False)
    # Every row is named up to 30 of them; beyond that the labels would overlap.
    figure.update_yaxes(showgrid=False, tickmode="linear" if len(ordered) <= 30 else "auto")
    height = 220 + 20 * min(30, max(4, len(ordered)))
    return _styled(figure, "Schedules on the front", "▶ marks the chosen one", height)


def hypervolume_figure(trials: Sequence[TrialRecord]) -> go.Figure:
    """How much of the objectives' space the front covers after each finished trial."""
    history = hypervolume_history(trials, reference_point(trials))
    figure = go.Figure(
        go.Scatter(
            x=list(range(1, len(history) + 1)),
            y=history,
            mode="lines",
            line={"color": VARIANT_COLOURS["static"], "shape": "hv"},
            hovertemplate="after %{x} trials: %{y:.4g}<extra></extra>",
        )
    )
    figure.update_xaxes(title="finished trials")
    figure.update_yaxes(title="hypervolume, nats x ms", rangemode="tozero")
    return _styled(figure, "Hypervolume over trials", "flat at the end: more trials would hardly help", 380)


def training_figure(run: RouterRun) -> go.Figure:
    """The losses of a router's training, and its KL on held-out examples."""
    curves = run.curves
    figure = make_subplots(
        rows=1,
        cols=2,
        subplot_titles=("Losses on training batches", "KL on held-out examples"),
        horizontal_spacing=0.12,
    )
    for name, colour in zip(("loss", "distill", "guide", "sparsity"), PROPOSER_COLOURS, strict=False):
        figure.add_scatter(
            x=curves["step"],
            y=curves[name],
            mode="lines",
            name=name,
            line={"color": colour, "width": 1.5},
            row=1,
            col=1,
        )
    figure.add_scatter(
        x=curves["held_out_step"],
        y=curves["held_out_kl"],
        mode="lines+markers",
        name="held-out KL",
        line={"color": VARIANT_COLOURS["dynamic"]},
        row=1,
        col=2,
    )
    figure.update_xaxes(title="step")
    figure.update_yaxes(title="loss", row=1, col=1)
    figure.update_yaxes(title="KL, nats a token", rangemode="tozero", row=1, col=2)
    sparsity = sum(run.schedule) / len(run.schedule)
    subtitle = f"trial {run.trial}, overall sparsity {sparsity:.1%}, {len(curves['step'])} steps in {run.seconds:.0f} s"
    styled = _styled(figure, "Distillation of the router", subtitle, 440)
    styled.update_layout(margin_t=110)
    return styled


def comparison_figure(measurements: Sequence[Measurement], chosen_trial: int | None) -> go.Figure:
    """KL and, where there are choices, accuracy of dense, uniform, static and dynamic at the chosen sparsity."""
    shown = [m for m in measurements if m.variant != "static" or m.trial == chosen_trial]
    shown.sort(key=lambda m: list(VARIANT_COLOURS).index(m.variant))
    by_accuracy = bool(shown) and all(m.accuracy is not None for m in shown)
    titles = ("KL to dense, nats a token (lower is better)", "Accuracy (higher is better)")[: 2 if by_accuracy else 1]
    figure = make_subplots(rows=1, cols=len(titles), subplot_titles=titles, horizontal_spacing=0.12)
    names, colours = [m.variant for m in shown], [VARIANT_COLOURS[m.variant] for m in shown]
    figure.add_bar(
        x=names,
        y=[m.kl for m in shown],
        text=[f"{m.kl:.3g}" for m in shown],
        marker_color=colours,
        hovertext=[_measurement_hover(m) for m in shown],
        hoverinfo="text",
        row=1,
        col=1,
    )
    if by_accuracy:
        figure.add_bar(
            x=names,
            y=[m.accuracy for m in shown],
            text=[f"{m.accuracy:.1%}" for m in shown],
            error_y={
                "array": [(m.accuracy_high or 0) - (m.accuracy or 0) for m in shown],
                "arrayminus": [(m.accuracy or 0) - (m.accuracy_low or 0) for m in shown],
                "color": "#555555",
                "thickness": 1,
            },
            marker_color=colours,
            textposition="inside",
            insidetextanchor="start",
            insidetextfont={"color": "white"},
            hovertext=[_measurement_hover(m) for m in shown],
            hoverinfo="text",
            row=1,
            col=2,
        )
        figure.update_yaxes(tickformat=".0%", range=[0, 1.05], row=1, col=2)
    sparsity = next((m.overall_sparsity for m in shown if m.variant != "dense"), 0.0)
    styled = _styled(figure, "Who skips, at the same overall sparsity", f"overall sparsity {sparsity:.1%}", 420)
    styled.update_layout(showlegend=False, margin_t=110)
    return styled
