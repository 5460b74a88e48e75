"""Writes reports of studies from what their database holds."""

from __future__ import annotations

from pathlib import Path

from search.config.run_config import RunConfig
from studies import StudyStore


def study_folder(store: StudyStore, name: str) -> Path:
    """Where the report and the pruned model of a study go."""
    return RunConfig.stored(store.study(name).config).folder(name)


def write_reports(store: StudyStore, name: str, folder: Path) -> list[Path]:
    """Write the report of a study; gives its files."""
    from dashboards import ReportData, write_report

    data = ReportData(
        study=store.study(name),
        trials=store.trials(name),
        measurements=store.measurements(name),
        router_runs=store.router_runs(name, with_weights=False),
        exhibits=store.exhibits(name),
        stages=store.stages(name),
        left_aside=store.left_aside(name),
    )
    return list(write_report(data, folder))
