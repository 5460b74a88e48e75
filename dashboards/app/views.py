"""The other views of a study: schedules, progress, routers, prompts, log; each is drawn while it is looked at."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from hashlib import sha256
from typing import Any

import plotly.graph_objects as go
from dash import ClientsideFunction, Dash, Input, Output, State, html, no_update
from plotly.io.json import to_json_plotly

from dashboards.analysis.axes import default_axes
from dashboards.analysis.trials import Found
from dashboards.app.addresses import NAMESPACE
from dashboards.app.data_source import Watch
from dashboards.app.parts import drawn, in_theme, nothing
from dashboards.app.shaded import article, legend_line
from dashboards.app.view_state import Look, look_at, while_looked_at
from dashboards.figures import (
    groups_figure,
    growth_figure,
    parallel_figure,
    proposers_figure,
    schedules_figure,
    sensitivities_figure,
    slices_figure,
    training_figure,
    workers_figure,
)
from dashboards.figures.appearance import empty_figure
from dashboards.report.prompts import shaded_prompts
from studies import StudyRecord

Draw = Callable[[Found, StudyRecord], go.Figure]


def _workers(study: StudyRecord) -> int | None:
    said = study.config.get("workers")
    return said if isinstance(said, int) and said > 0 else None


# For each figure of a fixed place: its view, and what draws it.
FIGURES: dict[str, tuple[str, Draw]] = {
    "heatmap": ("schedules", lambda found, study: schedules_figure(found, study.chosen_trial)),
    "importance": ("schedules", lambda found, study: sensitivities_figure(found)),
    "slices": ("schedules", lambda found, study: slices_figure(found)),
    "parallel": ("schedules", lambda found, study: parallel_figure(found, default_axes(study.objectives)[0])),
    "growth-trials": ("progress", lambda found, study: growth_figure(found)),
    "growth-seconds": ("progress", lambda found, study: growth_figure(found, by_seconds=True)),
    "credit": ("progress", lambda found, study: proposers_figure(found)),
    "busy": ("progress", lambda found, study: workers_figure(found, _workers(study))),
}
# The places of the views that are no figure, or several.
PLACES = ("routers", "prompts", "log")


class Views:
    """Views that only show."""

    def __init__(self, watch: Watch) -> None:
        self._watch = watch

    def register(self, dash: Dash) -> None:
        """Add the callbacks."""
        study = State("study", "data")
        for place, (view, _) in FIGURES.items():
            look = Input(look_at(view), "data")
            draw = while_looked_at(partial(self._drawn, place))
            dash.callback(Output(f"{place}-drawn", "data"), look, study, prevent_initial_call=True)(draw)
            # As it draws what somebody zoomed, Dash takes the zoom for the figure's own, and Plotly's uirevision for
            # done: a new figure would show everything again.
            dash.clientside_callback(
                ClientsideFunction(NAMESPACE, "keepZoom"),
                Output(place, "figure"),
                Output(place, "style"),
                Input(f"{place}-drawn", "data"),
                State(place, "figure"),
                prevent_initial_call=True,
            )
        for place, show in zip(PLACES, (self.routers, self.prompts, self.log), strict=True):
            look = Input(look_at(place), "data")
            shown = while_looked_at(partial(self._news, show))
            dash.callback(
                Output(place, "children"),
                Output(f"{place}-seen", "data"),
                look,
                study,
                State(f"{place}-seen", "data"),
                prevent_initial_call=True,
            )(shown)

    def _news(self, show: Callable[[Look, str], Any], look: Look, name: str, seen: str | None) -> tuple[Any, Any]:
        # What is as before stays: anew, figures would show everything again, and the keyboard's focus be lost.
        content = show(look, name)
        now = sha256(to_json_plotly(content).encode()).hexdigest()
        return (no_update, no_update) if now == seen else (content, now)

    def _drawn(self, place: str, look: Look, name: str) -> go.Figure:
        if place == "parallel" and not look["webgl"]:
            return in_theme(empty_figure("Schedules, block by block", "This figure needs WebGL."), look["theme"])
        return self.figure(place, name, look["theme"])

    def figure(self, place: str, name: str, theme: str | None) -> go.Figure:
        """One of the figures that have a fixed place."""
        figure = FIGURES[place][1](self._watch.found(name), self._watch.standing(name).study)
        return in_theme(figure, theme).update_layout(uirevision=place)

    def routers(self, look: Look, name: str) -> Any:
        """The training curves of every router."""
        runs = self._watch.store.routers.of(name)
        if not runs:
            return nothing("No routers", "None has been distilled yet: that comes after the first search.")
        selection = self._watch.standing(name).study.facts.selection
        figures = ((run.number, in_theme(training_figure(run, selection), look["theme"])) for run in runs)
        return [drawn(figure, f"training of router {number}", wide=True) for number, figure in figures]

    def prompts(self, look: Look, name: str) -> Any:
        """Example prompts, their tokens shaded by how many blocks they run."""
        examples = self._watch.store.results.examples(name)
        if examples is None or not examples.prompts:
            return nothing("No prompts", "They are looked at once the selected point is tested.")
        shown: list[Any] = [legend_line(examples), *(article(one, "selected") for one in shaded_prompts(examples))]
        if examples.groups:
            groups = in_theme(groups_figure(examples.groups, None), look["theme"])
            shown.append(drawn(groups, "accuracy by group", wide=True))
        return shown

    def log(self, look: Look, name: str) -> Any:
        """The log of the runs, and the configuration."""
        lines, standing = self._watch.log(name), self._watch.standing(name)
        text = "\n".join(f"{line.at:%H:%M:%S}  {line.content.get('text', '')}" for line in lines)
        # Where the cluster is concerns nobody who may not decide it.
        config = {key: value for key, value in standing.study.config.items() if key != "ray_address"}
        stages = [f"{one.name}: {one.state.value}" for one in standing.stages]
        return [
            html.Pre(text, className="log", tabIndex=0)
            if text
            else nothing("No log", "No run has written anything yet."),
            html.P("Stages: " + (", ".join(stages) if stages else "none has begun") + ".", className="soft"),
            html.Details([html.Summary("Configuration"), html.Pre(json.dumps(config, indent=2, default=str))]),
        ]
