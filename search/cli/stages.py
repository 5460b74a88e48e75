"""Runs stages of a study's pipeline for a command, then shows and writes what there is."""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import typer
from rich.console import Console

from search.cli.arguments import output_folder
from search.cli.tables import print_front, print_measurements
from search.config import DEFAULT_STORAGE
from search.description import describe_study
from studies import Lease, StudiesError, StudyStore

if TYPE_CHECKING:
    from search.pipeline import Pipeline

INTERRUPTED = 130

Stage = Callable[["Pipeline"], None]


def continue_study(
    stage: Stage, pipeline: Callable[[Lease], Pipeline], store: StudyStore, name: str, out: Path | None, as_json: bool
) -> None:
    """Run stages of a pipeline, then show and write what there is."""
    folder = output_folder(name, out)
    try:
        with store.lease(name) as lease:
            stage(pipeline(lease))
    except KeyboardInterrupt:
        words = ["ftp-search", "resume", name]
        # The password is not repeated: what a terminal shows is often logged.
        words += [] if str(store) == DEFAULT_STORAGE else ["--storage", repr(store)]
        words += [] if out is None else ["--out", str(out)]
        try:
            with store.hurried():
                kept = f"{store.n_trials(name)} trials are kept"
        except StudiesError:
            kept = "What the database confirmed is kept"
        print(f"Stopped. {kept}; go on with: {shlex.join(words)}", file=sys.stderr)
        raise typer.Exit(INTERRUPTED) from None
    written = write_reports(store, name, folder)
    description = describe_study(store, name)
    if as_json:
        print(json.dumps(description | {"written": [str(path) for path in written]}))
        return
    console = Console(markup=False, highlight=False)
    print_front(console, description)
    print_measurements(console, description)
    for path in written:
        console.print(f"wrote {path}", soft_wrap=True)


def write_reports(store: StudyStore, name: str, folder: Path) -> list[Path]:
    """Write the report of a study; gives its files."""
    from dashboards import ReportData, write_report

    data = ReportData(
        study=store.study(name),
        trials=store.trials(name),
        measurements=store.measurements(name),
        router_runs=store.router_runs(name),
    )
    return list(write_report(data, folder))
