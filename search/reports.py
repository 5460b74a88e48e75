"""Writes reports of studies from what their database holds."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from studies import StudyStore

if TYPE_CHECKING:
    from dashboards import ReportData


def report_data(store: StudyStore, name: str) -> ReportData:
    """Reads everything that a report of a study is made from."""
    from dashboards import ReportData

    return ReportData(
        study=store.studies.get(name),
        trials=store.trials.of(name),
        measurements=store.results.measurements(name),
        router_runs=store.routers.of(name),
        examples=store.results.examples(name),
        stages=store.runs.stages(name),
        left_aside=store.trials.left_aside(name),
        compared=store.comparisons.of(name),
    )


def write_reports(store: StudyStore, name: str, folder: Path) -> list[Path]:
    """Writes the report of a study; gives its files."""
    from dashboards import write_report

    return list(write_report(report_data(store, name), folder))
