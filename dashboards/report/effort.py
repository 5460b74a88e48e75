"""The effort of a study: tables of stages, rounds, tuning and routers."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from dashboards.analysis.records import ReportData
from dashboards.analysis.tables import UNKNOWN, Cell, Column, Row, Table, counted, duration, kl_text, row
from studies.records.objectives import reference_text, shown_volume, volume_unit
from studies.records.study_facts import TunedTrial

_GIB = 2.0**30


def effort_table(data: ReportData) -> Table:
    """Time of every stage, beside what was expected of it before the run where that is known, and what was done."""
    estimate = data.study.facts.estimate
    expected = {} if estimate is None else estimate.seconds
    rows = [
        row(
            [
                stage.name,
                stage.state.value,
                "not ended" if stage.seconds is None else duration(stage.seconds),
                *([duration(expected[stage.name]) if stage.name in expected else "–"] if expected else []),
            ]
        )
        for stage in data.stages
        # The stage in which this is written cannot know how long it will take.
        if stage.name != "report" or stage.seconds is not None
    ]
    titles = ("stage", "state", "time", *(("expected",) if expected else ()))
    return Table(tuple(map(Column, titles)), tuple(rows), " ".join(effort_sentences(data)))


def effort_sentences(data: ReportData) -> list[str]:
    """The sums: trials, evaluations, training, tuning, memory."""
    sentences = []
    times = [stage.seconds for stage in data.stages if stage.seconds is not None]
    if times:
        sentences.append(f"The stages took {duration(sum(times))} by the clock, as far as their last runs go.")
    if data.trials:
        sentences.append(
            f"{counted(len(data.trials), 'trial')}; their evaluations took "
            f"{duration(sum(trial.seconds for trial in data.trials))} on workers, added up."
        )
    # What the tuning has trained is counted there.
    trained = [run for run in data.router_runs if not run.config.get("tuned")]
    if trained:
        seconds = sum(run.seconds for run in trained)
        sentences.append(f"Training {counted(len(trained), 'router')} took {duration(seconds)}.")
    tuning = data.study.facts.tuning
    if tuning is not None:
        n, were = len(tuning.trials), "was" if len(tuning.trials) == 1 else "were"
        sentences.append(f"Before, {counted(n, 'set')} of hyperparameters {were} tried, in {duration(tuning.seconds)}.")
    peak = data.study.facts.peak_process_bytes
    if peak:
        sentences.append(f"Peak memory of the process: {peak / _GIB:.2f} GiB.")
    of_worker = data.study.facts.peak_worker_bytes
    if of_worker:
        sentences.append(f"Peak memory of a worker, beside the weights: {of_worker / _GIB:.2f} GiB.")
    return sentences


def rounds_table(data: ReportData) -> Table:
    """The growth of the front by each refinement, and whether its router was of use."""
    rows = []
    for one in data.study.facts.rounds:
        run = next((run for run in data.router_runs if run.number == one.router_run), None)
        held = run.curves.get("held_out_kl", []) if run else []
        verdict = UNKNOWN
        if run is not None and len(held) > 1:
            ends = f"KL {kl_text(run.held_out_kl)} against {kl_text(run.static_kl)}"
            verdict = Cell("better" if run.beats_static else "not better", ends)
        router = "distilled"
        if one.router is None:
            router = "static" if one.trials else "not searched"
        rows.append(
            Row(
                (
                    Cell(str(one.round)),
                    verdict,
                    Cell(router),
                    Cell(str(one.trials)),
                    _volume(one.hypervolume_before, data.study.objectives),
                    _volume(one.hypervolume_after, data.study.objectives),
                    UNKNOWN if one.growth is None else Cell(f"{one.growth:+.1%}"),
                )
            )
        )
    reading = (
        "Each round distils a router and searches again around the front with it. Rounds end where the router is no "
        "better than the static one on validation items, or when the hypervolume, of KL below 1 nat and cost below the "
        "dense model's, grows by no more than 1%."
    )
    if data.found.growth is not None:
        unit, reference = volume_unit(data.study.objectives), data.found.growth.reference
        reading += f" It is in {unit}, " if unit else " It reaches "
        reading += f"up to the reference point {reference_text(reference, data.study.objectives)}."
    ended = data.study.facts.rounds_ended
    reading += f" {ended}" if ended else ""
    columns = ("round", "router against static", "searched with", "trials", "hypervolume before", "after", "growth")
    return Table(tuple(Column(title) for title in columns), tuple(rows), reading if rows else "")


def tuning_table(data: ReportData) -> Table:
    """The hyperparameters of router training that were tried, best first."""
    tuning = data.study.facts.tuning
    tried = [] if tuning is None else sorted(tuning.trials, key=_held_out)
    # Where nothing was better the stored configuration, which is the first trial, stays.
    best = {} if tuning is None else tuning.best or tuning.trials[0].config
    # What never varied says nothing.
    names = list(dict.fromkeys(name for one in tried for name in one.config))
    varied = [name for name in names if len({str(one.config.get(name)) for one in tried}) > 1] or names
    rows = [
        row(
            [
                str(place + 1),
                kl_text(_held_out(one)) if math.isfinite(_held_out(one)) else "–",
                *(_value(one.config.get(name)) for name in varied),
                str(one.steps),
                duration(one.seconds),
            ],
            marked=_agrees(one.config, best),
        )
        for place, one in enumerate(tried)
    ]
    columns = tuple(Column(title) for title in ("rank", "held-out KL", *varied, "steps", "time"))
    reading = (
        "Hyperparameters of the router's training, by KL on validation items; trials that lagged behind were stopped "
        "early, which the steps show. The marked ones trained the routers of this study."
    )
    return Table(columns, tuple(rows), reading if rows else "")


def routers_table(data: ReportData) -> Table:
    """The routers that were trained, and how they compare with the static one on validation items."""
    rows = []
    for run in data.router_runs:
        held = [kl for kl in run.curves.get("held_out_kl", []) if math.isfinite(kl)]
        rows.append(
            row(
                [
                    f"{run.number}: {run.title}",
                    "–" if data.selection is None else "yes" if data.selection.router == run.number else "no",
                    str(run.trial),
                    str(run.config.get("schedules", 1)),
                    str(len(run.curves.get("step", []))),
                    kl_text(held[0]) if held else "–",
                    kl_text(min(held)) if held else "–",
                    duration(run.seconds),
                    run.sha256[:12],
                ],
                marked=data.selection is not None and data.selection.router == run.number,
            )
        )
    titles = (
        "router",
        "kept",
        "trial",
        "schedules",
        "steps",
        "KL at the start",
        "lowest KL",
        "training time",
        "sha256",
    )
    return Table(tuple(Column(title) for title in titles), tuple(rows))


def _held_out(one: TunedTrial) -> float:
    return one.held_out_kl if math.isfinite(one.held_out_kl) else math.inf


def _agrees(config: Mapping[str, Any], best: Mapping[str, Any]) -> bool:
    return all(config.get(name) == value for name, value in best.items())


def _volume(value: float | None, objectives: Sequence[str]) -> Cell:
    return UNKNOWN if value is None else Cell(f"{shown_volume(value, objectives):.4g}")


def _value(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else "–" if value is None else str(value)
