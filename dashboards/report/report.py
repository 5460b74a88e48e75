"""The report of a study: a page that opens offline, and the same as text and as data beside it."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import NamedTuple

from dashboards.analysis.records import ReportData
from dashboards.report.files import replace_file
from dashboards.report.html import render_report
from dashboards.report.markdown import render_markdown
from dashboards.report.plain_values import front_csv, report_json, rows_csv, speeds_csv
from studies.store.results_folder import REPORT_FILES, claim_results


class ReportPaths(NamedTuple):
    """The files of a report.

    Attributes:
        html: The page.
        markdown: The same as text and tables.
        rows_csv: A line for each row of the table of results.
        front_csv: A line for each point of the front.
        speeds_csv: A line for each variant, prompt length and number of new tokens that was timed end to end.
        json: Everything that the page shows, for programs.
    """

    html: Path
    markdown: Path
    rows_csv: Path
    front_csv: Path
    speeds_csv: Path
    json: Path


def write_report(data: ReportData, folder: str | os.PathLike[str]) -> ReportPaths:
    """Write `report.html`, `report.md`, `rows.csv`, `front.csv`, `speeds.csv` and `report.json`, each replaced whole.

    Args:
        data: Data of the study.
        folder: Folder of the report; made if missing.

    Returns:
        The files written.

    Raises:
        ForeignResultsError: The folder holds the results of another study, or files of something else by these names.
    """
    folder = Path(folder)
    claim_results(folder, data.study)
    paths = ReportPaths(*(folder / name for name in REPORT_FILES))
    contents = (
        render_report(data),
        render_markdown(data),
        rows_csv(data),
        front_csv(data),
        speeds_csv(data),
        json.dumps(report_json(data), indent=1, allow_nan=False) + "\n",
    )
    for path, content in zip(paths, contents, strict=True):
        replace_file(path, content)
    return paths
