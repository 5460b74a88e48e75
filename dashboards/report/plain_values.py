"""A report's numbers for programs: one JSON, and two tables as CSV."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from dashboards.analysis.records import ReportData
from dashboards.analysis.selection import held_out, why_selected
from dashboards.report.files import jsonable
from dashboards.report.limits import disagreements, limits
from dashboards.report.results import plain_result, results
from dashboards.report.summary import summary_sentences
from studies import front
from studies.records.objectives import COSTS

_POINT = ("number", "round", "router", "schedule", "overall_sparsity", "values")
_ROUTER = ("number", "trial", "schedule", "config", "curves", "sha256", "seconds")
_CSV_FIGURES = (
    *("kl", "perplexity", "accuracy", "accuracy_low", "accuracy_high", "n_items"),
    *("latency_ms", "latency_low_ms", "latency_high_ms", "speedup", "speedup_low", "speedup_high", "batch", "length"),
)


def report_json(data: ReportData) -> dict[str, Any]:
    """Everything that the page shows, and the intervals and curves behind it, in terms of JSON."""
    facts = data.study.facts
    plain: dict[str, Any] = jsonable(
        {
            "name": data.study.name,
            "state": data.state,
            "created_at": data.study.created_at.isoformat(),
            "title": data.title,
            **asdict(data.study.labels),
            "verdict": data.verdict,
            "next": [asdict(step) for step in data.next_steps],
            "chance": data.chance,
            "summary": summary_sentences(data),
            "selection": None if data.selection is None else asdict(data.selection),
            "why_selected": why_selected(data),
            "held_out": held_out(data),
            "limits": limits(data),
            "disagreements": disagreements(data),
            "config": data.study.config,
            "facts": facts.to_json(),
            "objectives": data.study.objectives,
            "chosen_trial": data.chosen_trial,
            "rows": [plain_result(one) for one in results(data)],
            "front": [
                {
                    **{name: getattr(t, name) for name in _POINT},
                    "costs": {name: t.metrics[name] for name in COSTS if name in t.metrics},
                }
                for t in front(data.trials)
            ],
            "generation_speeds": [asdict(one) for one in data.speeds],
            "measurements": [asdict(m) | {"overall_sparsity": m.overall_sparsity} for m in data.measurements],
            "rounds": [asdict(one) for one in facts.rounds],
            "tuning": None if facts.tuning is None else asdict(facts.tuning),
            "stages": [{"name": s.name, "state": s.state.value, "seconds": s.seconds} for s in data.stages],
            "evaluation_seconds": sum(t.seconds for t in data.trials),
            "routers": [{name: getattr(run, name) for name in _ROUTER} for run in data.router_runs],
            "examples": None if data.examples is None else asdict(data.examples),
        }
    )
    return plain


def front_csv(data: ReportData) -> str:
    """The front as a table: objectives and costs as the search saw them, and what was measured of it."""
    dense = data.measured("dense")
    others = [name for name in COSTS if name not in data.study.objectives]
    headings = [
        *("trial", "chosen", "overall_sparsity", *data.study.objectives, *others),
        *(f"measured_{name}" for name in _CSV_FIGURES),
        *("flops_saved", "schedule"),
    ]
    lines = []
    for point in front(data.trials):
        m = data.measured_point(point)
        lines.append(
            [
                point.number,
                int(point.number == data.chosen_trial),
                round(point.overall_sparsity, 6),
                *(point.values or ()),
                *(point.metrics.get(name, "") for name in others),
                *("" if m is None or getattr(m, name) is None else getattr(m, name) for name in _CSV_FIGURES),
                "" if m is None or dense is None else round(1 - m.flops / dense.flops, 6),
                " ".join(f"{share:g}" for share in point.schedule),
            ]
        )
    return csv_text(headings, lines)


def rows_csv(data: ReportData) -> str:
    """The table of results, one line a row, with all that was measured."""
    return records_csv([plain_result(one) for one in results(data)])


def speeds_csv(data: ReportData) -> str:
    """Times of generation: a line for each variant, prompt length and number of new tokens."""
    return records_csv([asdict(one) for one in data.speeds])


def records_csv(records: Sequence[Mapping[str, Any]]) -> str:
    """Records with the same keys as a table; None is empty, and sequences are separated by spaces."""
    headings = list(records[0]) if records else []
    return csv_text(headings, [[_field(record[key]) for key in headings] for record in records])


def csv_text(headings: Sequence[str], lines: Sequence[Sequence[Any]]) -> str:
    """A table as CSV."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(headings)
    writer.writerows(lines)
    return out.getvalue()


def _field(value: Any) -> Any:
    if isinstance(value, (list, tuple)):
        return " ".join(f"{item:g}" for item in value)
    return "" if value is None else int(value) if isinstance(value, bool) else value
