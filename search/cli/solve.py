"""The command `solve`: the best few schedules at another target, from what a study knows."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from search.cli.options import AsJson, Quiet, Storage, StudyName
from search.cli.tables import in_short, narrow_table
from search.config.run_config import DEFAULT_STORAGE
from search.pipeline.opening import continued
from search.pipeline.resume_settings import check_solve
from search.progress.views import make_view
from search.startup import ends_at_once
from studies import StudyStore

if TYPE_CHECKING:
    from search.stages.solve import Solved

DEFAULT_BEST = 4


def solve_command(
    name: StudyName,
    settings: Mapping[str, Any],
    best: Annotated[
        int, typer.Option("--best", metavar="K", help="Number of schedules to solve for and evaluate.  [x>=1]")
    ] = DEFAULT_BEST,
    storage: Storage = DEFAULT_STORAGE,
    quiet: Quiet = False,
    as_json: AsJson = False,
) -> None:
    """Solve a study for another target from what it knows, and evaluate the best few schedules there.

    What it knows holds near what it tried: compare with the shortened prompt's row.

    Example: ftp-search solve mine --target-flops-saved 0.4
    """
    with StudyStore(storage, create=False) as store:
        study = store.studies.get(name)
        config, target = check_solve(study, store.trials.of(name), settings, best, storage)
        opening = continued(store, study, config, make_view(quiet, ""), loading=ends_at_once)
        with store.runs.lease(name) as lease:
            solved = opening(lease).solve(target, best)
    if as_json:
        print(json.dumps(solved.to_json()))
    else:
        print_solved(Console(markup=False, highlight=False), solved)


def print_solved(console: Console, solved: Solved) -> None:
    """Prints the solutions of a study, the best one first."""
    items = "fresh items" if solved.are_fresh else "items of the search set"
    table = narrow_table(
        f"{solved.study} at {solved.target}: KL on {solved.n_items} {items}, learned from {solved.learned_from} trials",
        *("trial", "KL, nats per token\n[95 %]", "share of the\nshortened prompt's", "KL on the\nsearch set"),
        *("overall\nsparsity", "FLOPs\nsaved"),
    )
    has_latency = any(one.latency_ms is not None for one in solved.solutions)
    if has_latency:
        table.add_column("ms\npredicted", justify="right")
    table.add_column("% of tokens that skip blocks", overflow="fold")
    for one in solved.solutions:
        low, high = one.kl_interval
        share = "-" if one.share is None else f"{one.share:.2f}"
        if one.share_interval is not None and one.kind != "shortened prompt":
            share += " [{:.2f}, {:.2f}]".format(*one.share_interval)
        what = in_short(one.schedule) if one.kind == "solved" else f"{one.kind}: {in_short(one.schedule)}"
        table.add_row(
            "-" if one.trial is None else str(one.trial),
            f"{one.kl:.4f} [{low:.4f}, {high:.4f}]",
            share,
            f"{one.search_kl:.4f}",
            f"{one.schedule.overall:.1%}",
            f"{one.flops_saved:.1%}",
            *([f"{one.latency_ms:.1f}" if one.latency_ms is not None else "-"] if has_latency else []),
            what,
        )
    console.print(table)
    if solved.best.kind == "shortened prompt":
        console.print(
            f"No schedule is better than the shortened prompt: what {solved.study} tried is too far from it."
            f" Search there in a study of its own: `ftp-search search --warm-start {solved.study}`."
        )
