"""Runs stages of a pipeline for a command, then writes and shows the results."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import typer
from rich.console import Console

from search.cli.show import describe_study
from search.cli.tables import print_results, print_verdict
from search.config.study_name import resume_command
from search.reports import write_reports
from search.startup import INTERRUPTED
from studies import StudiesError, StudyState, StudyStore
from studies.store.lease import Lease

if TYPE_CHECKING:
    from search.pipeline.pipeline import Pipeline, Report

Stage = Callable[["Pipeline", "Report"], None]


def continue_study(
    stage: Stage, pipeline: Callable[[Lease], Pipeline], store: StudyStore, name: str, as_json: bool
) -> None:
    """Runs stages of a pipeline, then writes and shows the results."""
    written: list[Path] = []

    def report(folder: Path) -> Sequence[Path]:
        written[:] = write_reports(store, name, folder)
        return written

    try:
        with store.runs.lease(name) as lease:
            opened = pipeline(lease)
            stage(opened, report)
    except KeyboardInterrupt:
        try:
            with store.hurried():
                if store.studies.is_aside(name):
                    print(f"Stopped before anything was evaluated; study {name} stays as it was", file=sys.stderr)
                    raise typer.Exit(INTERRUPTED) from None
                kept = f"{store.trials.n_ended(name)} trials are kept"
        except StudiesError:
            kept = "What the database confirmed is kept"
        print(f"Stopped. {kept}; go on with: {resume_command(repr(store), name)}", file=sys.stderr)
        raise typer.Exit(INTERRUPTED) from None
    folder = opened.config.folder(name)
    if not written:
        # A search alone writes none itself.
        report(folder)
    has_model = any(one.name == "export" and one.state is StudyState.FINISHED for one in store.runs.stages(name))
    exported = folder / "model" if has_model else None
    description = describe_study(store, name)
    if as_json:
        files = {"written": [str(path) for path in written], "exported": exported and str(exported)}
        print(json.dumps(description | files))
        return
    console = Console(markup=False, highlight=False)
    print_results(console, description)
    for path in (*written, *filter(None, [exported])):
        console.print(f"wrote {path}", soft_wrap=True)
    print_verdict(console, description)
