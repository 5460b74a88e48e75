"""Tables that commands print."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

from studies import StudySummary


def _number(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)


def print_front(console: Console, description: Mapping[str, Any]) -> None:
    """The front of a study, from `describe_study`."""
    if not description["front"]:
        console.print("No trial has finished yet.")
        return
    table = Table(title=f"Pareto front of {description['name']} (* chosen)", title_justify="left")
    for heading in (
        "trial",
        "overall sparsity",
        "KL, nats/token",
        "predicted ms",
        "measured ms",
        "schedule, % skipped",
    ):
        table.add_column(heading, justify="left" if heading.startswith("schedule") else "right", overflow="fold")
    for point in description["front"]:
        kl, predicted = point["values"]
        table.add_row(
            f"{'*' if point['number'] == description['chosen_trial'] else ''}{point['number']}",
            f"{point['overall_sparsity']:.1%}",
            f"{kl:.4f}",
            f"{predicted:.1f}",
            _number(point["measured_latency_ms"], ".1f"),
            " ".join(f"{100 * s:.0f}" for s in point["schedule"]),
        )
    console.print(table)


def print_measurements(console: Console, description: Mapping[str, Any]) -> None:
    """What was measured, from `describe_study`."""
    rows = description["measurements"]
    if not rows:
        return
    first = rows[0]
    title = f"Measured: {first['n_items']} test items; prefill of {first['batch']} x {first['length']} tokens"
    table = Table(title=title, title_justify="left")
    for heading in ("variant", "trial", "overall sparsity", "FLOPs saved", "accuracy [95 %]", "KL", "perplexity"):
        table.add_column(heading, justify="right")
    for heading in ("latency ms [quartiles]", "speed-up"):
        table.add_column(heading, justify="right")
    dense = next(row for row in rows if row["variant"] == "dense")
    for row in rows:
        interval = "" if row["accuracy"] is None else f" [{row['accuracy_low']:.1%}, {row['accuracy_high']:.1%}]"
        chosen = row["trial"] is not None and row["trial"] == description["chosen_trial"]
        table.add_row(
            row["variant"],
            "-" if row["trial"] is None else f"{'*' if chosen else ''}{row['trial']}",
            f"{row['overall_sparsity']:.1%}",
            f"{1 - row['flops'] / dense['flops']:.1%}",
            _number(row["accuracy"], ".1%") + interval,
            f"{row['kl']:.4f}",
            f"{row['perplexity']:.3f}",
            f"{row['latency_ms']:.1f} [{row['latency_low_ms']:.1f}, {row['latency_high_ms']:.1f}]",
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
