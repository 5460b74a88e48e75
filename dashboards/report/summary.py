"""The results of a study in words, also where they are not good news."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from dashboards.analysis.intervals import accuracy_interval, kl_interval, latency_quartiles, overlap
from dashboards.analysis.records import ReportData, measured_cost
from dashboards.analysis.speed_tones import generation_tone, prefill_tone
from dashboards.analysis.tables import Tone, bracketed, kl_text, perplexity_text
from studies import Measurement, Trial, TrialState, front
from studies.analysis.clock import check_clock
from studies.analysis.prefill_speed import prefill_speedup
from studies.records.generation_speed import end_to_end, in_words
from studies.records.objectives import objective


@dataclass(frozen=True)
class KeyFigure:
    """One number of the row at the top of a report."""

    value: str
    label: str
    detail: str  # conditions that it holds under
    tone: Tone = ""


def summary_sentences(data: ReportData) -> list[str]:
    """The results, in a few plain sentences."""
    points = front(data.trials)
    if not points:
        return [_no_front(data.trials)]
    dense, selected = data.measured("dense"), data.selected
    if selected is None:
        return [*_search_alone(data, points), *_against_shortened_prompt(data), _not_measured(data)]
    sentences = [_gain(selected, dense, data) + _end_to_end(selected, data), *_against_shortened_prompt(data)]
    if dense is not None and dense.accuracy is not None and selected.accuracy is not None:
        sentences.append(_accuracy(selected, dense, data))
    elif dense is not None:
        sentences.append(
            f"Perplexity is {perplexity_text(selected.perplexity)} against {perplexity_text(dense.perplexity)} of the "
            "dense model, KL to it "
            f"{kl_text(selected.kl)} nats per token ({selected.n_items} test items; this data has no choices, so no "
            "accuracy)."
        )
    return [*sentences, *([said] if (said := _routers(data)) else [])]


def key_figures(data: ReportData) -> list[KeyFigure]:
    """The numbers that a reader looks for first, as far as they are known."""
    dense, selected = data.measured("dense"), data.selected
    if selected is None:
        chosen = next((t for t in data.trials if t.number == data.chosen_trial), None)
        finished = sum(t.state is TrialState.FINISHED for t in data.trials)
        figures = [KeyFigure(f"{finished}", "trials finished", f"{len(front(data.trials))} on the front")]
        if chosen is not None:
            figures.append(
                KeyFigure(f"{chosen.overall_sparsity:.1%}", "overall sparsity", f"chosen: trial {chosen.number}")
            )
        return figures
    figures = [
        KeyFigure(f"{selected.overall_sparsity:.1%}", "overall sparsity", f"selected schedule, trial {selected.trial}")
    ]
    if dense is not None:
        shape = f"batch {selected.batch} × {selected.length} tokens"
        figures += [KeyFigure(f"{1 - selected.flops / dense.flops:.1%}", "FLOPs saved", f"against dense, {shape}")]
        faster = prefill_speedup(selected)
        conditions = f"{faster.interval}, {_router(selected, data)}, {shape}"
        tone = prefill_tone(selected, dense, check_clock(data.measurements, "test"))
        figures.append(KeyFigure(f"{faster.ratio:.2f}×", "prefill speed-up, measured", conditions, tone))
        figures += [
            KeyFigure(
                f"{one.speedup:.2f}×",
                f"speed-up with {one.new_tokens} new tokens",
                f"{one.interval}, {shape}",
                generation_tone(one),
            )
            for one in end_to_end(data.speeds, selected.trial, selected.router)[-1:]
        ]
        held, all_held = measured_cost(selected, "kv_bytes"), measured_cost(dense, "kv_bytes")
        if data.cost.name == "kv_bytes" and held is not None and all_held:
            figures.append(KeyFigure(f"{1 - held / all_held:.1%}", "KV cache saved", f"against dense, {shape}"))
        kept = data.retention(selected)
        if kept is not None:
            what = "accuracy retained" if kept.by == "accuracy" else "retained, by perplexity"
            how = f"{kept.interval_text} {kept.method}" if kept.interval else f"no interval, {selected.n_items} items"
            figures.append(KeyFigure(f"{kept.share:.1%}", what, how))
        elif data.only_guesses:
            figures.append(KeyFigure("–", "accuracy retained", "the dense model answers no better than chance"))
    for m, name in ((selected, "selected"), (dense, "dense model")):
        if m is not None and m.accuracy is not None:
            n = m.n_choice_items or m.n_items
            chance = "" if data.chance is None else f", chance {data.chance:.1%}"
            figures.append(KeyFigure(f"{m.accuracy:.1%}", f"accuracy, {name}", f"{_ends(m)}, {n} items{chance}"))
        elif m is not None:
            figures.append(KeyFigure(f"{m.perplexity:.3g}", f"perplexity, {name}", f"{m.n_items} items"))
    return figures


def _ends(m: Measurement) -> str:
    """The 95 % interval of a measured accuracy, where it is known."""
    return bracketed(accuracy_interval(m), ".1%") or "no interval"


def _router(m: Measurement, data: ReportData) -> str:
    """The router of a measurement, for a sentence."""
    name = data.router_name(m)
    if name == "static":
        return "static router"
    # Of a training that says nothing of itself, the number is its title.
    return name if name.startswith("router ") else f"router of {name}"


def _no_front(trials: Sequence[Trial]) -> str:
    if not trials:
        return "No trial has finished yet, so there is nothing to compare."
    finished = sum(t.state is TrialState.FINISHED for t in trials)
    if finished:
        return (
            f"{finished} trials have finished, but none on the whole calibration set with finite objective values and "
            "within the constraints, so there is no front to choose from yet."
        )
    error = next((t.error for t in reversed(trials) if t.error), None)
    said = f" The last one says: {error}" if error else ""
    return f"No trial has finished: all {len(trials)} failed, so there is nothing to compare.{said}"


def _search_alone(data: ReportData, points: Sequence[Trial]) -> list[str]:
    best_kl, cheapest = points[0], min(points, key=lambda t: (t.values or (0.0,))[-1])
    reach, cost = "", data.cost
    if len(points) > 1 and best_kl.values and cheapest.values and len(best_kl.values) == 2:
        reach = (
            f", from KL {best_kl.values[0]:.3g} at {cost.text(best_kl.values[1])} to {cheapest.values[0]:.3g} at "
            f"{cost.text(cheapest.values[1])} ({cost.title})"
        )
    count = "one schedule" if len(points) == 1 else f"{len(points)} schedules"
    sentences = [f"The search has a front of {count}{reach}."]
    chosen = next((t for t in data.trials if t.number == data.chosen_trial), None)
    if chosen is None:
        sentences.append("None of them has been chosen yet.")
    else:
        values = [
            (objective(name), value) for name, value in zip(data.study.objectives, chosen.values or (), strict=False)
        ]
        found = ", ".join(f"{one.title} {one.text(value)}" for one, value in values)
        sentences.append(
            f"The chosen one is trial {chosen.number}, at {chosen.overall_sparsity:.1%} overall sparsity ({found})."
        )
    return sentences


def _not_measured(data: ReportData) -> str:
    if data.measurements:
        return "The chosen schedule has not been measured on test items: what is said of it are predictions only."
    return "Nothing has been measured yet: these are predictions only."


def _gain(m: Measurement, dense: Measurement | None, data: ReportData) -> str:
    skipped = f"At the selected point (trial {m.trial}, the row {m.variant}) {m.overall_sparsity:.1%} of tokens skip a "
    skipped += "block on average"
    timed, router = f"batch {m.batch} × {m.length} tokens", _router(m, data)
    if dense is None:
        return (
            f"{skipped}; a prefill of {timed} takes {m.latency_ms:.1f} ms with the {router}. The dense model was not "
            "measured, so nothing can be said about savings."
        )
    saved = 1 - m.flops / dense.flops
    return (
        f"{skipped}, which saves {saved:.1%} of the FLOPs; with the {router} the prefill of {timed} {_pace(m, dense)}"
        f"{m.latency_ms:.1f} {bracketed(latency_quartiles(m), '.1f')} against {dense.latency_ms:.1f} "
        f"{bracketed(latency_quartiles(dense), '.1f')} ms, median and quartiles)."
    )


def _pace(m: Measurement, dense: Measurement) -> str:
    """The speed of a prefill, up to a parenthesis for the times."""
    faster = prefill_speedup(m)
    is_faster, is_slower = faster.is_faster, faster.is_slower
    if is_faster is None:
        # Of what is known of the times the quartiles have to tell.
        told_apart = not overlap(latency_quartiles(m), latency_quartiles(dense))
        is_faster, is_slower = told_apart and faster.ratio > 1, told_apart and faster.ratio <= 1
    if is_faster:
        return f"is {faster.times} as fast as the dense model's ("
    if is_slower:
        return f"is slower than the dense model's, there is no speed-up ({faster.times} as fast: "
    return f"takes about as long as the dense model's, no speed-up is shown ({faster.times} as fast: "


def _end_to_end(m: Measurement, data: ReportData) -> str:
    """The rest of the prefill's speed-up when new tokens are generated; nothing where that was not timed."""
    speeds = end_to_end(data.speeds, m.trial, m.router)
    if not speeds:
        return ""
    return f" End to end, prefill and decoding together, its speed-up over the dense model is {in_words(speeds)}."


def _accuracy(m: Measurement, dense: Measurement, data: ReportData) -> str:
    kept, n = data.retention(m), m.n_choice_items or m.n_items
    retained = ""
    if kept is not None:
        retained = f": it retains {kept.text} of it" + (f", {kept.method}" if kept.method else "")
    chance = "" if data.chance is None else f", chance {data.chance:.1%}"
    guessed = f" {data.only_guesses}" if data.only_guesses else ""
    return (
        f"Accuracy there is {m.accuracy:.1%} {_ends(m)}, where the dense model has {dense.accuracy:.1%} "
        f"{_ends(dense)}{retained} ({n} test items, 95% intervals{chance}).{guessed}"
    )


def _against_shortened_prompt(data: ReportData) -> list[str]:
    """The worth of the search; nothing where it is not known."""
    found = data.against_shortened_prompt
    return [] if found is None else [found.sentence]


def _routers(data: ReportData) -> str:
    """The worth of the distilled router; nothing where no two rows differ in the router alone."""
    pair = data.router_pair()
    if pair is None:
        return ""
    dynamic, static = pair
    verdict = (
        "better than" if dynamic.kl < static.kl else ("worse than" if dynamic.kl > static.kl else "no better than")
    )
    unsure = ""
    if overlap(kl_interval(dynamic), kl_interval(static)):
        unsure = " (the intervals overlap)"
    accuracy = ""
    if dynamic.accuracy is not None and static.accuracy is not None:
        accuracy = f", accuracy {dynamic.accuracy:.1%} {_ends(dynamic)} against {static.accuracy:.1%} {_ends(static)}"
        if overlap(accuracy_interval(dynamic), accuracy_interval(static)):
            accuracy += " (the intervals overlap)"
    return (
        f"By KL, the distilled router is {verdict} the static one at the same schedule, that of trial {dynamic.trial}: "
        f"{kl_text(dynamic.kl)} against {kl_text(static.kl)} nats per token{unsure}{accuracy}, {dynamic.n_items} "
        f"items.{_prefills(dynamic, static)}"
    )


def _prefills(dynamic: Measurement, static: Measurement) -> str:
    """The speed of prefills with both routers."""
    times = [prefill_speedup(m).times for m in (dynamic, static)]
    return f" Their prefills are {times[0]} and {times[1]} as fast as the dense model's."
