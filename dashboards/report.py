"""The report of a study: one page that opens offline, with its figures as data beside it."""

from __future__ import annotations

import csv
import io
import json
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import plotly.graph_objects as go
import plotly.io
from jinja2 import Environment, PackageLoader, select_autoescape
from markupsafe import Markup
from plotly.offline import get_plotlyjs

from dashboards.figures import (
    comparison_figure,
    hypervolume_figure,
    pareto_figure,
    schedule_heatmap,
    search_figure,
    training_figure,
)
from studies import Measurement, RouterRun, StudyRecord, TrialRecord, TrialState, front


@dataclass(frozen=True)
class ReportData:
    """Everything that a report is made from.

    Attributes:
        study: The study.
        trials: Its trials.
        measurements: What was measured; empty before that.
        router_runs: Its routers, oldest first.
    """

    study: StudyRecord
    trials: Sequence[TrialRecord]
    measurements: Sequence[Measurement]
    router_runs: Sequence[RouterRun]

    def measured(self, variant: str) -> Measurement | None:
        """The measurement of a variant; of the static ones, that of the chosen trial."""
        for m in self.measurements:
            if m.variant == variant and (variant != "static" or m.trial == self.study.chosen_trial):
                return m
        return None


@dataclass(frozen=True)
class _Section:
    title: str
    reading: str
    plot: Markup


def write_report(data: ReportData, folder: Path) -> list[Path]:
    """Write `report.html`, `front.csv` and `report.json`, each replaced as a whole.

    Args:
        data: What to report.
        folder: Where to; made if missing.

    Returns:
        The files written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    files = {
        "report.html": render_report(data),
        "front.csv": _front_csv(data),
        "report.json": json.dumps(_plain(data), indent=1) + "\n",
    }
    for name, content in files.items():
        partial = folder / f".{name}.partial"
        partial.write_text(content, encoding="utf-8")
        os.replace(partial, folder / name)
    return [folder / name for name in files]


def render_report(data: ReportData) -> str:
    """The page; plotly's own script is part of it, so that it needs no network."""
    environment = Environment(
        loader=PackageLoader("dashboards"), autoescape=select_autoescape(default=True), trim_blocks=True
    )
    environment.filters |= {"percent": lambda share: "-" if share is None else f"{share:.1%}"}
    dense = data.measured("dense")
    return environment.get_template("report.html.j2").render(
        study=data.study,
        n_finished=sum(t.state is TrialState.FINISHED for t in data.trials),
        n_failed=sum(t.state is TrialState.FAILED for t in data.trials),
        proposers=_proposers(data.trials),
        sentences=summary_sentences(data),
        sections=_sections(data),
        measurements=data.measurements,
        dense=dense,
        router=data.router_runs[-1] if data.router_runs else None,
        config=json.dumps(dict(data.study.config), indent=2),
        facts=json.dumps(dict(data.study.facts), indent=2),
        plotly_js=Markup(get_plotlyjs()),
    )


def summary_sentences(data: ReportData) -> list[str]:
    """What was found, in plain words: also where it is not good news."""
    if not front(data.trials):
        return ["No trial has finished yet, so there is nothing to compare."]
    dense, static, dynamic = (data.measured(variant) for variant in ("dense", "static", "dynamic"))
    if dense is None or static is None:
        return ["The search has a front, but nothing on it has been measured yet: predictions only."]
    sentences = []
    best = static if dynamic is None or dynamic.kl > static.kl else dynamic
    speed_up = dense.latency_ms / best.latency_ms
    pace = f"{speed_up:.2f} times as fast as" if speed_up >= 1 else f"slower ({speed_up:.2f}x) than"
    sentences.append(
        f"With the chosen schedule (trial {static.trial}) {static.overall_sparsity:.1%} of tokens skip a block on "
        f"average, which saves {1 - static.flops / dense.flops:.1%} of the FLOPs; with the {best.variant} router the "
        f"prefill is {pace} the dense model ({best.latency_ms:.1f} against {dense.latency_ms:.1f} ms)."
    )
    if dense.accuracy is not None and best.accuracy is not None:
        sentences.append(
            f"Accuracy is {best.accuracy:.1%} [{best.accuracy_low:.1%}, {best.accuracy_high:.1%}], where the dense "
            f"model has {dense.accuracy:.1%} [{dense.accuracy_low:.1%}, {dense.accuracy_high:.1%}], on {best.n_items} "
            "test items (95 % intervals)."
        )
    if dynamic is not None:
        verdict = "better than" if dynamic.kl < static.kl else "no better than"
        accuracy = (
            f", accuracy {dynamic.accuracy:.1%} against {static.accuracy:.1%}"
            if dynamic.accuracy is not None and static.accuracy is not None
            else ""
        )
        sentences.append(
            f"The distilled router is {verdict} the static one at the same schedule: KL {dynamic.kl:.4f} against "
            f"{static.kl:.4f}{accuracy}; it takes {dynamic.latency_ms / static.latency_ms:.2f} times as long."
        )
    return sentences


def _sections(data: ReportData) -> list[_Section]:
    figures: list[tuple[str, str, go.Figure]] = []
    chosen = data.study.chosen_trial
    if data.measurements:
        figures.append(
            (
                "What a choice costs",
                "Each point is a schedule with a router, run for real. Left is faster, up is more accurate; bars are "
                "the 95 % interval of accuracy and the quartiles of repeated timings. Points whose bars overlap are "
                "not told apart by this many items.",
                pareto_figure(data.measurements, chosen),
            )
        )
        figures.append(
            (
                "Who decides which tokens skip",
                "The same overall sparsity spent in three ways: evenly over blocks (uniform), as the search allocates "
                "it (static: first token and most recent ones), and with the trained router choosing (dynamic).",
                comparison_figure(data.measurements, chosen),
            )
        )
    points = front(data.trials)
    if points:
        figures += [
            (
                "Which blocks can do without",
                "A row is a schedule of the front. Dark blocks are skipped by most tokens; light ones are those that "
                "the model cannot spare.",
                schedule_heatmap(points, chosen),
            ),
            (
                "What was tried",
                "Every evaluated schedule, on calibration data and with predicted latency. The staircase joins those "
                "that no other beats in both.",
                search_figure(data.trials),
            ),
            (
                "Whether more trials would help",
                "The area between the front and a fixed bad corner. While it grows, better trades are still found.",
                hypervolume_figure(data.trials),
            ),
        ]
    if data.router_runs:
        figures.append(
            (
                "How the router learned",
                "Left, the losses on training batches; right, KL on examples that it never trained on. The router with "
                "the lowest held-out KL is kept.",
                training_figure(data.router_runs[-1]),
            )
        )
    return [
        _Section(
            title,
            reading,
            Markup(
                plotly.io.to_html(
                    figure,
                    include_plotlyjs=False,
                    full_html=False,
                    config={"displaylogo": False, "responsive": True},
                    div_id=f"figure-{index}",
                )
            ),
        )
        for index, (title, reading, figure) in enumerate(figures)
    ]


def _proposers(trials: Sequence[TrialRecord]) -> str:
    names = dict.fromkeys(t.proposer for t in trials)
    return ", ".join(f"{sum(t.proposer == name for t in trials)} by {name}" for name in names)


def _front_csv(data: ReportData) -> str:
    measured = {m.trial: m for m in data.measurements if m.variant == "static"}
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(
        ["trial", "overall_sparsity", *data.study.objectives, "measured_latency_ms", "accuracy", "schedule"]
    )
    for point in front(data.trials):
        m = measured.get(point.number)
        writer.writerow(
            [
                point.number,
                round(point.overall_sparsity, 6),
                *(point.values or ()),
                "" if m is None else m.latency_ms,
                "" if m is None or m.accuracy is None else m.accuracy,
                " ".join(f"{share:g}" for share in point.schedule),
            ]
        )
    return out.getvalue()


def _plain(data: ReportData) -> dict[str, Any]:
    return {
        "name": data.study.name,
        "state": data.study.state.value,
        "summary": summary_sentences(data),
        "config": dict(data.study.config),
        "objectives": list(data.study.objectives),
        "chosen_trial": data.study.chosen_trial,
        "front": [
            {"number": t.number, "schedule": list(t.schedule), "values": list(t.values or ())}
            for t in front(data.trials)
        ],
        "measurements": [asdict(m) | {"overall_sparsity": m.overall_sparsity} for m in data.measurements],
        "router_curves": dict(data.router_runs[-1].curves) if data.router_runs else None,
    }
