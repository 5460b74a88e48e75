"""The command `sweep`: runs several studies one after the other and compares them."""

from __future__ import annotations

import json
import shlex
import sys
import traceback
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from search.cli.log_level import is_debugging
from search.cli.options import AsJson, Note, Quiet, Storage, Tags, Track
from search.cli.tables import narrow_table
from search.config.labels import checked_labels
from search.config.run_config import DEFAULT_STORAGE
from search.config.study_name import checked_study_name
from search.config.sweep_plan import Sweep, read_sweep
from search.pipeline.early_checks import check_inputs, check_writable
from search.pipeline.opening import opened
from search.progress.views import make_view
from search.reports import write_reports
from search.startup import INTERRUPTED, ends_at_once
from studies import StudyStore
from studies.records.labels import NO_LABELS, Labels
from studies.records.study_facts import Origin
from studies.store.results_folder import check_comparison, own_origins

if TYPE_CHECKING:
    from dashboards.analysis.tables import Table as PageTable
    from search.pipeline.sweep import Outcome
    from search.progress.progress_view import ProgressView


def sweep_command(
    file: Annotated[
        Path,
        typer.Argument(
            metavar="FILE", help="YAML file of models, targets and seeds to combine (see docs/pipeline.md)."
        ),
    ],
    tag: Tags = None,
    note: Note = None,
    storage: Storage = DEFAULT_STORAGE,
    track: Track = "",
    quiet: Quiet = False,
    as_json: AsJson = False,
) -> None:
    """Run a study for each model, target and seed of a file and compare them; finished studies are not run again.

    Example: ftp-search sweep sweep.yaml
    """
    sweep, labels = read_sweep(file), checked_labels(tag or (), note or "")
    for study in sweep.studies:
        checked_study_name(study.name, "--name")
    go_through(sweep, storage, make_view(quiet, track), quiet, as_json, labels=labels)


def go_through(
    sweep: Sweep,
    storage: str,
    view: ProgressView,
    quiet: bool,
    as_json: bool,
    overwrite: bool = False,
    labels: Labels = NO_LABELS,
) -> None:
    """Runs the studies of a sweep, then compares those that have finished."""
    for study in sweep.studies:
        check_inputs(study.config)
    with ends_at_once():
        # It loads torch and transformers.
        from search.pipeline.sweep import comparison_rows, run_sweep

    def say(line: str) -> None:
        if not quiet:
            view.console.print(line, highlight=False)

    check_writable(sweep.folder)
    with opened(storage) as store:
        known = {summary.name for summary in store.studies.summaries()} & {study.name for study in sweep.studies}
        earlier = {name: store.studies.get(name).origin for name in known}
        own = {one for name in known for one in own_origins(store.studies.get(name))}
        advice = "choose another folder with out, or delete that comparison"
        check_comparison(sweep.folder, own, {study.name for study in sweep.studies} if overwrite else (), advice)
        try:
            outcomes = run_sweep(
                sweep, store, view, say, lambda name, folder: write_reports(store, name, folder), overwrite, labels
            )
        except KeyboardInterrupt:
            print(_stopped(sweep, store, earlier if overwrite else {}), file=sys.stderr)
            raise typer.Exit(INTERRUPTED) from None
        # A study that failed to begin may have left an earlier one of its name, which is not compared.
        ended_well = tuple(outcome.study for outcome in outcomes if outcome.error is None)
        rows = comparison_rows(replace(sweep, studies=ended_well), store)
    failed = [outcome for outcome in outcomes if outcome.error is not None]
    for outcome in failed if is_debugging() else ():
        traceback.print_exception(outcome.error)
    _show(sweep, outcomes, rows, as_json)
    if failed:
        raise typer.Exit(1)


def _stopped(sweep: Sweep, store: StudyStore, replaced: Mapping[str, Origin]) -> str:
    """A line on the progress of a stopped sweep and how to go on; `replaced` are the studies it was to replace."""
    from search.pipeline.sweep import has_finished

    known = {summary.name for summary in store.studies.summaries()}
    left = [name for name, one in replaced.items() if name in known and store.studies.get(name).origin == one]
    there = [study.name for study in sweep.studies if study.name in known and study.name not in left]
    done = sum(has_finished(store, name) for name in there)
    again = "the same command without --overwrite" if replaced else "the same command"
    if left:
        commands = "; ".join(f"ftp-search delete {shlex.quote(name)}" for name in left)
        again = f"{again}, behind {commands}, since these are not replaced yet"
    return f"Stopped. {done} of {len(sweep.studies)} studies have finished; go on with {again}"


def _show(sweep: Sweep, outcomes: list[Outcome], rows: list[dict[str, Any]], as_json: bool) -> None:
    """Prints how studies ended; writes and prints their comparison."""
    # It loads plotly.
    from dashboards import write_comparison
    from dashboards.report.comparison import comparison_table, grouped

    left_out = {one.study.name: f"failed: {one.reason}" for one in outcomes if one.error is not None}
    written = [str(path) for path in write_comparison(rows, sweep.folder, left_out)] if rows else []
    if as_json:
        studies = [
            {
                "name": one.study.name,
                "model": one.study.model,
                "target": None if one.study.config.target is None else one.study.config.target.value,
                "target_kind": None if one.study.config.target is None else one.study.config.target.kind,
                "seed": one.study.config.seed,
                "state": "finished" if one.error is None else "failed",
                "was_finished": one.was_finished,
                "error": one.reason,
            }
            for one in outcomes
        ]
        compared = json.loads((sweep.folder / "comparison.json").read_text())["rows"] if rows else []
        print(json.dumps({"name": sweep.name, "studies": studies, "comparison": compared, "written": written}))
        return
    console = Console(markup=False, highlight=False)
    for group in grouped(rows):
        _print_table(console, f"{group.title} [95 % over seeds]", comparison_table(group))
    for outcome in outcomes:
        state = "has finished" if outcome.error is None else f"failed: {outcome.reason}"
        console.print(f"{outcome.study.name} {state}", soft_wrap=True)
    for path in written:
        console.print(f"wrote {path}", soft_wrap=True)


def _print_table(console: Console, title: str, table: PageTable) -> None:
    """Prints a table of the comparison page; details stand below the values that they belong to."""
    drawn = narrow_table(title, *("\n".join(column.title.replace(", ", " ").split()) for column in table.columns))
    for row in table.rows:
        drawn.add_row(*("\n".join(filter(None, (cell.text, cell.detail))) for cell in row.cells))
    console.print(drawn)
    if table.reading:
        console.print(f"{table.reading}\n", soft_wrap=True)
