"""Figures of a search: what was tried, which schedules are on the front, and whether more trials would help."""

from __future__ import annotations

from collections.abc import Sequence

import plotly.graph_objects as go

from dashboards.analysis.growth import recent_growth
from dashboards.figures.appearance import (
    INK,
    INKED,
    VARIANT_COLOURS,
    empty_figure,
    log_axis,
    log_floor,
    percentages,
    plain_text,
    proposer_colour,
    styled,
)
from dashboards.figures.marks import made_from
from dashboards.figures.proposed import volume_axis
from studies import FrontVolume, Trial, TrialState, finite_values, front_volume
from studies.records.objectives import COSTS, DEFAULT_COST, KL, Objective, objective

# Beyond this many, a browser takes seconds to draw the points, and nobody sees the difference.
_MOST_POINTS = 5_000
# Beyond this many, rows are too thin to read.
_MOST_ROWS = 60
_LABELLED_ROWS = 30


def search_figure(
    trials: Sequence[Trial],
    front: Sequence[Trial],
    chosen_trial: int | None = None,
    cost: str = DEFAULT_COST,
) -> go.Figure:
    """Every finished trial: KL against the cost that was searched, coloured by proposer, with the front as a staircase.

    KL is on a logarithmic axis where it spans decades; what is too small for it, such as the dense schedule's 0, stands
    at the bottom. Trials on a part of the search set, and those that break constraints, are drawn hollow: they do not
    compare with the others. Those whose values are not finite are not drawn.

    Args:
        trials: The trials of a study.
        front: Those that no other beats, as `studies.front` returns them.
        chosen_trial: Number of the chosen trial, which is ringed.
        cost: Name of the second objective.
    """
    searched = objective(cost)
    title = "Every schedule that was evaluated"
    finished = _with_two_values(trials)
    if not finished:
        return empty_figure(title, "No trial has finished.")
    on_front = {t.number for t in front}
    drawn = _thinned(finished, _MOST_POINTS, always=on_front)
    floor = log_floor(t.values[0] for t in drawn if t.values)

    def height_of(values: tuple[float, ...]) -> float:
        return values[0] if floor is None else max(values[0], floor)

    figure = go.Figure()
    for proposer in sorted({t.proposer for t in drawn}):
        own = [t for t in drawn if t.proposer == proposer]
        figure.add_scatter(
            x=[searched.shown(t.values[1]) for t in own if t.values],
            y=[height_of(t.values) for t in own if t.values],
            mode="markers",
            name=f"proposed by {plain_text(proposer)}",
            marker={
                "color": proposer_colour(proposer),
                "symbol": ["circle" if t.is_comparable else "circle-open" for t in own],
                "size": 7,
                "opacity": 0.75,
            },
            hovertext=[_hover(t, searched) for t in own],
            hoverinfo="text",
        )
    steps = sorted((searched.shown(t.values[1]), height_of(t.values)) for t in _with_two_values(front) if t.values)
    figure.add_scatter(
        x=[x for x, _ in steps],
        y=[y for _, y in steps],
        mode="lines",
        name="front",
        line={"color": INK, "width": 1.5, "shape": "hv"},
        hoverinfo="skip",
        meta=INKED,
    )
    for t in finished:
        if t.number == chosen_trial and t.values:
            figure.add_scatter(
                x=[searched.shown(t.values[1])],
                y=[height_of(t.values)],
                mode="markers",
                name=f"selected: trial {t.number}",
                marker={"symbol": "circle-open", "size": 16, "color": INK, "line": {"width": 2}},
                hoverinfo="skip",
                meta=INKED,
            )
    figure.update_xaxes(title=searched.axis)
    figure.update_yaxes(title="KL to dense, nats per token")
    if floor is not None:
        figure.update_yaxes(**log_axis(floor, max(t.values[0] for t in drawn if t.values)))
    n_failed = sum(t.state is TrialState.FAILED for t in trials)
    n_strange = sum(t.values is not None and not finite_values(t.values) for t in trials)
    others = {"failed": n_failed, "not drawn, since their values are not finite": n_strange}
    said = "".join(f", {n} {what}" for what, n in others.items() if n)
    subtitle = f"{len(finished)} trials finished{said}, {len(front)} on the front"
    if len(drawn) < len(finished):
        subtitle += f"<br>drawn: {len(drawn)} of them, evenly spread over the search"
    n_floored = sum(t.values[0] < floor for t in drawn if t.values) if floor is not None else 0
    if n_floored:
        subtitle += f"<br>at the bottom, off the log scale: {n_floored} of lower KL"
    return styled(figure, title, subtitle, height=480)


def schedule_heatmap(front: Sequence[Trial], chosen_trial: int | None) -> go.Figure:
    """The schedules of a front: a row each, sorted by overall sparsity, and a column for each block.

    Args:
        front: The trials to show.
        chosen_trial: Number of the selected trial, whose row is marked.
    """
    title = "Schedules on the front"
    if not front:
        return empty_figure(title, "No trial has finished.")
    chosen = {t.number for t in front if t.number == chosen_trial}
    rows = _thinned(sorted(front, key=lambda t: (t.overall_sparsity, t.number)), _MOST_ROWS, always=chosen)
    n_blocks = len(rows[0].schedule)
    marked = next((index for index, t in enumerate(rows) if t.number in chosen), None)
    # Labels that do not fit are left out evenly, but never the one of the chosen row.
    stride = -(-len(rows) // _LABELLED_ROWS)
    labelled = [
        index
        for index in range(len(rows))
        if index == marked or (index % stride == 0 and (marked is None or abs(index - marked) >= stride))
    ]
    figure = go.Figure(
        go.Heatmap(
            z=[list(t.schedule) for t in rows],
            x=list(range(n_blocks)),
            y=list(range(len(rows))),
            zmin=0.0,
            zmax=0.95,
            colorscale="Blues",
            colorbar={
                "title": {"text": "share of tokens skipped", "side": "right", "font": {"size": 12}},
                "tickvals": [0, 0.25, 0.5, 0.75, 0.95],
                "tickformat": ".0%",
                "thickness": 12,
                "outlinewidth": 0,
            },
            customdata=[[_row_label(t)] * n_blocks for t in rows],
            hovertemplate="%{customdata}<br>block %{x}: %{z:.0%} of tokens skip it<extra></extra>",
            xgap=1,
            ygap=1,
        )
    )
    figure.update_xaxes(title="block", dtick=1 if n_blocks <= 16 else 4, showgrid=False)
    figure.update_yaxes(
        tickvals=labelled,
        ticktext=[
            f"<b>▶ {_row_label(rows[index])}</b>" if index == marked else _row_label(rows[index]) for index in labelled
        ],
        tickfont={"size": 12},
        showgrid=False,
    )
    if marked is not None:
        figure.add_shape(
            type="rect",
            x0=-0.5,
            x1=n_blocks - 0.5,
            y0=marked - 0.5,
            y1=marked + 0.5,
            line={"color": INK, "width": 2},
        )
    subtitle = "One row a trial, with its overall sparsity"
    subtitle += "<br>▶ and frame: the selected schedule" if marked is not None else "<br>none is selected yet"
    if len(rows) < len(front):
        subtitle += f"<br>drawn: {len(rows)} of {len(front)}, evenly spread along the front"
    height = 175 + round(min(24.0, 720 / len(rows)) * max(3, len(rows)))
    return styled(figure, title, subtitle, height=height)


def hypervolume_figure(
    trials: Sequence[Trial], cost: str = DEFAULT_COST, measured: FrontVolume | None = None
) -> go.Figure:
    """How much of the objectives' space the front covers after each finished trial; refinements are marked.

    Args:
        trials: The trials of a study.
        cost: Name of its second objective.
        measured: How its hypervolume is measured; None for how that follows from the trials alone.
    """
    searched = objective(cost)
    title = "Hypervolume over trials"
    measured = measured or front_volume((KL, cost), trials)
    if measured is None:
        return empty_figure(title, "No trial has finished on the whole calibration set.")
    reference, history = measured.reference, measured.history(trials)
    figure = go.Figure(
        go.Scatter(
            x=list(range(1, len(history) + 1)),
            y=[searched.shown(volume) for volume in history],
            mode="lines" if len(history) > 1 else "markers",
            line={"color": VARIANT_COLOURS["static"], "shape": "hv"},
            hovertemplate="after %{x} trials: %{y:.4g}<extra></extra>",
        )
    )
    counted = [t for t in _with_two_values(trials) if t.is_comparable]
    for number in sorted({t.round for t in counted} - {0}):
        begun = next(place for place, t in enumerate(counted) if t.round == number)
        # A line is a shape, which a page that turns dark repaints.
        figure.add_vline(x=begun + 0.5, line={"color": INK, "width": 1, "dash": "dot"})
        figure.add_annotation(
            x=begun + 0.5,
            y=0,
            yref="paper",
            text=f"round {number}",
            showarrow=False,
            xanchor="left",
            yanchor="bottom",
            xshift=4,
            font={"size": 12},
        )
    figure.update_xaxes(title="finished trials")
    figure.update_yaxes(title=volume_axis((KL, cost)), rangemode="tozero")
    corner = (
        f"Above a corner at KL {reference[0]:.3g}, {searched.text(reference[1])}"
        if len(reference) == 2
        else "All objectives"
    )
    return styled(figure, title, f"{corner}<br>{recent_growth(history)}", height=380)


def _with_two_values(trials: Sequence[Trial]) -> list[Trial]:
    drawable = (t for t in trials if t.state is TrialState.FINISHED and finite_values(t.values))
    return [t for t in drawable if len(t.values or ()) >= 2]


def _thinned(trials: Sequence[Trial], most: int, always: set[int]) -> list[Trial]:
    """At most about `most` trials, evenly spread, and in any case those whose number is in `always`."""
    stride = -(-len(trials) // most)
    return [t for index, t in enumerate(trials) if index % stride == 0 or t.number in always]


def _hover(t: Trial, searched: Objective) -> str:
    kl, cost, *_ = t.values or (0.0, 0.0)
    # Whatever the search trades KL against, the other costs are known, too.
    others = [objective(name) for name in COSTS if name != searched.name and name in t.metrics]
    costs = [(searched, cost), *((other, t.metrics[other.name]) for other in others)]
    known = ", ".join(f"{one.title} {one.text(value)}" for one, value in costs)
    refined = f", round {t.round}" if t.round else ""
    partial = "" if t.fidelity == 1.0 else f", on {t.fidelity:.0%} of the calibration set"
    return (
        f"<b>trial {t.number}</b>, proposed by {plain_text(t.proposer)}{refined}{partial}{made_from(t.parents)}<br>"
        f"KL {kl:.4g} nats per token<br>{known}<br>"
        f"overall sparsity {t.overall_sparsity:.1%}; % skipped by block:<br>{percentages(t.schedule)}"
    )


def _row_label(t: Trial) -> str:
    return f"trial {t.number}: {t.overall_sparsity:.0%}"
