"""The report of a study: one page that opens offline, with its numbers as data beside it."""

from __future__ import annotations

import csv
import io
import json
import math
import os
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC
from pathlib import Path
from typing import Any, NamedTuple

import plotly.graph_objects as go
import plotly.io
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup
from plotly.offline import get_plotlyjs

from dashboards.data import ReportData
from dashboards.figures import (
    VARIANT_COLOURS,
    comparison_figure,
    hypervolume_figure,
    pareto_figure,
    proposers_figure,
    schedule_heatmap,
    search_figure,
    training_figure,
)
from dashboards.summary import interval, key_figures, summary_sentences
from studies import Measurement, TrialRecord, TrialState, front
from studies.objectives import COSTS

_PLOT_CONFIG = {
    "displaylogo": False,
    "responsive": True,
    # By default Plotly 7 shows a button that uploads a figure with its data to cloud.plotly.com.
    "showSendToCloud": False,
    # A list and not what to remove: a later Plotly may come with other buttons that nobody asked for.
    "modeBarButtons": [["toImage", "resetScale2d"]],
}
_CSV_FIGURES = (
    *("kl", "perplexity", "accuracy", "accuracy_low", "accuracy_high", "n_items"),
    *("latency_ms", "latency_low_ms", "latency_high_ms", "batch", "length"),
)


class ReportPaths(NamedTuple):
    """The files of a report.

    Attributes:
        html: The page.
        front_csv: A line for each point of the front.
        json: Everything that the page shows, for programs.
    """

    html: Path
    front_csv: Path
    json: Path


@dataclass(frozen=True)
class _Section:
    """A figure with the paragraph that says how to read it; `wide` ones have panels side by side."""

    title: str
    reading: str
    figure: go.Figure
    wide: bool = False


def write_report(data: ReportData, out_dir: Path) -> ReportPaths:
    """Write `report.html`, `front.csv` and `report.json`, each replaced as a whole.

    Args:
        data: What to report.
        out_dir: Where to; made if missing.

    Returns:
        The files written.
    """
    out_dir.mkdir(parents=True, exist_ok=True)
    paths = ReportPaths(out_dir / "report.html", out_dir / "front.csv", out_dir / "report.json")
    contents = (render_report(data), _front_csv(data), json.dumps(_plain(data), indent=1, allow_nan=False) + "\n")
    for path, content in zip(paths, contents, strict=True):
        _replace(path, content)
    return paths


def render_report(data: ReportData) -> str:
    """The page; plotly's own script is part of it, so that it needs no network."""
    environment = Environment(
        loader=PackageLoader("dashboards"),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=StrictUndefined,
    )
    return environment.get_template("report.html.j2").render(
        study=data.study,
        created=data.study.created_at.astimezone(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        n_finished=sum(t.state is TrialState.FINISHED for t in data.trials),
        n_pruned=sum(t.state is TrialState.PRUNED for t in data.trials),
        n_failed=sum(t.state is TrialState.FAILED for t in data.trials),
        proposers=_proposers(data.trials),
        sentences=summary_sentences(data),
        key_figures=key_figures(data),
        sections=[
            {"title": s.title, "reading": s.reading, "wide": s.wide, "plot": _embedded(s.figure, f"figure-{index}")}
            for index, s in enumerate(_sections(data))
        ],
        rows=[_row(m, data) for m in data.measurements],
        router=data.router_runs[-1] if data.router_runs else None,
        config=json.dumps(dict(data.study.config), indent=2, default=str),
        facts=json.dumps(dict(data.study.facts), indent=2, default=str),
        plotly_js=Markup(get_plotlyjs()),
    )


def _embedded(figure: go.Figure, name: str) -> Markup:
    # Plotly escapes <, > and / in the JSON of a figure: no text of it can end the script that holds it.
    return Markup(plotly.io.to_html(figure, include_plotlyjs=False, full_html=False, config=_PLOT_CONFIG, div_id=name))


def _sections(data: ReportData) -> list[_Section]:
    """The figures in the order in which questions arise: what it costs, who decides, where, how it was found."""
    sections: list[_Section] = []
    chosen, points = data.study.chosen_trial, front(data.trials)
    if data.measurements:
        sections += [
            _Section(
                "What a choice costs",
                "Each point is a schedule with a router, run for real on data that neither search nor training saw. "
                "Further left is cheaper; the blue line joins the schedules of the front, the star is the trained "
                "router. Whiskers show the quartiles of what was timed and, where data has choices, the 95% interval "
                "of accuracy: points whose whiskers overlap are hardly told apart by this many items.",
                pareto_figure(data.measurements, chosen, data.cost.name),
            ),
            _Section(
                "Who decides which tokens skip",
                "A budget of skipped tokens spent in three ways: evenly over the blocks (uniform), as the search "
                "allocates it (static: a prompt keeps its first token and its most recent ones), and on the same "
                "schedule with the trained router choosing the tokens (dynamic).",
                comparison_figure(data.measurements, chosen),
                wide=True,
            ),
        ]
    if points:
        sections.append(
            _Section(
                "Which blocks can do without",
                "A row is a schedule of the front, with little skipped at the bottom and much at the top. Dark blocks "
                "are skipped by most tokens; blocks that stay light even at the top are those that the model cannot "
                "spare.",
                schedule_heatmap(points, chosen),
            )
        )
    if data.trials:
        sections += [
            _Section(
                "What was tried",
                "Every schedule that was evaluated to the end, with its KL on calibration data and its "
                f"{data.cost.title}{data.prefill}; lower is better in both. The staircase joins the front: the "
                "schedules that no other beats in both.",
                search_figure(data.trials, points, chosen, data.cost.name),
            ),
            _Section(
                "Whether more trials would help",
                "The area between the front and a fixed bad corner. While it grows, better trades are still found; "
                "where it has become flat, more trials are unlikely to help.",
                hypervolume_figure(data.trials, data.cost.name),
            ),
            _Section(
                "Who found it",
                "Several proposers share a search and learn from each other's results. Left, who got the trials: most "
                "go to those that have lately made the front grow fastest, and nobody starves. Right, what their "
                "trials added to what the first schedules (anchor), dense and uniform ones, had reached.",
                proposers_figure(data.trials, data.cost.name),
                wide=True,
            ),
        ]
    if data.router_runs:
        sections.append(
            _Section(
                "How the router learned",
                "Left, the losses on training batches: the total, and its parts before they are weighted. Right, KL on "
                "examples that it never trained on; the router with the lowest one is kept.",
                training_figure(data.router_runs[-1]),
                wide=True,
            )
        )
    return sections


def _row(m: Measurement, data: ReportData) -> dict[str, Any]:
    """A line of the table of measurements; a dash stands for what is not known."""
    dense = data.measured("dense")
    return {
        "variant": m.variant,
        "colour": VARIANT_COLOURS.get(m.variant, "#808080"),
        "chosen": m.trial is not None and m.trial == data.study.chosen_trial,
        "cells": [
            "–" if m.trial is None else str(m.trial),
            f"{m.overall_sparsity:.1%}",
            "–" if dense is None else f"{1 - m.flops / dense.flops:.1%}",
            "–" if m.accuracy is None else f"{m.accuracy:.1%} {interval(m)}",
            f"{m.kl:.4f}",
            f"{m.perplexity:.3f}",
            f"{m.latency_ms:.1f} [{m.latency_low_ms:.1f}, {m.latency_high_ms:.1f}]",
            "–" if dense is None else f"{dense.latency_ms / m.latency_ms:.2f}×",
            str(m.n_items),
            f"{m.batch} × {m.length}",
        ],
    }


def _proposers(trials: Sequence[TrialRecord]) -> str:
    names = dict.fromkeys(t.proposer for t in trials)
    return ", ".join(f"{sum(t.proposer == name for t in trials)} by {name}" for name in names)


def _front_csv(data: ReportData) -> str:
    """The front as a table: objectives and costs as the search saw them, and the static router's measurements."""
    measured = {m.trial: m for m in data.measurements if m.variant == "static"}
    dense = data.measured("dense")
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    others = [name for name in COSTS if name not in data.study.objectives]
    writer.writerow(
        [
            *("trial", "chosen", "overall_sparsity", *data.study.objectives, *others),
            *(f"measured_{name}" for name in _CSV_FIGURES),
            *("flops_saved", "schedule"),
        ]
    )
    for point in front(data.trials):
        m = measured.get(point.number)
        writer.writerow(
            [
                point.number,
                int(point.number == data.study.chosen_trial),
                round(point.overall_sparsity, 6),
                *(point.values or ()),
                *(point.metrics.get(name, "") for name in others),
                *("" if m is None or getattr(m, name) is None else getattr(m, name) for name in _CSV_FIGURES),
                "" if m is None or dense is None else round(1 - m.flops / dense.flops, 6),
                " ".join(f"{share:g}" for share in point.schedule),
            ]
        )
    return out.getvalue()


def _plain(data: ReportData) -> dict[str, Any]:
    latest = data.router_runs[-1] if data.router_runs else None
    plain: dict[str, Any] = _jsonable(
        {
            "name": data.study.name,
            "state": data.study.state.value,
            "created_at": data.study.created_at.isoformat(),
            "summary": summary_sentences(data),
            "config": data.study.config,
            "objectives": data.study.objectives,
            "chosen_trial": data.study.chosen_trial,
            "front": [
                {
                    "number": t.number,
                    "schedule": t.schedule,
                    "overall_sparsity": t.overall_sparsity,
                    "values": t.values,
                    "costs": {name: t.metrics[name] for name in COSTS if name in t.metrics},
                }
                for t in front(data.trials)
            ],
            "measurements": [asdict(m) | {"overall_sparsity": m.overall_sparsity} for m in data.measurements],
            "router_curves": None if latest is None else latest.curves,
        }
    )
    return plain


def _jsonable(value: Any) -> Any:
    """The value in terms of JSON, which knows neither NaN nor infinity: they become null."""
    if isinstance(value, Mapping):
        return {str(key): _jsonable(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_jsonable(item) for item in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value if value is None or isinstance(value, (str, int)) else str(value)


def _replace(path: Path, content: str) -> None:
    """Write a file so that whoever reads it sees the old one or the new one, and never a part."""
    # Two programs may write the same report at once: each needs a name of its own.
    partial = path.with_name(f".{path.name}.{secrets.token_hex(4)}.partial")
    try:
        partial.write_text(content, encoding="utf-8", newline="\n")
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)
