"""The page of one study: its head, and its live views."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from hashlib import sha256
from typing import Any
from urllib.parse import urlencode

from dash import ALL, ClientsideFunction, Dash, Input, Output, State, dcc, html, no_update

from dashboards.analysis.tables import duration
from dashboards.app.actions import Actions
from dashboards.app.addresses import NAMESPACE, NOTHING_ASKED, Asked, Kept, keep, register_kept
from dashboards.app.data_source import Standing, Watch
from dashboards.app.pages.explore import KEPT, Exploring
from dashboards.app.pages.labelling import Labelling
from dashboards.app.pages.manage import ManagingPage
from dashboards.app.pages.other_methods import OtherMethods
from dashboards.app.pages.own_prompt import OwnPrompt
from dashboards.app.pages.trial_acts import TrialActs
from dashboards.app.parts import alert, attributes, badge, complaint, graph, nothing, tag_links
from dashboards.app.run_progress import run_view
from dashboards.app.verdict import files, verdict
from dashboards.app.view_state import looks, register_looks
from dashboards.app.views import FIGURES, PLACES, Views
from studies import StorageError, StudiesError, StudyNotFoundError
from studies.analysis.confirmation import confirmation_sentences
from studies.analysis.predictions import LatencyPredictions
from studies.records.labels import Labels
from studies.records.objectives import objective
from studies.service.submissions import RunState

_EVERY_MS = 2000
# Value and label of each view.
VIEWS: Mapping[str, str] = {
    "front": "Front",
    "schedules": "Schedules",
    "progress": "Progress",
    "routers": "Routers",
    "prompts": "Prompts",
    "log": "Log",
}

_VIEW = Kept("tab", "view", "front", tuple(VIEWS))


class StudyPage(ManagingPage):
    """One study."""

    prefix = "study-"

    def __init__(self, watch: Watch, actions: Actions, is_editor: Callable[[], bool]) -> None:
        super().__init__(watch, actions, is_editor)
        self._exploring = Exploring(watch, TrialActs(watch, actions, is_editor))
        self._views = Views(watch)
        self._own_prompt = OwnPrompt(actions, is_editor)
        self._labelling = Labelling(actions, is_editor)
        self._other_methods = OtherMethods(watch, actions, is_editor)

    def layout(self, name: str, asked: Asked = NOTHING_ASKED) -> Any:
        """The page of a study of this name."""
        try:
            standing = self._watch.standing(name)
            kept = (_VIEW, *self._exploring.kept(standing))
            axes, version = self._exploring.controls(standing, asked), self._watch.version(name)
            head, outcome, seen = self._news(standing, None)
            self._watch.read_ahead(name)
        except StudyNotFoundError as error:
            return nothing("No such study", complaint(error))
        shown = _VIEW.of(asked)
        tabs = dcc.RadioItems(
            [{"label": words, "value": view} for view, words in VIEWS.items()],
            shown,
            id="view",
            className="tabs",
            inline=True,
        )
        panels = {
            "front": [axes, self._exploring.layout(standing, asked), self._other_methods.layout(standing)],
            "schedules": [
                graph("heatmap", "schedules of the front"),
                graph("importance", "which blocks matter"),
                graph("slices", "KL by the sparsity of each block", wide=True),
                graph("parallel", "parallel coordinates", wide=True),
            ],
            "progress": [
                html.Div(
                    [
                        graph("growth-trials", "hypervolume over trials"),
                        graph("growth-seconds", "hypervolume over time"),
                    ],
                    className="pair",
                ),
                graph("credit", "proposers", wide=True),
                graph("busy", "how busy the workers were", wide=True),
            ],
            "routers": [html.Div(id="routers")],
            "prompts": [*self._own_prompt.layout(standing, self._exploring.trial(asked)), html.Div(id="prompts")],
            "log": [html.Div(id="log")],
        }
        return html.Div(
            [
                html.Div(head, id="study-head"),
                html.Div(outcome, id="study-outcome"),
                *self._labelling.layout(standing.study.labels),
                dcc.Store(id="study-seen", data=seen),
                html.Div(id="study-said", role="status", className="said"),
                html.Div(id="study-alert"),
                html.Div(tabs, role="group", **attributes(aria_label="Views of the study")),
                *(
                    html.Section(
                        content,
                        id={"type": "panel", "view": view},
                        hidden=view != shown,
                        **attributes(aria_label=VIEWS[view]),
                    )
                    for view, content in panels.items()
                ),
                *looks(VIEWS),
                *(dcc.Store(id=f"{place}-drawn") for place in FIGURES),
                *(dcc.Store(id=f"{place}-seen") for place in PLACES),
                dcc.Store(id="study", data=name),
                keep("study", kept),
                dcc.Store(id="version", data=version),
                *self._controls(),
                dcc.Location(id="study-url", refresh="callback-nav"),
                dcc.Interval(id="study-interval", interval=_EVERY_MS),
            ]
        )

    def register(self, dash: Dash) -> None:
        """Adds the callbacks."""
        dash.callback(
            Output("version", "data"),
            Output("study-head", "children"),
            Output("study-outcome", "children"),
            Output("study-seen", "data"),
            Output("study-alert", "children"),
            Input("study-interval", "n_intervals"),
            Input("study-changed", "data"),
            State("study", "data"),
            State("version", "data"),
            State("study-seen", "data"),
            prevent_initial_call=True,
        )(self.look)
        register_looks(dash)
        register_kept(dash, "study", [("view", "value"), *KEPT])
        dash.clientside_callback(
            ClientsideFunction(NAMESPACE, "showPanel"),
            Output({"type": "panel", "view": ALL}, "hidden"),
            Input("view", "value"),
            State({"type": "panel", "view": ALL}, "id"),
        )
        self._register_buttons(dash, Output("study-url", "href"))
        self._exploring.register(dash)
        self._views.register(dash)
        self._own_prompt.register(dash)
        self._labelling.register(dash)
        self._other_methods.register(dash)

    def look(self, _: int | None, __: Any, name: str, version: str | None, seen: list[str] | None) -> tuple[Any, ...]:
        """Changes of the study: its version, its head, what it came to, what is seen of these, and an error."""
        try:
            now = self._watch.version(name)
            if now == version:
                return no_update, no_update, no_update, no_update, None
            return now, *self._news(self._watch.standing(name), seen), None
        except StudiesError as error:
            # Without a version, the page is read again once the database answers.
            is_away = isinstance(error, StorageError) and version is not None
            return None if is_away else no_update, no_update, no_update, no_update, alert(complaint(error))

    def _news(self, standing: Standing, seen: list[str] | None) -> tuple[Any, Any, list[str]]:
        """The head and the outcome of a study, as far as they are not those that are seen, and what is seen of them."""
        parts = self._head(standing), self._outcome(standing)
        now = [sha256(repr(part).encode()).hexdigest() for part in parts]
        # What is drawn anew loses what was typed there, and what was opened.
        head, outcome = (
            no_update if seen and seen[place : place + 1] == [now[place]] else part for place, part in enumerate(parts)
        )
        return head, outcome, now

    def _after_deletion(self, was_done: bool, said: str) -> tuple[Any, Any]:
        return said, "/" if was_done else no_update

    def _head(self, standing: Standing) -> list[Any]:
        study, submission = standing.study, standing.submission
        config, error = study.config, None if submission is None else submission.error
        facts = [f"{config.get('model', '')} on {config.get('data', '')}", f"seed {config.get('seed', '–')}"]
        if standing.state in (RunState.RUNNING, RunState.STOPPING) and "trials_per_s" in standing.figures:
            facts.append(f"{standing.figures['trials_per_s']:.3g} trials/s")
        spent = sum(one.seconds or 0.0 for one in standing.stages)
        facts += [f"{duration(spent)} in stages that have ended"] if spent else []
        return [
            html.Div([html.H1(study.name), badge(standing.state)], className="title"),
            html.P([", ".join(facts) + ".", *_of_sweep(study.labels)], className="soft"),
            *tag_links(study.labels.tags),
            *([html.P(study.labels.note, className="soft note")] if study.labels.note else []),
            *([alert(error)] if error else []),
            *run_view(standing.progress),
        ]

    def _outcome(self, standing: Standing) -> list[Any]:
        study = standing.study
        acts: list[Any] = [*self._buttons(study.name, standing.state)]
        if acts and standing.state.is_at_rest:
            more = dcc.Input(
                id={"type": "more-trials", "of": "study"},
                type="text",
                inputMode="numeric",
                placeholder=str(study.config.get("trials", "")),
                maxLength=10,
                autoComplete="off",
            )
            acts.insert(0, html.Label([html.Span("trials"), more], className="small"))
        predictions = self._watch.predictions(study)
        return [
            *verdict(self._watch.report_data(study.name, standing), predictions),
            html.P(" ".join([_selected(standing), *confirmation_sentences(study.facts)]), className="soft"),
            *_predicted(predictions),
            html.Div([*files(study.name, standing.stages), *acts], className="acts"),
        ]


def _of_sweep(labels: Labels) -> list[Any]:
    if labels.sweep is None:
        return []
    return [" Of ", dcc.Link(f"sweep {labels.sweep}", href=f"/?{urlencode({'sweep': labels.sweep})}"), "."]


def _predicted(predictions: LatencyPredictions) -> list[Any]:
    """Predicted beside measured latency; nothing where the limits say it already."""
    if predictions.is_doubtful:
        return []
    compared = "; ".join(map(str, predictions.compared))
    return [html.P(f"Latency: {compared}.", className="soft", id="study-predictions")] if compared else []


def _selected(standing: Standing) -> str:
    study = standing.study
    selection = study.facts.selection
    if selection is not None:
        return f"Selected: trial {selection.trial}. {selection.reason}"
    if study.chosen_trial is not None:
        return f"Chosen: trial {study.chosen_trial}."
    against = objective(study.objectives[1]).title if len(study.objectives) > 1 else ""
    return f"KL against {against}; no point has been selected yet."
