"""The view to look around in: the front, the trial that is pointed at, and what leaves the page as a file."""

from __future__ import annotations

from itertools import groupby
from typing import Any
from urllib.parse import quote, urlencode

import numpy as np
from dash import ALL, ClientsideFunction, Dash, Input, Output, Patch, State, ctx, dcc, html, no_update

from dashboards.analysis.axes import OFFERED, default_axes
from dashboards.analysis.tables import duration
from dashboards.analysis.trials import Found
from dashboards.app.addresses import NAMESPACE, Asked, Kept
from dashboards.app.data_source import Standing, Watch
from dashboards.app.pages import trial_table
from dashboards.app.pages.trial_acts import TrialActs
from dashboards.app.pages.trial_table import TrialTable
from dashboards.app.parts import attributes, axis_choices, drawn, graph, in_theme, moment, nothing, read_table, terms
from dashboards.app.view_state import Look, look_at, unless_away, while_looked_at
from dashboards.figures import front_figure, schedule_figure
from dashboards.figures.front import FRONT_PX, RING, ring_position
from dashboards.report.methods import methods_tables
from dashboards.report.results import results_table
from dashboards.report.speeds import speeds_table
from studies import Trial
from studies.records.objectives import objective
from studies.records.trial import finite_values

# Digits of a trial's number.
_LONGEST = 10
_TRIAL = Kept("trial", "trial-number")
# Id and property of the components whose values the address holds, in the order of `Exploring.kept`.
KEPT = (*((one, "value") for one in ("trial-number", "front-x", "front-y")), ("zoom", "data"), *trial_table.KEPT)
# The ends across, then upwards, as text between underscores, none where an axis shows everything: "12_30__".
_ZOOM = Kept("zoom", "zoom", is_typed=True, prop="data")
_NOBODY = nothing("No trial selected", "Point at one to see it here, click it to keep it, or type its number.")


class Exploring:
    """The front of a study, and its trials one by one."""

    def __init__(self, watch: Watch, acts: TrialActs) -> None:
        self._watch = watch
        self._acts = acts
        self._table = TrialTable(watch)

    def kept(self, standing: Standing) -> tuple[Kept, ...]:
        """What the address holds of this view: the trial, the quantities, the zoom, and what is chosen of the table."""
        return (*self._of_figure(standing), _ZOOM, *self._table.kept(standing))

    def trial(self, asked: Asked) -> str:
        """The number of the trial that an address selects; empty for none."""
        return str(_TRIAL.of(asked))

    def _of_figure(self, standing: Standing) -> tuple[Kept, Kept, Kept]:
        x, y = default_axes(standing.study.objectives)
        return _TRIAL, Kept("x", "front-x", x, OFFERED), Kept("y", "front-y", y, OFFERED)

    def controls(self, standing: Standing, asked: Asked) -> html.Div:
        """Controls of the quantities, before any trial has been read."""
        number, x, y = (one.of(asked) for one in self._of_figure(standing))
        choices = axis_choices(("upwards", "front-y", y), ("across", "front-x", x))
        trial = dcc.Input(
            number, id="trial-number", type="text", inputMode="numeric", debounce=True, maxLength=_LONGEST
        )
        walk = [
            html.Button(sign, id=place, className="quiet", type="button", **attributes(aria_label=words))
            for sign, place, words in (
                ("←", "trial-before", "Previous trial of the front"),
                ("→", "trial-after", "Next trial of the front"),
            )
        ]
        return html.Div(
            [*choices, html.Label([html.Span("trial"), trial]), html.Div(walk, className="acts")], className="bar"
        )

    def layout(self, standing: Standing, asked: Asked) -> html.Div:
        """The figure, the trial beside it, and what is below."""
        typed = _TRIAL.of(asked)
        number = int(typed) if typed.isdecimal() and len(typed) <= _LONGEST else None
        # A store that is given nothing tells as it appears that this is new.
        known: dict[str, Any] = {} if number is None else {"data": number}
        return html.Div(
            [
                html.Div(
                    [
                        graph("front-figure", "trials against two quantities", height=FRONT_PX),
                        html.Aside(_NOBODY, id="trial-panel", **attributes(aria_live="polite", aria_label="Trial")),
                    ],
                    className="beside",
                ),
                html.Div(id="exports", className="acts"),
                self._table.layout(standing, asked),
                html.Div(id="measured"),
                dcc.Store(id="selected", **known),
                dcc.Store(id="pointed", **known),
                dcc.Store(id="walked"),
                dcc.Store(id="zoom", data=_ZOOM.of(asked)),
                dcc.Download(id="trial-file"),
                dcc.Store(id="front-drawn"),
            ]
        )

    def register(self, dash: Dash) -> None:
        """Add the callbacks."""
        look = Input(look_at("front"), "data")
        axes = [Input("front-x", "value"), Input("front-y", "value")]
        dash.callback(
            Output("front-drawn", "data"),
            look,
            *axes,
            Input("zoom", "data"),
            State("selected", "data"),
            State("study", "data"),
            prevent_initial_call=True,
        )(while_looked_at(self.figure))
        dash.clientside_callback(
            ClientsideFunction(NAMESPACE, "keepLegend"),
            Output("front-figure", "figure"),
            Input("front-drawn", "data"),
            State("front-figure", "figure"),
            prevent_initial_call=True,
        )
        dash.clientside_callback(
            ClientsideFunction(NAMESPACE, "zoomed"),
            Output("zoom", "data"),
            Input("front-figure", "relayoutData"),
            Input("front-x", "value"),
            Input("front-y", "value"),
            State("zoom", "data"),
            prevent_initial_call=True,
        )
        dash.clientside_callback(
            ClientsideFunction(NAMESPACE, "selected"),
            Output("selected", "data"),
            Output("trial-number", "value"),
            Input("front-figure", "clickData"),
            Input("trial-number", "value"),
            Input("walked", "data"),
            State("selected", "data"),
            prevent_initial_call=True,
        )
        dash.callback(
            Output("walked", "data"),
            Input("trial-before", "n_clicks"),
            Input("trial-after", "n_clicks"),
            State("selected", "data"),
            State("front-x", "value"),
            State("front-y", "value"),
            State("study", "data"),
            prevent_initial_call=True,
        )(unless_away(self._walked))
        dash.callback(
            Output("walked", "data", allow_duplicate=True),
            Input({"type": "parent", "trial": ALL}, "n_clicks"),
            Input({"type": "row", "trial": ALL}, "n_clicks"),
            prevent_initial_call=True,
        )(self._pressed)
        self._table.register(dash)
        dash.callback(
            Output("front-figure", "figure", allow_duplicate=True),
            Input("selected", "data"),
            State("front-x", "value"),
            State("front-y", "value"),
            State("study", "data"),
            prevent_initial_call=True,
        )(unless_away(self.ring))
        dash.clientside_callback(
            ClientsideFunction(NAMESPACE, "pointed"),
            Output("pointed", "data"),
            Input("selected", "data"),
            Input("front-figure", "hoverData"),
            State("pointed", "data"),
            prevent_initial_call=True,
        )
        dash.callback(
            Output("trial-panel", "children"),
            Input("pointed", "data"),
            Input("theme", "data"),
            State("study", "data"),
        )(unless_away(self.panel))
        dash.callback(
            Output("measured", "children"),
            Output("exports", "children"),
            look,
            *axes,
            State("study", "data"),
            prevent_initial_call=True,
        )(while_looked_at(self.below))
        dash.clientside_callback(
            ClientsideFunction(NAMESPACE, "savePng"),
            Output("save-png", "title"),
            Input("save-png", "n_clicks"),
            prevent_initial_call=True,
        )
        self._acts.register(dash)

    def figure(self, look: Look, x: str, y: str, zoom: str | None, selected: int | None, name: str) -> Any:
        """The figure, for what is looked at of it."""
        x_range, y_range = ranges(zoom, x, y)
        figure = front_figure(
            self._watch.found(name),
            x,
            y,
            selected=selected,
            chosen=self._watch.store.studies.get(name).chosen_trial,
            measurements=self._watch.measurements(name),
            compared=self._watch.store.comparisons.of(name),
            x_range=x_range,
            y_range=y_range,
            webgl=bool(look["webgl"]),
        )
        return in_theme(figure, look["theme"])

    def ring(self, selected: int | None, x: str, y: str, name: str) -> Any:
        """Move the ring to the selected trial; nothing else of the figure changes."""
        found = self._watch.found(name)
        if not len(found.drawable(x, y)):
            # The figure says so, and has no ring.
            return no_update
        across, upwards = ring_position(found, x, y, selected)
        patch = Patch()
        patch["data"][RING]["x"] = across
        patch["data"][RING]["y"] = upwards
        return patch

    def panel(self, number: int | None, theme: str | None, name: str) -> Any:
        """The trial that is selected or, if none is, pointed at."""
        if number is None:
            return _NOBODY
        found, trial = self._watch.found(name), self._watch.store.trials.find(name, number)
        if trial is None:
            if number in found.columns.left_aside:
                return nothing(f"Trial {number}", "Another program added it through Optuna: it is left aside.")
            return nothing(f"Trial {number}", "There is no such trial, or it has not ended yet.")
        return [
            drawn(in_theme(schedule_figure(trial.schedule, number), theme), f"schedule of trial {number}"),
            *self._acts.buttons(name, trial),
            terms(described(trial, found)),
        ]

    def below(self, look: Look, x: str, y: str, name: str) -> tuple[Any, Any]:
        """The table of results, and the files that the view can be saved as."""
        data = self._watch.report_data(name, self._watch.standing(name))
        speeds = speeds_table(data)
        place = f"/export/{quote(name, safe='')}"
        chosen = urlencode({"x": x, "y": y})
        links = (
            ("HTML", f"figure.html?{chosen}"),
            ("CSV of the front", "front.csv"),
            ("CSV of all trials", "trials.csv"),
            ("JSON", "study.json"),
        )
        files = [
            html.Span("Save as"),
            html.Button("PNG", id="save-png", className="quiet", type="button"),
            *(html.A(words, href=f"{place}/{file}", className="quiet", download="") for words, file in links),
        ]
        results = read_table("Measured on test items", results_table(data), "Results")
        results += read_table("Speed by prompt length and new tokens", speeds, "Speed") if speeds.rows else []
        for title, methods in methods_tables(data.compared):
            results += read_table(f"Beside other methods: {title}", methods, f"Other methods, {title}")
        return results if data.measurements or data.compared else None, files

    def walk(self, step: int, selected: int | None, x: str, y: str, name: str) -> int | None:
        """The trial of the front that comes before (-1) or after (1) the selected one; None if there is no front."""
        found = self._watch.found(name)
        numbers = found.columns.number[found.front(x, y)].tolist()
        if not numbers:
            return None
        at = numbers.index(selected) if selected in numbers else (-1 if step > 0 else 0)
        return int(numbers[(at + step) % len(numbers)])

    def _walked(self, _: int | None, __: int | None, selected: int | None, x: str, y: str, name: str) -> Any:
        step = 1 if ctx.triggered_id == "trial-after" else -1
        return self.walk(step, selected, x, y, name)

    def _pressed(self, _: list[int | None], __: list[int | None]) -> Any:
        # Buttons that appear say so, too.
        if not ctx.triggered or not ctx.triggered[0]["value"] or not isinstance(ctx.triggered_id, dict):
            return no_update
        number = ctx.triggered_id["trial"]
        return number if isinstance(number, int) else no_update


def ranges(zoom: str | None, x: str, y: str) -> tuple[tuple[float, float] | None, tuple[float, float] | None]:
    """The part that a page is zoomed to, in the units in which values are stored; None along an axis that shows all."""
    parts = (zoom or "").split("_")
    if len(parts) != 4:
        return None, None

    def stored(name: str, ends: list[str]) -> tuple[float, float] | None:
        try:
            low, high = (float(end) * objective(name).per_unit for end in ends)
        except ValueError:
            return None
        return (low, high) if np.isfinite([low, high]).all() and low != high else None

    return stored(x, parts[:2]), stored(y, parts[2:])


def described(trial: Trial, found: Found) -> list[tuple[str, Any]]:
    """Facts about a trial that has ended, in words."""
    assert trial.finished_at is not None
    values = dict(zip(found.objectives, trial.values or (), strict=False))
    known = {**trial.metrics, **values}
    offered = [axis for axis in found.axes if axis.name in known]
    others = sorted(set(known) - {axis.name for axis in offered})
    standing = ", on the front" if trial.number in found.columns.number[found.front()] else ""
    if trial.values is not None and not finite_values(trial.values):
        standing = ", compares with no other, since its values are not finite"
    return [
        ("trial", f"{trial.number}, {trial.state.value}{standing}"),
        ("proposed by", trial.proposer),
        *([("made from", html.Div(list(map(_parent, trial.parents)), className="acts"))] if trial.parents else []),
        *((axis.title, axis.text(known[axis.name])) for axis in offered),
        ("overall sparsity", f"{trial.overall_sparsity:.1%}"),
        *((name.replace("_", " "), f"{known[name]:.4g}") for name in others),
        ("search", "the first one" if not trial.round else f"refinement {trial.round}"),
        ("router", "static" if trial.router is None else f"number {trial.router}"),
        *([] if trial.fidelity == 1.0 else [("evaluated on", f"{trial.fidelity:.0%} of the search set")]),
        *([("constraint violation", f"{trial.constraint_violation:.3g}")] if trial.constraint_violation > 0 else []),
        ("evaluation", duration(trial.seconds)),
        *([] if trial.worker is None else [("worker", _workers(trial))]),
        # The browser puts it on its user's clock.
        ("ended", moment(trial.finished_at)),
        *([("error", trial.error)] if trial.error else []),
    ]


def _parent(number: int) -> html.Button:
    """A button that selects a trial that another was made from."""
    label = attributes(aria_label=f"Select trial {number}, which this one was made from")
    return html.Button(str(number), id={"type": "parent", "trial": number}, className="quiet", type="button", **label)


def _workers(trial: Trial) -> str:
    """The workers that evaluated a trial, one after the other."""
    return ", then ".join(name for name, _ in groupby(span.worker for span in trial.work))
