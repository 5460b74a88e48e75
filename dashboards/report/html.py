"""The report as a page that opens offline."""

from __future__ import annotations

import json
from collections import Counter
from itertools import count
from typing import Any

import plotly.graph_objects as go
import plotly.io
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup
from plotly.offline import get_plotlyjs

from dashboards.analysis.records import ReportData
from dashboards.analysis.selection import held_out, why_selected
from dashboards.figures.appearance import PLOT_CONFIG
from dashboards.report.effort import effort_table, rounds_table, routers_table, tuning_table
from dashboards.report.elsewhere import elsewhere_table
from dashboards.report.limits import disagreements, limits
from dashboards.report.methods import methods_tables
from dashboards.report.prompts import judged, legend, shaded_prompts
from dashboards.report.results import results_table
from dashboards.report.sections import Section, group_section, measured_sections, search_sections, training_sections
from dashboards.report.speeds import speeds_table
from dashboards.report.summary import key_figures, summary_sentences
from studies import TrialState
from studies.sql.times import local_text

# A list and not what to remove: a later Plotly may come with other buttons that nobody asked for.
_PLOT_CONFIG = PLOT_CONFIG | {"modeBarButtons": [["toImage", "resetScale2d"]]}


def environment() -> Environment:
    """The environment of templates: text is escaped, and a name that is not known is an error."""
    return Environment(
        loader=PackageLoader("dashboards.report"),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=StrictUndefined,
    )


def render_report(data: ReportData) -> str:
    """The page; plotly's own script is part of it, so that it needs no network."""
    states = Counter(trial.state for trial in data.trials)
    numbers = count()

    def drawn(section: Section) -> dict[str, Any]:
        plot = _embedded(section.figure, f"figure-{next(numbers)}")
        return {"title": section.title, "reading": section.reading, "wide": section.wide, "plot": plot}

    groups = group_section(data)
    return (
        environment()
        .get_template("report.html.j2")
        .render(
            study=data.study,
            title=data.title,
            verdict=data.verdict,
            chance=data.chance,
            next_steps=data.next_steps,
            state=data.state,
            labels=data.labels,
            created=local_text(data.study.created_at),
            n_finished=states[TrialState.FINISHED],
            n_pruned=states[TrialState.PRUNED],
            n_failed=states[TrialState.FAILED],
            proposers=", ".join(f"{n} by {name}" for name, n in Counter(t.proposer for t in data.trials).items()),
            sentences=summary_sentences(data),
            key_figures=key_figures(data),
            results=results_table(data),
            elsewhere=elsewhere_table(data),
            methods=methods_tables(data.compared),
            speeds=speeds_table(data),
            why=why_selected(data),
            held_out=held_out(data),
            measured=[drawn(section) for section in measured_sections(data)],
            prompts=shaded_prompts(data.examples),
            judged=judged(data.examples),
            legend=legend(data.examples),
            groups=None if groups is None else drawn(groups),
            limits=limits(data),
            disagreements=disagreements(data),
            worst=data.examples.disagreements if data.examples else (),
            searched=[drawn(section) for section in search_sections(data)],
            rounds=rounds_table(data),
            tuning=tuning_table(data),
            trained=[drawn(section) for section in training_sections(data)],
            routers=routers_table(data),
            effort=effort_table(data),
            config=json.dumps(dict(data.study.config), indent=2, default=str),
            facts=json.dumps(data.study.facts.to_json(), indent=2),
            router_runs=data.router_runs,
            plotly_js=Markup(get_plotlyjs()),
        )
    )


def _embedded(figure: go.Figure, name: str) -> Markup:
    # Plotly escapes <, > and / in the JSON of a figure: no text of it can end the script that holds it.
    return Markup(plotly.io.to_html(figure, include_plotlyjs=False, full_html=False, config=_PLOT_CONFIG, div_id=name))
