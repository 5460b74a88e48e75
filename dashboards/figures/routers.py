"""The figure of a router's training."""

from __future__ import annotations

import math
from dataclasses import replace

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from dashboards.figures.appearance import (
    INK,
    INKED,
    VARIANT_COLOURS,
    LogScale,
    empty_figure,
    plain_text,
    ring,
    styled,
)
from studies import RouterRun
from studies.records.halves import overall
from studies.records.study_facts import SelectionRecord

_LOSSES = {"loss": INK, "distill": "#747427", "guide": "#A85585", "sparsity": "#00789C"}
_TITLES = {"loss": "total", "distill": "distillation", "guide": "guide", "sparsity": "sparsity"}


def training_figure(run: RouterRun, selection: SelectionRecord | None = None) -> go.Figure:
    """Draws the losses of one router's training, and its KL on held-out examples.

    Losses are on a logarithmic axis where they span decades; what has no place there leaves a gap.

    Args:
        run: The training.
        selection: The selected point, which keeps one router or none; None before the selection.
    """
    steps, held_out = run.curves.get("step", []), run.curves.get("held_out_kl", [])
    if not steps and not held_out:
        return empty_figure(_title(run, selection), "The router has no training curves.")
    figure = make_subplots(
        rows=1,
        cols=2,
        subplot_titles=("Losses on training batches", "KL on held-out examples"),
        horizontal_spacing=0.12,
    )
    curves = {name: run.curves[name] for name in _LOSSES if run.curves.get(name)}
    scale = LogScale.of([value for curve in curves.values() for value in curve])
    for name, curve in curves.items():
        figure.add_scatter(
            x=steps,
            y=[_drawable(value, scale) for value in curve],
            mode="lines",
            name=_TITLES[name],
            line={"color": _LOSSES[name], "width": 2 if name == "loss" else 1.5},
            hovertemplate=f"step %{{x}}: {_TITLES[name]} %{{y:.4g}}<extra></extra>",
            meta=INKED if name == "loss" else None,
            row=1,
            col=1,
        )
    figure.add_scatter(
        x=run.curves.get("held_out_step", []),
        y=[_drawable(value, None) for value in held_out],
        mode="lines+markers",
        name="held-out KL",
        line={"color": VARIANT_COLOURS["dynamic"]},
        hovertemplate="step %{x}: KL %{y:.4g} nats per token<extra></extra>",
        showlegend=False,
        row=1,
        col=2,
    )
    _mark_best(figure, run)
    figure.update_xaxes(title="step")
    figure.update_yaxes(title="loss", row=1, col=1)
    if scale is not None:
        figure.update_yaxes(**replace(scale, has_lower=False).axis(), row=1, col=1)
    figure.update_yaxes(title="KL, nats per token", rangemode="tozero", row=1, col=2)
    figure.update_annotations(font_size=13)
    sparsity = overall(run.schedule)
    schedules = run.config.get("schedules", 1)
    where = f"Trial {run.trial}, overall sparsity {sparsity:.1%}"
    where += f", and {schedules - 1} more on the front" if schedules > 1 else ""
    subtitle = f"{where}<br>{len(steps)} steps in {run.seconds:.0f} s"
    if scale is not None and any(value < scale.floor for curve in curves.values() for value in curve):
        subtitle += f"<br>gaps in curves: losses below {scale.floor:g}, which the axis cannot show"
    return styled(figure, _title(run, selection), subtitle, height=440, panels=True)


def _title(run: RouterRun, selection: SelectionRecord | None) -> str:
    """The number of a router, the stage that trained it, and whether the selected point keeps it."""
    stage = f", {plain_text(str(run.config['stage']))}" if "stage" in run.config else ""
    kept = "" if selection is None else ": kept" if selection.router == run.number else ": not kept"
    return f"Training of router {run.number}{stage}{kept}"


def _drawable(value: float, scale: LogScale | None) -> float | None:
    """The value, or None, which leaves a gap, where the axis has no place for it."""
    if not math.isfinite(value) or (scale is not None and value < scale.floor):
        return None
    return value


def _mark_best(figure: go.Figure, run: RouterRun) -> None:
    """Ring the lowest held-out KL: that is the router, and not the last state of its training."""
    curves = zip(run.curves.get("held_out_kl", []), run.curves.get("held_out_step", []), strict=False)
    points = [(kl, step) for kl, step in curves if math.isfinite(kl)]
    if not points:
        return
    kl, step = min(points)
    figure.add_trace(ring([step], [kl], "lowest", 15), row=1, col=2)
    figure.add_annotation(
        x=step, y=kl, text=f"lowest: {kl:.3g}", showarrow=False, yshift=22, xanchor="center", row=1, col=2
    )
