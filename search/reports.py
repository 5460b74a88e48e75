"""Writes reports of studies from what their database holds."""

from __future__ import annotations

from pathlib import Path

from studies import StudyStore


def write_reports(store: StudyStore, name: str, folder: Path) -> list[Path]:
    """Write the report of a study; gives its files."""
    from dashboards import ReportData, write_report

    data = ReportData(
        study=store.studies.get(name),
        trials=store.trials.of(name),
        measurements=store.results.measurements(name),
        router_runs=store.routers.of(name, with_weights=False),
        exhibits=store.results.exhibits(name),
        stages=store.runs.stages(name),
        left_aside=store.trials.left_aside(name),
    )
    return list(write_report(data, folder))
