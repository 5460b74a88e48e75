"""The page that puts several studies side by side: fronts, hypervolumes, schedules, settings, results."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

from dash import Dash, Input, Output, dcc, html

from dashboards.analysis.axes import OFFERED, Axis
from dashboards.analysis.compared import common_volumes, differing_settings, volumes_table
from dashboards.analysis.trials import Found
from dashboards.app.addresses import NOTHING_ASKED, Asked, Kept, keep, register_kept
from dashboards.app.data_source import MOST_STUDIES, Standing, Watch
from dashboards.app.parts import axis_choices, complaint, drawn, graph, in_theme, nothing, read_table, terms
from dashboards.app.view_state import unless_away
from dashboards.figures import distributions_figure, fronts_figure, selected_schedules_figure
from dashboards.figures.appearance import empty_figure
from dashboards.figures.front import FRONT_PX
from dashboards.report.comparison import METHOD, comparison_table, grouped, seeds_table
from studies import StorageError, StudiesError
from studies.records.target import Target

# Trials of more studies are not kept in memory.
MOST = MOST_STUDIES
_AGAIN_MS = 5000
_DIFFER = "Settings that differ"


class ComparePage:
    """Several studies on one plot."""

    def __init__(self, watch: Watch) -> None:
        self._watch = watch

    def layout(self, _: str, asked: Asked = NOTHING_ASKED) -> Any:
        """The page."""
        names = self._watch.names()
        if not names:
            return nothing("Nothing to compare", "There are no studies yet.")
        compared = Kept("study", "compared", names[:2], names)
        x, y = Kept("x", "compare-x", "latency_ms", OFFERED), Kept("y", "compare-y", "kl", OFFERED)
        studies = dcc.Dropdown(
            names, compared.of(asked), id="compared", multi=True, placeholder=f"At most {MOST} studies"
        )
        axes = axis_choices(("upwards", "compare-y", y.of(asked)), ("across", "compare-x", x.of(asked)))
        gone = [name for name in dict.fromkeys(asked.get("study", ())) if name and name not in names]
        return html.Div(
            [
                html.H1("Compare studies"),
                _left_out(dict.fromkeys(gone, "there is no such study: it may have been deleted")),
                html.Label([html.Span("studies", className="name-of"), studies]),
                html.Div(axes, className="bar"),
                html.Div(id="compare-verdicts"),
                graph("compare-figure", "fronts of several studies", height=FRONT_PX),
                html.Div(id="compare-missing"),
                html.Div(id="compare-distributions"),
                html.Div(id="compare-details"),
                keep("compare", (compared, x, y)),
                dcc.Interval(id="compare-again", interval=_AGAIN_MS, disabled=True),
            ]
        )

    def register(self, dash: Dash) -> None:
        """Add the callbacks."""
        dash.callback(
            Output("compare-figure", "figure"),
            Output("compare-missing", "children"),
            Output("compare-again", "disabled"),
            Input("compared", "value"),
            Input("compare-x", "value"),
            Input("compare-y", "value"),
            Input("theme", "data"),
            Input("compare-again", "n_intervals"),
        )(self.figure)
        register_kept(dash, "compare", [(one, "value") for one in ("compared", "compare-x", "compare-y")])
        dash.callback(Output("compare-verdicts", "children"), Input("compared", "value"))(self.verdicts)
        dash.callback(
            Output("compare-details", "children"),
            Input("compared", "value"),
            Input("theme", "data"),
            Input("compare-again", "n_intervals"),
        )(unless_away(self.details))
        dash.callback(
            Output("compare-distributions", "children"),
            Input("compared", "value"),
            Input("compare-y", "value"),
            Input("theme", "data"),
            Input("compare-again", "n_intervals"),
        )(unless_away(self.distributions))

    def verdicts(self, names: Sequence[str] | None) -> Any:
        """The verdicts of the studies of these names, as far as they are known."""
        said: list[tuple[str, Any]] = []
        for name in (names or [])[:MOST]:
            # Of a study that cannot be read the figure says why.
            with suppress(StudiesError):
                verdict = self._watch.report_data(name, self._watch.standing(name)).verdict
                said.append((name, verdict or "Nothing is known yet."))
        return terms(said) if said else None

    def figure(
        self, names: Sequence[str] | None, x: str, y: str, theme: str | None, _: int | None = None
    ) -> tuple[Any, Any, bool]:
        """The fronts of the studies of these names, which are left out, and whether that is all.

        If it is not all, it is asked for again.
        """
        try:
            found, left_out = self._found(names or ())
        except StorageError as error:
            return in_theme(empty_figure("Compare", complaint(error)), theme), None, False
        axes = f"{Axis(x).title} and {Axis(y).title}"
        left_out |= {name: f"no trial knows {axes}" for name, one in found.items() if not len(one.drawable(x, y))}
        return in_theme(fronts_figure(found, x, y), theme), _left_out(left_out), True

    def distributions(self, names: Sequence[str] | None, y: str, theme: str | None, _: int | None = None) -> Any:
        """How the quantity upwards is distributed over the trials of each study."""
        found = self._found(names or ())[0]
        if not found:
            return None
        return drawn(in_theme(distributions_figure(found, y), theme), f"distribution of {Axis(y).title}")

    def details(self, names: Sequence[str] | None, theme: str | None, _: int | None = None) -> Any:
        """What is compared beside the fronts: hypervolumes, selected schedules, settings and results."""
        found = self._found(names or ())[0]
        if not found:
            return None
        standings = {name: self._watch.standing(name) for name in found}
        volumes = common_volumes(found)
        table = volumes_table(volumes, found)
        shown = read_table("Hypervolume", table, "Hypervolumes") if table.rows else [html.H2("Hypervolume")]
        shown += [_left_out(volumes.left_out)]
        settings = differing_settings({name: one.study.config for name, one in standings.items()})
        return [
            *shown,
            *self._schedules(standings, theme),
            *(read_table(_DIFFER, settings, _DIFFER) if settings.rows else _same(len(found))),
            *self._results(standings),
        ]

    def _schedules(self, standings: Mapping[str, Standing], theme: str | None) -> list[Any]:
        selected, left_out = {}, {}
        for name, standing in standings.items():
            number = standing.study.chosen_trial
            trial = None if number is None else self._watch.store.trials.find(name, number)
            if trial is None:
                left_out[name] = "no trial has been selected yet"
            else:
                selected[name] = (trial.number, trial.schedule)
        figure = in_theme(selected_schedules_figure(selected), theme)
        # The figure has the title.
        place = drawn(figure, "selected schedules", wide=True) if selected else html.H2("Selected schedules")
        return [place, _left_out(left_out)]

    def _results(self, standings: Mapping[str, Standing]) -> list[Any]:
        """Tables of what was measured on test items: one for the studies of each model and target."""
        rows = [
            {
                "study": name,
                "created_at": standing.study.created_at.isoformat(),
                "model": standing.study.config.get("model", ""),
                "target": Target.of(standing.study.config),
                "seed": standing.study.config.get("seed", 0),
                "measurements": self._watch.store.results.measurements(name),
                "facts": standing.study.facts,
                "examples": self._watch.store.results.examples(name),
            }
            for name, standing in standings.items()
        ]
        untested = [row["study"] for row in rows if not any(one.split == "test" for one in row["measurements"])]
        shown: list[Any] = [html.H2("Measured on test items")]
        for group in grouped([row for row in rows if row["study"] not in untested]):
            table = seeds_table(group)
            shown += read_table(group.title, table, group.title)
            own = {seed.study: standings[seed.study].study.config for mean in group.means for seed in mean.seeds}
            # Studies that differ in more than the seed have no mean.
            if [line.cells[0].text for line in differing_settings(own).rows] == ["seed"]:
                shown += read_table(f"{group.title}: means over seeds", comparison_table(group), "Means over seeds")
        shown += [html.Details([html.Summary("How to read the numbers"), html.P(METHOD, className="soft")])]
        left_out = dict.fromkeys(untested, "nothing has been measured on test items yet")
        return [*(shown if len(untested) < len(rows) else shown[:1]), _left_out(left_out)]

    def _found(self, names: Sequence[str]) -> tuple[dict[str, Found], dict[str, str]]:
        """Trials by study, and why others are left out; raises `StorageError` if the database does not answer."""
        found: dict[str, Found] = {}
        left_out = dict.fromkeys(names[MOST:], f"at most {MOST} studies are compared at once")
        for name in names[:MOST]:
            try:
                found[name] = self._watch.found(name)
            except StorageError:
                raise
            except StudiesError as error:
                left_out[name] = complaint(error).rstrip(".")
        return found, left_out


def _same(n_studies: int) -> list[Any]:
    """What stands in place of settings that differ."""
    return [html.H2(_DIFFER), html.P("None: they have the same settings.", className="soft")] if n_studies > 1 else []


def _left_out(reasons: Mapping[str, str]) -> Any:
    """Studies that are not shown, each with its reason; nothing if there are none."""
    return html.Ul([html.Li(f"Left out: {name}: {why}.") for name, why in reasons.items()], className="limits")
