"""Tables that commands print."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from studies import StudySummary
from studies.objectives import objective


def _number(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)


def _table(title: str, *headings: str) -> Table:
    """A table narrow enough for 80 columns: no frame, numbers to the right."""
    table = Table(title=title, title_justify="left", box=SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    for heading in headings:
        table.add_column(heading, justify="right", overflow="fold")
    return table


def print_front(console: Console, description: Mapping[str, Any]) -> None:
    """The front of a study, from `describe_study`."""
    if not description["front"]:
        console.print("No trial has finished yet.")
        return
    shape = description["predicted_for"]
    cost = objective(description["objectives"][1])
    timed = f"; prefill of {shape['batch']} x {shape['length']} tokens" if shape else ""
    table = _table(
        f"Pareto front of {description['name']} (* chosen){timed}",
        *("trial", "overall\nsparsity", "KL, nats\nper token", f"{cost.unit}\n{cost.source}", "ms\nmeasured"),
    )
    table.add_column("% of tokens that skip each block", overflow="fold")
    for point in description["front"]:
        kl, known = point["values"]
        table.add_row(
            f"{'*' if point['number'] == description['chosen_trial'] else ''}{point['number']}",
            f"{point['overall_sparsity']:.1%}",
            f"{kl:.4f}",
            cost.number(known),
            _number(point["measured_latency_ms"], ".1f"),
            " ".join(f"{100 * s:.0f}" for s in point["schedule"]),
        )
    console.print(table)


def print_proposers(console: Console, description: Mapping[str, Any]) -> None:
    """What each proposer has done, from `describe_study`."""
    if not description["proposers"]:
        return
    table = _table(
        "Proposers",
        *("name", "asked", "repeated", "trials\nfinished", "ms per\nproposal", "front\ngrowth", "share\nnow"),
    )
    for tally in description["proposers"]:
        per_proposal = 1000 * tally["seconds"] / tally["asked"] if tally["asked"] else None
        counts = (str(tally[key]) for key in ("asked", "repeated", "finished"))
        share = tally["share"] or None
        table.add_row(
            tally["name"], *counts, _number(per_proposal, ".2f"), f"{tally['gain']:.2f}", _number(share, ".0%")
        )
    console.print(table)


def print_measurements(console: Console, description: Mapping[str, Any]) -> None:
    """What was measured on the front, from `describe_study`."""
    rows = description["measurements"]
    if not rows:
        return
    first = rows[0]
    mixed = 0 < first["n_choice_items"] < first["n_items"]
    choices = f", {first['n_choice_items']} of them multiple choice" if mixed else ""
    table = _table(
        f"Measured on {first['n_items']} test items{choices}; "
        f"ms of a prefill of {first['batch']} x {first['length']} tokens, {first['repeats']} times",
        *("variant", "trial", "overall\nsparsity", "FLOPs\nsaved", "accuracy %\n[95 %]", "KL", "perplex-\nity"),
        *("ms\n[quartiles]", "speed-\nup"),
    )
    dense = next(row for row in rows if row["variant"] == "dense")
    for row in rows:
        accuracy = "-"
        if row["accuracy"] is not None:
            right, low, high = (100 * row[key] for key in ("accuracy", "accuracy_low", "accuracy_high"))
            accuracy = f"{right:.1f} [{low:.0f}, {high:.0f}]"
        chosen = row["trial"] is not None and row["trial"] == description["chosen_trial"]
        table.add_row(
            row["variant"],
            "-" if row["trial"] is None else f"{'*' if chosen else ''}{row['trial']}",
            f"{row['overall_sparsity']:.1%}",
            f"{1 - row['flops'] / dense['flops']:.1%}",
            accuracy,
            f"{row['kl']:.4f}",
            f"{row['perplexity']:.3f}",
            f"{row['latency_ms']:.1f} [{row['latency_low_ms']:.0f}, {row['latency_high_ms']:.0f}]",
            f"{dense['latency_ms'] / row['latency_ms']:.2f}x",
        )
    console.print(table)


def print_studies(console: Console, summaries: Sequence[StudySummary]) -> None:
    """The studies of a database."""
    if not summaries:
        console.print("No studies yet: ftp-search run --name demo")
        return
    table = Table()
    for heading in ("name", "state", "trials", "created", "model", "data"):
        table.add_column(heading, overflow="fold")
    for s in summaries:
        created = s.created_at.astimezone().strftime("%Y-%m-%d %H:%M")
        table.add_row(s.name, s.state.value, str(s.n_trials), created, s.model, s.data)
    console.print(table)
