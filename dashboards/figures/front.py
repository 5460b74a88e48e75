"""The figure of a study's trials against two quantities, with their front, to look around in or to print."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import plotly.graph_objects as go

from dashboards.analysis.axes import OFFERED, Axis, Floats
from dashboards.analysis.other_methods import method_points
from dashboards.analysis.records import NAMED_VARIANTS, row_title
from dashboards.analysis.trials import Found, Places
from dashboards.figures.appearance import (
    FAINT,
    INK,
    INKED,
    VARIANT_COLOURS,
    VARIANT_SYMBOLS,
    LogScale,
    empty_figure,
    percentages,
    plain_text,
    proposer_colour,
    ring,
    styled,
    variant_marker,
)
from dashboards.figures.marks import hover, made_from
from dashboards.figures.other_methods import add_other_methods, drawable_points, with_room
from dashboards.figures.trial_points import (
    better,
    lower_places,
    lower_symbols,
    points,
    set_titles,
    stairs,
    templates,
    title_of,
    within,
)
from studies import Measurement, TrialState
from studies.records.compared import Compared
from studies.records.objectives import COSTS, objective
from studies.records.trial_columns import STATES

# The height of figures of fronts.
FRONT_PX = 560
# The ring of what is selected is always the first trace, so that a page can move it alone.
RING = 0
_FRONT_COLOUR = VARIANT_COLOURS["static"]
_CHOSEN = "chosen"
# From so many points on, WebGL draws faster than SVG; browsers have few contexts of it to give.
_MANY = 1000


def front_figure(
    found: Found,
    x: str | None = None,
    y: str | None = None,
    *,
    selected: int | None = None,
    chosen: int | None = None,
    measurements: Sequence[Measurement] = (),
    compared: Sequence[Compared] = (),
    x_range: tuple[float, float] | None = None,
    y_range: tuple[float, float] | None = None,
    standalone: bool = False,
    webgl: bool = False,
) -> go.Figure:
    """Draws trials against two quantities: dominated ones are faint, a staircase joins the front.

    Of points that would cover each other one is drawn. Points carry their trial's number as custom data. KL is on a
    logarithmic axis where it spans decades; what is too small for it stands below its beginning, as triangles.

    Args:
        found: Trials of the study.
        x: Name of the quantity across; None for the cost that was searched.
        y: Name of the quantity upwards; None for the first objective.
        selected: Number of the trial to ring.
        chosen: Number of the trial that the study selected, to be marked like dense and uniform ones on a page.
        measurements: Results on test items, drawn over the trials as far as they know both quantities.
        compared: Other methods, drawn over them as far as they know both for the prefill of the measurements.
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
    front = found.front(x, y)
    # On test items a KL may be higher than any that the search saw.
    dense = next((m for m in measurements if m.variant == "dense"), None)
    others = drawable_points(method_points(compared), dense, x, y)
    tested = [*(m.kl for m in measurements if m.variant in NAMED_VARIANTS), *(one.kl for one in others)]
    scale = _scale(found, x, y, np.concatenate([comparable, hollow]), tested)
    floor = None if scale is None else scale.floor
    drawn, hollow = (found.representatives(x, y, places, x_range, y_range, floor) for places in (comparable, hollow))
    dominated = np.setdiff1d(drawn, front)
    lower = lower_places(found, y, np.concatenate([dominated, hollow]), scale)
    figure = go.Figure(_ring(found, x, y, selected, scale, named=standalone))
    n_points = len(dominated) + len(hollow)
    for number, proposer in enumerate(found.columns.proposers):
        own = np.concatenate([places[found.columns.proposer[places] == number] for places in (dominated, hollow)])
        own = np.setdiff1d(own, lower)
        if not len(own):
            continue
        figure.add_trace(
            (go.Scattergl if webgl and n_points > _MANY else go.Scatter)(
                **points(found, own, across, upwards, scale),
                **_labels(found, own, across, upwards, plain_text(proposer), standalone),
                mode="markers",
                name=f"by {plain_text(proposer)}",
                marker={
                    "color": proposer_colour(proposer),
                    "size": 6 if standalone else 5,
                    "opacity": FAINT,
                    "symbol": ["circle-open" if one else "circle" for one in np.isin(own, hollow)]
                    if len(hollow)
                    else "circle",
                },
            )
        )
    if len(lower):
        figure.add_scatter(
            **points(found, lower, across, upwards, scale),
            **_labels(found, lower, across, upwards, "dominated", standalone, proposed=True, scale=scale),
            mode="markers",
            name="of lower KL",
            marker={
                "color": [proposer_colour(found.columns.proposers[one]) for one in found.columns.proposer[lower]],
                "size": 7,
                "opacity": FAINT,
                "symbol": ["triangle-down-open" if one else "triangle-down" for one in np.isin(lower, hollow)],
            },
        )
    figure.add_scatter(
        **points(found, front, across, upwards, scale),
        **_labels(found, front, across, upwards, "on the front", standalone, proposed=True, scale=scale),
        mode="lines+markers",
        name="front",
        line={"color": _FRONT_COLOUR, "width": 1.5, "shape": stairs(across)},
        marker={
            "color": [proposer_colour(found.columns.proposers[one]) for one in found.columns.proposer[front]],
            "size": 8,
            "line": {"color": _FRONT_COLOUR, "width": 2},
            "symbol": lower_symbols(found, front, upwards, scale),
        },
    )
    if not standalone:
        _add_references(figure, found, chosen, across, upwards, scale)
    add_other_methods(figure, others, dense, x, y, scale)
    _add_measured(figure, found, measurements, across, upwards, scale)
    set_titles(figure, across, upwards)
    if scale is not None:
        figure.update_yaxes(**scale.axis())
        scale.mark(figure)
    # A page that draws itself anew while somebody looks at a part of it goes on showing that part; of another part,
    # Plotly would keep the one before.
    figure.update_xaxes(uirevision=f"{x} {x_range}").update_yaxes(uirevision=f"{y} {y_range}")
    if x_range is not None:
        figure.update_xaxes(range=across.shown(np.array(x_range)).tolist(), autorange=False)
    if y_range is not None:
        ends = upwards.shown(np.array(y_range))
        ends = ends if scale is None else np.log10(np.maximum(ends, 1e-12))
        figure.update_yaxes(range=ends.tolist(), autorange=False)
    n_lower = len(lower_places(found, y, np.union1d(np.union1d(drawn, front), hollow), scale))
    subtitle = "<br>".join(
        [
            _counts(found, len(comparable), len(front)),
            better(across, upwards),
            *_drawn(found, len(comparable), len(np.union1d(drawn, front)), len(hollow), n_lower),
        ]
    )
    styled(figure, title, subtitle, height=FRONT_PX).update_layout(margin_b=110, uirevision=f"{x} {y}")
    return with_room(figure, grows=standalone) if others else figure


def ring_position(found: Found, x: str, y: str, selected: int | None) -> tuple[list[float], list[float]]:
    """The place of the ring around a selected trial; none without one, or where it does not know both quantities."""
    ring = _ring(found, x, y, selected, _scale(found, x, y, found.drawable(x, y)))
    return list(ring.x), list(ring.y)


def _counts(found: Found, n_comparable: int, n_front: int) -> str:
    columns = found.columns
    n_failed = int((columns.state == STATES.index(TrialState.FAILED)).sum())
    ended = columns.state == STATES.index(TrialState.FINISHED)
    n_strange = int((ended & ~np.isfinite(columns.values).all(1)).sum())
    said = f"{_spaced(n_comparable)} comparable trials, {_spaced(n_front)} on the front"
    others = {"failed": n_failed, "not drawn, since their values are not finite": n_strange}
    return said + "".join(f", {_spaced(n)} {what}" for what, n in others.items() if n)


def _drawn(found: Found, n_comparable: int, n_drawn: int, n_hollow: int, n_lower: int) -> list[str]:
    """Notes on what is drawn and how."""
    n_aside = len(found.columns.left_aside)
    said = {
        f"hollow: {_spaced(n_hollow)} on a part of the search set, or against the constraints": n_hollow,
        f"left aside: {_spaced(n_aside)} that other programs added": len(found.columns.left_aside),
        f"drawn: {_spaced(n_drawn)}, one where several would cover each other": n_drawn < n_comparable,
        f"below the dotted line, not to scale: {_spaced(n_lower)} of lower KL": n_lower,
    }
    return [words for words, holds in said.items() if holds]


def _spaced(number: int) -> str:
    return f"{number:,}".replace(",", "\u202f")


def _scale(found: Found, x: str, y: str, places: Places | None = None, tested: Sequence[float] = ()) -> LogScale | None:
    """The logarithmic axis of KL; None for a linear one.

    Args:
        found: Trials of the study.
        x: Quantity across.
        y: Quantity upwards.
        places: Places of all trials that are drawn; None for the comparable ones, which decide where the scale begins.
        tested: KL on test items, drawn over them.
    """
    if y != "kl":
        return None
    values = found.values(y)
    scale = LogScale.of(values[found.drawable(x, y)])
    if scale is None:
        return None
    others = np.append(np.empty(0) if places is None else values[places], tested)
    return replace(
        scale,
        top=max(scale.top, float(others.max(initial=0.0))),
        has_lower=scale.has_lower or bool(scale.lower(others).any()),
    )


def _labels(
    found: Found,
    places: Places,
    across: Axis,
    upwards: Axis,
    what: str,
    full: bool,
    proposed: bool = False,
    scale: LogScale | None = None,
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
    more = "" if texts is None else "%{text}"
    return {
        "customdata": columns.number[places].tolist(),
        "text": texts,
        "hovertemplate": templates(found, places, across, upwards, what, scale, more),
    }


def _details(found: Found, place: int, others: Mapping[Axis, Floats], proposed: bool) -> str:
    """The lines of a trial's label below the two quantities that it is drawn against."""
    columns = found.columns
    costs = [
        f"{axis.title} {axis.text(float(own[place]))}{within(axis, found.uncertainty)}"
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


def _ring(
    found: Found, x: str, y: str, selected: int | None, scale: LogScale | None, named: bool = False
) -> go.Scatter:
    place = None if selected is None else found.columns.place(selected)
    places = np.array([] if place is None else [place], dtype=np.intp)
    at = points(found, places, Axis(x), Axis(y), scale)
    if not np.isfinite([*at["x"], *at["y"]]).all():
        at = {"x": np.empty(0), "y": np.empty(0)}
    name = f"selected: trial {selected}" if named else "selected"
    around = ring(at["x"], at["y"], name, 18, 2.5)
    return around.update(showlegend=named and len(at["x"]) > 0)


def _add_references(
    figure: go.Figure, found: Found, chosen: int | None, across: Axis, upwards: Axis, scale: LogScale | None
) -> None:
    """Mark the trials that a verdict is about, where the search saw them; hollow, as they are not measured."""
    drawable = found.drawable(across.name, upwards.name)
    uniform = np.intersect1d(np.array(found.uniform, dtype=np.intp), drawable)
    is_dense = ~found.columns.schedule[uniform].any(1)
    place = None if chosen is None else found.columns.place(chosen)
    for variant, name, places in (
        ("uniform", "uniform schedules", uniform[~is_dense]),
        ("dense", "dense schedule", uniform[is_dense]),
        (_CHOSEN, f"selected: trial {chosen}", np.array([] if place is None else [place], dtype=np.intp)),
    ):
        at = points(found, places, across, upwards, scale)
        known = np.isfinite(at["x"]) & np.isfinite(at["y"])
        if not known.any():
            continue
        is_uniform = variant == "uniform"
        symbols = lower_symbols(found, places[known], upwards, scale, VARIANT_SYMBOLS.get(variant, "star"))
        figure.add_scatter(
            x=at["x"][known],
            y=at["y"][known],
            mode="markers" if is_uniform else "markers+text",
            text=None if is_uniform else ("selected" if variant == _CHOSEN else variant),
            # Nothing costs more than dense, and little less than what was selected: there, axes end.
            textposition="top right" if across.higher_is_better == (variant == "dense") else "top left",
            name=name,
            marker={
                "color": INK if variant == _CHOSEN else VARIANT_COLOURS[variant],
                "symbol": f"{symbols}-open" if isinstance(symbols, str) else [f"{one}-open" for one in symbols],
                "size": 15 if variant == _CHOSEN else 12,
                "line": {"width": 2},
            },
            customdata=found.columns.number[places[known]].tolist(),
            hovertemplate=templates(
                found, places[known], across, upwards, "selected" if variant == _CHOSEN else variant, scale
            ),
            meta=None if is_uniform else INKED,
        )


def _add_measured(
    figure: go.Figure,
    found: Found,
    measurements: Sequence[Measurement],
    across: Axis,
    upwards: Axis,
    scale: LogScale | None,
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
                y=[shown] if scale is None else scale.drawn([shown]),
                mode="markers",
                name=f"{variant}, measured",
                marker=variant_marker(variant, 13, line={"color": "#ffffff", "width": 1.5}),
                customdata=[m.trial],
                hovertext=[f"measured on test items<br>{hover(m, {variant: row_title(m, proposer)})}"],
                hoverinfo="text",
                meta=INKED if variant == "dense" else None,
            )
