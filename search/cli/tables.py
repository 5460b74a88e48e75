"""Tables that commands print."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import groupby
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from ftp_core.schedule import SparsitySchedule
from studies.records.generation_speed import GenerationSpeed
from studies.records.objectives import objective, shown_volume
from studies.records.records import StudySummary
from studies.sql.times import local_text
from studies.store.optuna_studies import OptunaStudy

_GIB = 2.0**30
_VARIANTS = ("dense", "uniform", "static", "dynamic", "refined")


def _number(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)


def narrow_table(title: str | None, *headings: str) -> Table:
    """A table without a frame, narrow enough for 80 columns, with its columns aligned to the right."""
    table = Table(title=title, title_justify="left", box=SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    for heading in headings:
        table.add_column(heading, justify="right", overflow="fold")
    return table


def wide_table(*headings: str) -> Table:
    """A table with a frame, whose long texts are wrapped."""
    table = Table()
    for heading in headings:
        table.add_column(heading, overflow="fold")
    return table


def in_short(schedule: SparsitySchedule) -> str:
    """A schedule in few words: neighbouring blocks that skip alike together, those that skip nothing left out.

    `+` stands behind blocks where skipped tokens have keys and values.
    """
    if schedule.mlp == schedule.attention:
        return _runs(schedule.attention, schedule.keeps_kv)
    attention = _runs(schedule.attention, schedule.keeps_kv)
    return f"attention {attention}; MLP {_runs(schedule.mlp, (False,) * schedule.n_blocks)}"


def _runs(shares: Sequence[float], keeps: Sequence[bool]) -> str:
    pieces = []
    for (share, keep), group in groupby(enumerate(zip(shares, keeps, strict=True)), key=lambda one: one[1]):
        blocks = [block for block, _ in group]
        where = str(blocks[0]) if len(blocks) == 1 else f"{blocks[0]}-{blocks[-1]}"
        if share:
            pieces.append(f"{where}: {100 * share:.0f}{'+' * keep}")
    return ", ".join(pieces) or "none"


def print_front(console: Console, description: Mapping[str, Any]) -> None:
    """Prints the front of a study, from `describe_study`."""
    if not description["front"]:
        console.print("No trial has finished yet.")
        return
    shape = description["predicted_for"]
    cost = objective(description["objectives"][1])
    timed = f"; prefill of {shape['batch']} x {shape['length']} tokens" if shape else ""
    if shape and cost.name == "latency_ms" and shape.get("latency_uncertainty") is not None:
        timed += f", predicted to within {shape['latency_uncertainty']:.0%}"
    table = narrow_table(
        f"Pareto front of {description['name']} (* chosen){timed}",
        *("trial", "overall\nsparsity", "KL, nats\nper token", f"{cost.unit}\n{cost.source}", "ms\nmeasured"),
    )
    table.add_column("% of tokens that skip each block", overflow="fold")
    for point in description["front"]:
        kl, known = point["values"]
        schedule = SparsitySchedule.from_json(point["schedule"])
        table.add_row(
            f"{'*' if point['number'] == description['chosen_trial'] else ''}{point['number']}",
            f"{point['overall_sparsity']:.1%}",
            f"{kl:.4f}",
            cost.number(known),
            _number(point["measured_latency_ms"], ".1f"),
            " ".join(f"{100 * s:.0f}" for s in schedule) if schedule.is_plain else in_short(schedule),
        )
    console.print(table)


def print_results(console: Console, description: Mapping[str, Any]) -> None:
    """Prints the results of a study, from `describe_study`."""
    parts = (print_rounds, print_front, print_confirmed, print_selection, print_measurements)
    for part in (*parts, print_predictions, print_speeds, print_beginnings, _print_memory):
        part(console, description)


def _print_memory(console: Console, description: Mapping[str, Any]) -> None:
    """Prints the peak memory of the processes, as far as it was measured."""
    process, worker = description.get("peak_process_bytes"), description.get("peak_worker_bytes")
    said = [f"{process / _GIB:.2f} GiB of the process"] if process else []
    said += [f"{worker / _GIB:.2f} GiB of a worker, beside the weights"] if worker else []
    if said:
        console.print(f"peak memory: {', '.join(said)}")


def print_labels(console: Console, description: Mapping[str, Any]) -> None:
    """Prints the tags, the note and the sweep of a study, as far as it has them."""
    if description["sweep"]:
        console.print(f"of sweep {description['sweep']}", soft_wrap=True)
    if description["tags"]:
        console.print(f"tags: {', '.join(description['tags'])}", soft_wrap=True)
    if description["note"]:
        console.print(f"note: {description['note']}", soft_wrap=True)


def print_proposers(console: Console, description: Mapping[str, Any]) -> None:
    """Prints the statistics of each proposer."""
    if not description["proposers"]:
        return
    table = narrow_table(
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


def print_rounds(console: Console, description: Mapping[str, Any]) -> None:
    """Prints what each refinement added to the front."""
    objectives = description["objectives"]

    def volume(value: float | None) -> str:
        return _number(None if value is None else shown_volume(value, objectives), ".4g")

    table = narrow_table("Refinements", "round", "searched\nwith", "trials", "hypervolume\nbefore", "\nafter", "growth")
    for one in description["rounds"]:
        growth = one.get("growth")
        table.add_row(
            str(one["round"]),
            f"router {one['router']}" if one.get("router") is not None else "static" if one.get("trials") else "-",
            str(one.get("trials", 0)),
            volume(one.get("hypervolume_before")),
            volume(one.get("hypervolume_after")),
            "-" if growth is None else f"{growth:+.1%}",
        )
    if description["rounds"]:
        console.print(table)
    if description["rounds_ended"]:
        console.print(description["rounds_ended"], soft_wrap=True)


def print_confirmed(console: Console, description: Mapping[str, Any]) -> None:
    """Prints what fresh items said of the best trials of each search."""
    for sentence in description["confirmed"]:
        console.print(f"{sentence}\n", soft_wrap=True)


def print_selection(console: Console, description: Mapping[str, Any]) -> None:
    """Prints the selected point and the reason for it."""
    selection = description["selection"]
    if selection is None:
        return
    decides = "the static router" if selection.get("router") is None else f"router {selection['router']}"
    console.print(f"Selected: trial {selection['trial']} with {decides}. {selection['reason']}\n")


def print_predictions(console: Console, description: Mapping[str, Any]) -> None:
    """Prints predicted beside measured latency, or why predictions are not to be relied on."""
    predictions = description["predictions"]
    if predictions["sentence"]:
        console.print(predictions["sentence"], soft_wrap=True)
    elif predictions["compared"]:
        parts = (one["sentence"] for one in predictions["compared"])
        console.print(f"Latency: {'; '.join(parts)}", soft_wrap=True)


def print_verdict(console: Console, description: Mapping[str, Any]) -> None:
    """Prints the verdict on a study and the next steps."""
    if description["verdict"]:
        console.print(description["verdict"], soft_wrap=True)
    for step in description["next"]:
        console.print(f"{step['words']}: {step['command']}", soft_wrap=True)


def print_beginnings(console: Console, description: Mapping[str, Any]) -> None:
    """Prints what is known of the protected beginning of prompts, if anything."""
    keep_first, unprotected = description["keep_first"], description["unprotected_beginning"]
    if not keep_first and unprotected is None:
        return
    # Its package loads plotly.
    from dashboards.report.beginnings import about_beginnings

    selected = next((row for row in description["measurements"] if row["selected"]), None)
    attention = None if selected is None else SparsitySchedule.from_json(selected["schedule"]).attention
    length = 0 if selected is None else selected["length"]
    for sentence in about_beginnings(keep_first, unprotected, attention, length):
        console.print(sentence, soft_wrap=True)


def print_measurements(console: Console, description: Mapping[str, Any]) -> None:
    """Prints the named variants as measured on test items; of other candidates, the selected one alone."""
    tested = [row for row in description["measurements"] if row["split"] == "test"]
    rows = _named(tested)
    if not rows:
        return
    first = rows[0]
    mixed = 0 < first["n_choice_items"] < first["n_items"]
    choices = f", {first['n_choice_items']} of them multiple choice" if mixed else ""
    chance = (description.get("chance") or {}).get("test")
    choices += "" if chance is None else f" (chance {chance:.1%})"
    by_accuracy = all(row["accuracy"] is not None for row in rows)
    quality = ("accuracy\n% [95 %]", "re-\ntained") if by_accuracy else ("perplexity\n[95 %]",)
    table = narrow_table(
        f"Measured on n = {first['n_items']} test items{choices}; "
        f"ms of a prefill of {first['batch']} x {first['length']} tokens, {first['repeats']} times (* selected)",
        *("variant", "spar-\nsity", "FLOPs\nsaved", *quality, "KL\n[95 %]", "ms, and\nquartiles"),
        "prefill\nspeed-up\n[95 %]",
    )
    dense = next((row for row in rows if row["variant"] == "dense"), None)
    marked = any(row["selected"] for row in tested)
    for row in rows:
        # Without a selection, the chosen trial is marked.
        chosen = row["selected"] if marked else row["trial"] is not None and row["trial"] == description["chosen_trial"]
        accuracy = (_with_ends(row, "accuracy", ".1f", ".0f", 100), _retained(row)) if by_accuracy else ()
        measured = accuracy or (_with_ends(row, "perplexity", ".3f", ".2f"),)
        trial = "" if row["trial"] is None else f"\ntrial {row['trial']}"
        # Marks rows that no search found, whatever their variant is called.
        kind = (row["origin"] or "").split(" ")[0]
        trial += f"\n{kind}" if kind in ("uniform", "dense") else ""
        quartiles = f"[{row['latency_low_ms']:.0f}, {row['latency_high_ms']:.0f}]"
        table.add_row(
            f"{'*' if chosen else ''}{row['variant']}{trial}",
            f"{row['overall_sparsity']:.1%}",
            "-" if dense is None else f"{1 - row['flops'] / dense['flops']:.1%}",
            *measured,
            _with_ends(row, "kl", ".4f", ".3f"),
            f"{row['latency_ms']:.1f}\n{quartiles}",
            _speedup(row),
        )
    console.print(table)
    clock = description["clock"]["test"]
    if clock is not None and clock["sentence"]:
        console.print(f"{clock['sentence']}\n", soft_wrap=True)


def print_speeds(console: Console, description: Mapping[str, Any]) -> None:
    """Prints the speed of the selected point by prompt length and new tokens."""
    speeds = [GenerationSpeed(**one) for one in description["generation_speeds"]]
    if not speeds:
        return
    others = ("dense", "uniform")
    table = narrow_table(
        f"Speed end to end, batch {speeds[0].batch}; the first new token comes with the prefill",
        *("prompt\ntokens", "new\ntokens", "dense\nms", "selected\nms", "speed-up\n[95 %]"),
        *("shortened\nprompt, ms", "its speed-up\n[95 %]"),
    )
    for (length, new_tokens), timed in groupby(speeds, lambda one: (one.length, one.new_tokens)):
        row = {one.variant if one.variant in others else "selected": one for one in timed}
        dense, selected, uniform = (row.get(name) for name in ("dense", "selected", "uniform"))
        table.add_row(
            str(length),
            "prefill" if new_tokens == 1 else str(new_tokens),
            _milliseconds(dense),
            _milliseconds(selected),
            _gained(selected),
            _milliseconds(uniform),
            _gained(uniform),
        )
    console.print(table)


def _milliseconds(speed: GenerationSpeed | None) -> str:
    return "-" if speed is None else f"{speed.latency_ms:.1f}"


def _gained(speed: GenerationSpeed | None) -> str:
    """A speed-up, and below it its interval."""
    return "-" if speed is None or speed.speedup is None else f"{speed.speedup:.2f}x\n{speed.interval}"


def _named(tested: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """The named variants in their order, and a selected candidate if none of them is the same point."""
    named = [row for variant in _VARIANTS for row in tested if row["variant"] == variant]
    if any(row["selected"] for row in named):
        return named
    return named + [row for row in tested if row["variant"] not in _VARIANTS and row["selected"]]


def _speedup(row: Mapping[str, Any]) -> str:
    """The speed-up of a prefill, and below it its interval."""
    low, high = row["speedup_low"], row["speedup_high"]
    ends = "interval\nunknown" if low is None or high is None else f"[{low:.2f},\n{high:.2f}]"
    return f"{row['speedup']:.2f}x\n{ends}"


def _retained(row: Mapping[str, Any]) -> str:
    """Retention, and below it its interval, as far as they are known."""
    share, low, high = (row[name] for name in ("retention", "retention_low", "retention_high"))
    return _number(share, ".1%") + ("" if low is None else f"\n[{100 * low:.0f},\n{100 * high:.0f}]")


def _with_ends(row: Mapping[str, Any], name: str, form: str, form_of_ends: str, per: float = 1.0) -> str:
    """A figure, and below it its interval, if that is known."""
    low, high = row[f"{name}_low"], row[f"{name}_high"]
    if low is None or high is None:
        return f"{per * row[name]:{form}}"
    # Leading zeros are dropped to fit 80 columns.
    ends = [f"{per * end:{form_of_ends}}" for end in (low, high)]
    shortened = ", ".join(end[1:] if end.startswith("0.") else end for end in ends)
    return f"{per * row[name]:{form}}\n[{shortened}]"


def print_studies(console: Console, summaries: Sequence[StudySummary], optunas: Sequence[OptunaStudy] = ()) -> None:
    """Prints the studies of a database, those of other Optuna programs last."""
    if not summaries and not optunas:
        console.print("No studies yet: ftp-search run --name demo")
        return
    # Most databases have no tags, and screens are narrow.
    tagged = ["tags"] if any(s.labels.tags for s in summaries) else []
    table = wide_table("name", "state", "trials", "created", "model", "data", *tagged)
    for s in summaries:
        tags = [", ".join(s.labels.tags)] if tagged else []
        table.add_row(s.name, s.state.value, str(s.n_trials), local_text(s.created_at), s.model, s.data, *tags)
    for one in optunas:
        table.add_row(
            one.name, "Optuna's alone", str(one.n_ended), *("-" for _ in ("created", "model", "data", *tagged))
        )
    console.print(table)


def print_optuna_study(console: Console, description: Mapping[str, Any]) -> None:
    """Prints a study that another program began, from `describe_optuna_study`."""
    name = description["name"]
    counts = ", ".join(f"{n} {state}" for state, n in description["trials_by_state"].items()) or "none"
    console.print(f"study {name}: Optuna's alone; trials: {counts}")
    console.print(f"objectives: {', '.join(description['directions'])}")
    console.print(f"parameters: {', '.join(description['parameters']) or 'none'}")
    for key, value in description["attributes"].items():
        console.print(f"{key}: {value}")
    table = narrow_table("Best trials", "trial", "values")
    table.add_column("parameters", overflow="fold")
    for one in description["best"]:
        values = ", ".join(f"{value:.5g}" for value in one["values"])
        table.add_row(str(one["number"]), values, ", ".join(f"{key} {value}" for key, value in one["params"].items()))
    if description["best"]:
        console.print(table)
    console.print(
        "No model, data and settings are known, so that it cannot be resumed or reported; delete removes it, and "
        "studies.StudyStorage opens it for Optuna's tools."
    )
