"""The figure of a study's trials against two quantities, with their front, to look around in or to print."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import plotly.graph_objects as go

from dashboards.analysis.axes import OFFERED, Axis, Floats
from dashboards.analysis.records import NAMED_VARIANTS, row_title
from dashboards.analysis.trials import Found, Places
from dashboards.figures.appearance import (
    INKED,
    VARIANT_COLOURS,
    empty_figure,
    log_axis,
    log_floor,
    percentages,
    plain_text,
    proposer_colour,
    ring,
    styled,
    variant_marker,
)
from dashboards.figures.marks import hover, made_from
from studies import Measurement, TrialState
from studies.records.objectives import COSTS, objective
from studies.records.trial_columns import STATES

# The height of figures of fronts.
FRONT_PX = 560
# The ring of what is selected is always the first trace, so that a page can move it alone.
RING = 0
_FRONT_COLOUR = VARIANT_COLOURS["static"]
# From so many points on, WebGL draws faster than SVG; browsers have few contexts of it to give.
_MANY = 1000


def front_figure(
    found: Found,
    x: str | None = None,
    y: str | None = None,
    *,
    selected: int | None = None,
    measurements: Sequence[Measurement] = (),
    x_range: tuple[float, float] | None = None,
    y_range: tuple[float, float] | None = None,
    standalone: bool = False,
    webgl: bool = False,
) -> go.Figure:
    """Draws trials against two quantities: dominated ones are faint, a staircase joins the front.

    Of points that would cover each other one is drawn. Points carry their trial's number as custom data. KL is on a
    logarithmic axis where it spans decades; what is too small for it stands at the bottom.

    Args:
        found: Trials of the study.
        x: Name of the quantity across; None for the cost that was searched.
        y: Name of the quantity upwards; None for the first objective.
        selected: Number of the trial to ring.
        measurements: Results on test items, drawn over the trials as far as they know both quantities.
        x_range: Part of the horizontal axis that is looked at, in stored units, for which points are chosen anew; None
            for all of it.
        y_range: Part of the vertical axis, likewise.
        standalone: Leaves nothing to a page around the figure, as a report needs it: labels say everything of a trial,
            the legend names the selected one, and finished trials that do not compare with the others are hollow.
        webgl: Draws many points faster, in a browser that has WebGL.
    """
    x, y = x or found.objectives[-1], y or found.objectives[0]
    across, upwards = Axis(x), Axis(y)
    title = title_of(across, upwards)
    comparable, hollow = found.drawable(x, y), found.incomparable(x, y) if standalone else np.empty(0, np.intp)
    if not len(comparable) and not len(hollow):
        n_aside = len(found.columns.left_aside)
        if n_aside and not len(found):
            return empty_figure(title, f"No trial has finished yet, but for {n_aside} that other programs added.")
        return empty_figure(title, "No trial has finished yet." if not len(found) else "No trial knows both of these.")
    front, floor = found.front(x, y), _floor(found, x, y)
    drawn, hollow = (found.representatives(x, y, places, x_range, y_range, floor) for places in (comparable, hollow))
    dominated = np.setdiff1d(drawn, front)
    figure = go.Figure(_ring(found, x, y, selected, floor, named=standalone))
    n_points = len(dominated) + len(hollow)
    for number, proposer in enumerate(found.columns.proposers):
        own = np.concatenate([places[found.columns.proposer[places] == number] for places in (dominated, hollow)])
        if not len(own):
            continue
        figure.add_trace(
            (go.Scattergl if webgl and n_points > _MANY else go.Scatter)(
                **points(found, own, across, upwards, floor),
                **_labels(found, own, across, upwards, plain_text(proposer), standalone),
                mode="markers",
                name=f"by {plain_text(proposer)}",
                marker={
                    "color": proposer_colour(proposer),
                    "size": 6 if standalone else 5,
                    "opacity": 0.6 if standalone else 0.35,
                    "symbol": ["circle-open" if one else "circle" for one in np.isin(own, hollow)]
                    if len(hollow)
                    else "circle",
                },
            )
        )
    figure.add_scatter(
        **points(found, front, across, upwards, floor),
        **_labels(found, front, across, upwards, "on the front", standalone, proposed=True),
        mode="lines+markers",
        name="front",
        line={"color": _FRONT_COLOUR, "width": 1.5, "shape": stairs(across)},
        marker={
            "color": [proposer_colour(found.columns.proposers[one]) for one in found.columns.proposer[front]],
            "size": 8,
            "line": {"color": _FRONT_COLOUR, "width": 2},
        },
    )
    _add_measured(figure, found, measurements, across, upwards, floor)
    set_titles(figure, across, upwards)
    if floor is not None:
        # On test items a KL may be higher than any that the search saw.
        named = (m.kl for m in measurements if m.variant in NAMED_VARIANTS)
        heights = found.values(y)[np.concatenate([comparable, hollow])]
        figure.update_yaxes(**log_axis(floor, max(float(heights.max()), *named, floor)))
    # A page that draws itself anew while somebody looks at a part of it goes on showing that part.
    if x_range is not None:
        figure.update_xaxes(range=across.shown(np.array(x_range)).tolist(), autorange=False)
    if y_range is not None:
        ends = upwards.shown(np.array(y_range))
        ends = ends if floor is None else np.log10(np.maximum(ends, 1e-12))
        figure.update_yaxes(range=ends.tolist(), autorange=False)
    n_low = 0 if floor is None else int((found.values(y)[np.union1d(drawn, front)] < floor).sum())
    subtitle = "<br>".join(
        [
            _counts(found, len(comparable), len(front)),
            better(across, upwards),
            *_drawn(found, len(comparable), len(np.union1d(drawn, front)), len(hollow), n_low),
        ]
    )
    return styled(figure, title, subtitle, height=FRONT_PX).update_layout(margin_b=110, uirevision=f"{x} {y}")


def ring_position(found: Found, x: str, y: str, selected: int | None) -> tuple[list[float], list[float]]:
    """The place of the ring around a selected trial; none without one, or where it does not know both quantities."""
    ring = _ring(found, x, y, selected, _floor(found, x, y))
    return list(ring.x), list(ring.y)


def title_of(across: Axis, upwards: Axis) -> str:
    """The title of a figure of two quantities."""
    return f"{upwards.title[:1].upper()}{upwards.title[1:]} against {across.title}"


def better(across: Axis, upwards: Axis) -> str:
    """The direction in which points of a figure are better."""
    towards = ("up" if upwards.higher_is_better else "down", "right" if across.higher_is_better else "left")
    return f"better: {' and '.join(towards)}"


def stairs(across: Axis) -> str:
    """The shape of a line along a front, which claims nothing between two trials."""
    return "vh" if across.higher_is_better else "hv"


def points(found: Found, places: Places, across: Axis, upwards: Axis, floor: float | None) -> dict[str, Floats]:
    """Coordinates of trials; those below the floor of a logarithmic axis stand on it."""
    heights = upwards.shown(found.values(upwards.name)[places])
    if floor is not None:
        heights = np.maximum(heights, floor)
    return {"x": across.shown(found.values(across.name)[places]), "y": heights}


def template(across: Axis, upwards: Axis, what: str, uncertainty: float | None = None) -> str:
    """The hover label of a trial, whose number is its custom data; `uncertainty` is that of `Found`."""

    def value(axis: Axis, letter: str) -> str:
        shown = f"{axis.title} %{{{letter}:{'.1%' if axis.is_share else '.4g'}}} {axis.unit}".rstrip()
        return shown + _within(axis, uncertainty)

    values = f"{value(upwards, 'y')}<br>{value(across, 'x')}"
    return f"<b>trial %{{customdata}}</b>, {what}<br>{values}<extra></extra>"


def _within(axis: Axis, uncertainty: float | None) -> str:
    """Uncertainty of a quantity, in words: latencies of trials are predicted."""
    return "" if uncertainty is None or axis.name != "latency_ms" else f" ± {uncertainty:.0%}"


def set_titles(figure: go.Figure, across: Axis, upwards: Axis) -> None:
    """Give the axes of a figure their titles, and shares their form."""
    for update, axis in ((figure.update_xaxes, across), (figure.update_yaxes, upwards)):
        update(title=axis.heading, **({"tickformat": ".0%"} if axis.is_share else {}))


def _counts(found: Found, n_comparable: int, n_front: int) -> str:
    columns = found.columns
    n_failed = int((columns.state == STATES.index(TrialState.FAILED)).sum())
    ended = columns.state == STATES.index(TrialState.FINISHED)
    n_strange = int((ended & ~np.isfinite(columns.values).all(1)).sum())
    said = f"{_spaced(n_comparable)} comparable trials, {_spaced(n_front)} on the front"
    others = {"failed": n_failed, "not drawn, since their values are not finite": n_strange}
    return said + "".join(f", {_spaced(n)} {what}" for what, n in others.items() if n)


def _drawn(found: Found, n_comparable: int, n_drawn: int, n_hollow: int, n_low: int) -> list[str]:
    """Notes on what is drawn and how."""
    n_aside = len(found.columns.left_aside)
    said = {
        f"hollow: {_spaced(n_hollow)} on a part of the search set, or against the constraints": n_hollow,
        f"left aside: {_spaced(n_aside)} that other programs added": len(found.columns.left_aside),
        f"drawn: {_spaced(n_drawn)}, one where several would cover each other": n_drawn < n_comparable,
        f"at the bottom, off the log scale: {_spaced(n_low)} of lower KL": n_low,
    }
    return [words for words, holds in said.items() if holds]


def _spaced(number: int) -> str:
    return f"{number:,}".replace(",", "\u202f")


def _floor(found: Found, x: str, y: str) -> float | None:
    """The KL at which a logarithmic axis begins; None for a linear one."""
    if y != "kl":
        return None
    values = found.values(y)[found.drawable(x, y)]
    values = values[values > 0]
    if not len(values):
        return None
    # The least that counts and the most are all that it needs: no loop over a hundred thousand.
    counted = values[values >= 1e-4 * values.max()]
    return log_floor([float(counted.min()), float(counted.max())])


def _labels(
    found: Found, places: Places, across: Axis, upwards: Axis, what: str, full: bool, proposed: bool = False
) -> dict[str, Any]:
    columns = found.columns
    if full:
        others = [axis for axis in found.axes if axis.name in COSTS and axis not in (across, upwards)]
        costs = {axis: found.values(axis.name) for axis in others}
        texts = [_details(found, int(place), costs, proposed) for place in places]
    elif proposed:
        texts = [made_from(columns.parents_of(int(place))) for place in places]
    else:
        texts = None
    said = template(across, upwards, what, found.uncertainty)
    return {
        "customdata": columns.number[places].tolist(),
        "text": texts,
        "hovertemplate": said if texts is None else said.replace("<extra>", "%{text}<extra>"),
    }


def _details(found: Found, place: int, others: Mapping[Axis, Floats], proposed: bool) -> str:
    """The lines of a trial's label below the two quantities that it is drawn against."""
    columns = found.columns
    costs = [
        f"{axis.title} {axis.text(float(own[place]))}{_within(axis, found.uncertainty)}"
        for axis, own in others.items()
        if np.isfinite(own[place])
    ]
    number, fidelity = int(columns.round[place]), float(columns.fidelity[place])
    about = [
        *([f"proposed by {plain_text(columns.proposers[columns.proposer[place]])}"] if proposed else []),
        *([f"round {number}"] if number else []),
        *([] if fidelity == 1.0 else [f"on {fidelity:.0%} of the search set"]),
    ]
    lines = [
        *([", ".join(about)] if about else []),
        *([", ".join(costs)] if costs else []),
        f"overall sparsity {float(columns.schedule[place].mean()):.1%}; % skipped by block:",
        percentages(columns.schedule[place].tolist()),
    ]
    return f"{made_from(columns.parents_of(place))}<br>{'<br>'.join(lines)}"


def _ring(found: Found, x: str, y: str, selected: int | None, floor: float | None, named: bool = False) -> go.Scatter:
    place = None if selected is None else found.columns.place(selected)
    places = np.array([] if place is None else [place], dtype=np.intp)
    at = points(found, places, Axis(x), Axis(y), floor)
    if not np.isfinite([*at["x"], *at["y"]]).all():
        at = {"x": np.empty(0), "y": np.empty(0)}
    name = f"selected: trial {selected}" if named else "selected"
    around = ring(at["x"], at["y"], name, 18, 2.5)
    return around.update(showlegend=named and len(at["x"]) > 0)


def _add_measured(
    figure: go.Figure,
    found: Found,
    measurements: Sequence[Measurement],
    across: Axis,
    upwards: Axis,
    floor: float | None,
) -> None:
    """Lay the comparison methods over the trials: they are measured, on test items and on the clock."""
    for variant in NAMED_VARIANTS:
        for m in (one for one in measurements if one.variant == variant):
            x, y = (getattr(m, axis.name) if axis.name in OFFERED else None for axis in (across, upwards))
            if x is None or y is None:
                continue
            shown = objective(upwards.name).shown(y)
            proposer = None if m.trial is None else found.proposer(m.trial)
            figure.add_scatter(
                x=[objective(across.name).shown(x)],
                y=[shown if floor is None else max(shown, floor)],
                mode="markers",
                name=f"{variant}, measured",
                marker=variant_marker(variant, 13, line={"color": "#ffffff", "width": 1.5}),
                customdata=[m.trial],
                hovertext=[f"measured on test items<br>{hover(m, {variant: row_title(m, proposer)})}"],
                hoverinfo="text",
                meta=INKED if variant == "dense" else None,
            )
