"""The command `compare`: other methods beside a study's own schedules, at equal time or operations."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from dashboards.analysis.tables import UNKNOWN, Table
from dashboards.report.methods import methods_tables
from search.cli.options import AsJson, Quiet, Storage, StudyName
from search.cli.tables import narrow_table
from search.comparison.plan import comparison_plan, listed
from search.config.run_config import DEFAULT_STORAGE, RunConfig
from search.pipeline.opening import continued
from search.progress.views import make_view
from search.startup import ends_at_once
from studies import StudyStore

if TYPE_CHECKING:
    from studies.records.compared import Compared

# Columns that are printed, with the words that stand above them.
_SHOWN = {
    **{"method": "method", "speed-up": "speed-up\n[95 %]", "FLOPs saved": "FLOPs\nsaved"},
    **{"KL, nats per token": "KL, nats per token\n[95 %]", "KL to ours": "than\nours"},
    **{"accuracy": "accuracy\n[95 %]", "accuracy to ours": "than\nours", "preparation": "prepared\nin"},
}


def compare_command(
    name: StudyName,
    settings: Mapping[str, Any],
    methods: Annotated[
        str | None,
        typer.Option("--methods", metavar="NAMES", help="Methods, separated by commas.", show_default="all"),
    ] = None,
    budgets: Annotated[
        str | None,
        typer.Option(
            "--budgets",
            metavar="X,X,...",
            help="Shares of the dense model's time, or operations, to save.",
            show_default="what the selected schedule saves",
        ),
    ] = None,
    match: Annotated[
        str, typer.Option("--match", metavar="latency|flops", help="What is alike: measured time, or operations.")
    ] = "latency",
    seeds: Annotated[
        int, typer.Option("--seeds", metavar="K", min=1, help="Seeds of each method with chance in it.")
    ] = 3,
    shapes: Annotated[
        str | None,
        typer.Option("--shapes", metavar="BxL,...", help="Further prefills to time, as rows x tokens: 1x256,8x2048."),
    ] = None,
    storage: Storage = DEFAULT_STORAGE,
    quiet: Quiet = False,
    as_json: AsJson = False,
) -> None:
    """Compare other methods with a study's schedules: on its test items, by the same clock, at the same saved time.

    Each method is prepared on the study's calibration items. What the database has is not done again.

    Example: ftp-search compare mine --methods shortgpt,laco --budgets 0.15,0.25
    """
    with StudyStore(storage, create=False) as store:
        study = store.studies.get(name)
        named, shares = (None if given is None else listed(given) for given in (methods, budgets))
        plan = comparison_plan(store, study, named, shares, match, seeds, listed(shapes or ""))
        config = RunConfig.stored(study.config, **settings)
        opening = continued(store, study, config, make_view(quiet, ""), loading=ends_at_once)
        with store.runs.lease(name) as lease:
            compared = opening(lease).compare(plan)
    if as_json:
        print(json.dumps([asdict(one) for one in compared]))
    else:
        print_compared(Console(markup=False, highlight=False), compared)


def print_compared(console: Console, compared: list[Compared]) -> None:
    """Prints a table for each target, and what could not be applied."""
    for title, table in methods_tables(compared):
        refused = [row for row in table.rows if set(row.cells[1:]) == {UNKNOWN}]
        console.print(_printed(title, table, [row for row in table.rows if row not in refused]))
        for row in refused:
            console.print(f"{row.cells[0].text}: {row.cells[0].detail}", soft_wrap=True)
        console.print(table.reading, soft_wrap=True)


def _printed(title: str, table: Table, rows: list[Any]) -> Any:
    """The columns that fit into a terminal, without details but intervals; `--json` and reports have all."""
    titles = [column.title for column in table.columns]
    shown = [place for place, name in enumerate(titles) if name in _SHOWN or "×" in name]
    printed = narrow_table(title, *(_SHOWN.get(titles[place], f"{titles[place]}\n[95 %]") for place in shown))
    for row in rows:
        cells = [row.cells[place] for place in shown]
        printed.add_row(*(f"{one.text} {one.detail * one.detail.startswith('[')}".strip() for one in cells))
    return printed
