"""What a study found, in words: also where it is not good news."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from dashboards.data import ReportData, measured_cost
from studies import Measurement, TrialRecord, TrialState, front
from studies.objectives import objective


@dataclass(frozen=True)
class KeyFigure:
    """One number of the row at the top of a report.

    Attributes:
        value: The number.
        label: What it is.
        detail: Under which conditions it holds.
    """

    value: str
    label: str
    detail: str


def summary_sentences(data: ReportData) -> list[str]:
    """What was found, in two or three plain sentences."""
    points = front(data.trials)
    if not points:
        return [_no_front(data.trials)]
    dense, best = data.measured("dense"), data.best()
    if best is None:
        return [*_search_alone(data, points), _not_measured(data)]
    sentences = [_gain(best, dense)]
    if dense is not None and dense.accuracy is not None and best.accuracy is not None:
        sentences.append(_accuracy(best, dense))
    elif dense is not None:
        sentences.append(
            f"Perplexity is {best.perplexity:.3f} against {dense.perplexity:.3f} of the dense model, KL to it "
            f"{best.kl:.4f} nats per token ({best.n_items} test items; this data has no choices, so no accuracy)."
        )
    pair = data.router_pair()
    if pair is not None:
        sentences.append(_routers(*pair, chosen=pair[0].trial == data.study.chosen_trial))
    return sentences


def key_figures(data: ReportData) -> list[KeyFigure]:
    """The numbers that a reader looks for first, as far as they are known."""
    dense, best = data.measured("dense"), data.best()
    if best is None:
        chosen = next((t for t in data.trials if t.number == data.study.chosen_trial), None)
        finished = sum(t.state is TrialState.FINISHED for t in data.trials)
        figures = [KeyFigure(f"{finished}", "trials finished", f"{len(front(data.trials))} on the front")]
        if chosen is not None:
            figures.append(
                KeyFigure(f"{chosen.overall_sparsity:.1%}", "overall sparsity", f"chosen: trial {chosen.number}")
            )
        return figures
    figures = [KeyFigure(f"{best.overall_sparsity:.1%}", "overall sparsity", f"chosen schedule, trial {best.trial}")]
    if dense is not None:
        shape = f"batch {best.batch} × {best.length} tokens"
        figures += [
            KeyFigure(f"{1 - best.flops / dense.flops:.1%}", "FLOPs saved", f"against dense, {shape}"),
            KeyFigure(
                f"{dense.latency_ms / best.latency_ms:.2f}×", "measured speed-up", f"{best.variant} router, {shape}"
            ),
        ]
        held, all_held = measured_cost(best, "kv_bytes"), measured_cost(dense, "kv_bytes")
        if data.cost.name == "kv_bytes" and held is not None and all_held:
            figures.append(KeyFigure(f"{1 - held / all_held:.1%}", "KV cache saved", f"against dense, {shape}"))
    for m, name in ((best, f"{best.variant} router"), (dense, "dense model")):
        if m is not None and m.accuracy is not None:
            figures.append(KeyFigure(f"{m.accuracy:.1%}", f"accuracy, {name}", f"{interval(m)}, {m.n_items} items"))
        elif m is not None:
            figures.append(KeyFigure(f"{m.perplexity:.3g}", f"perplexity, {name}", f"{m.n_items} items"))
    return figures


def interval(m: Measurement) -> str:
    """The 95 % interval of a measured accuracy, where it is known."""
    if m.accuracy_low is None or m.accuracy_high is None:
        return "no interval"
    return f"[{m.accuracy_low:.1%}, {m.accuracy_high:.1%}]"


def _no_front(trials: Sequence[TrialRecord]) -> str:
    if not trials:
        return "No trial has finished yet, so there is nothing to compare."
    finished = sum(t.state is TrialState.FINISHED for t in trials)
    if finished:
        return (
            f"{finished} trials have finished, but none on the whole calibration set, so there is no front to choose "
            "from yet."
        )
    error = next((t.error for t in reversed(trials) if t.error), None)
    said = f" The last one says: {error}" if error else ""
    return f"No trial has finished: all {len(trials)} failed, so there is nothing to compare.{said}"


def _search_alone(data: ReportData, points: Sequence[TrialRecord]) -> list[str]:
    best_kl, cheapest = points[0], min(points, key=lambda t: (t.values or (0.0,))[-1])
    reach, cost = "", data.cost
    if len(points) > 1 and best_kl.values and cheapest.values and len(best_kl.values) == 2:
        reach = (
            f", from KL {best_kl.values[0]:.3g} at {cost.text(best_kl.values[1])} to {cheapest.values[0]:.3g} at "
            f"{cost.text(cheapest.values[1])} ({cost.title})"
        )
    count = "one schedule" if len(points) == 1 else f"{len(points)} schedules"
    sentences = [f"The search has a front of {count}{reach}."]
    chosen = next((t for t in points if t.number == data.study.chosen_trial), None)
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
        return "The chosen schedule has not been measured: what is said of it are predictions only."
    return "Nothing has been measured yet: these are predictions only."


def _gain(best: Measurement, dense: Measurement | None) -> str:
    skipped = (
        f"With the chosen schedule (trial {best.trial}) {best.overall_sparsity:.1%} of tokens skip a block on average"
    )
    timed = f"batch {best.batch} × {best.length} tokens"
    if dense is None:
        return (
            f"{skipped}; a prefill of {timed} takes {best.latency_ms:.1f} ms with the {best.variant} router. The dense "
            "model was not measured, so nothing can be said about savings."
        )
    saved = 1 - best.flops / dense.flops
    ratio = dense.latency_ms / best.latency_ms
    overlap = best.latency_high_ms >= dense.latency_low_ms and dense.latency_high_ms >= best.latency_low_ms
    if overlap:
        pace = f"takes about as long as the dense model's, their quartiles overlap ({ratio:.2f}x:"
    elif ratio > 1:
        pace = f"is {ratio:.2f} times as fast as the dense model's ("
    else:
        pace = f"is slower than the dense model's, there is no speed-up ({ratio:.2f}x:"
    pace += "" if pace.endswith("(") else " "
    return (
        f"{skipped}, which saves {saved:.1%} of the FLOPs; with the {best.variant} router the prefill of {timed} {pace}"
        f"{best.latency_ms:.1f} [{best.latency_low_ms:.1f}, {best.latency_high_ms:.1f}] against {dense.latency_ms:.1f} "
        f"[{dense.latency_low_ms:.1f}, {dense.latency_high_ms:.1f}] ms, median and quartiles)."
    )


def _accuracy(best: Measurement, dense: Measurement) -> str:
    return (
        f"Accuracy with it is {best.accuracy:.1%} {interval(best)}, where the dense model has {dense.accuracy:.1%} "
        f"{interval(dense)} ({best.n_items} test items, 95% intervals)."
    )


def _routers(dynamic: Measurement, static: Measurement, chosen: bool) -> str:
    where = (
        "at the same schedule" if chosen else f"at the schedule of trial {dynamic.trial}, which is not the chosen one"
    )
    verdict = (
        "better than" if dynamic.kl < static.kl else ("worse than" if dynamic.kl > static.kl else "no better than")
    )
    accuracy = ""
    if dynamic.accuracy is not None and static.accuracy is not None:
        accuracy = (
            f", accuracy {dynamic.accuracy:.1%} {interval(dynamic)} against {static.accuracy:.1%} {interval(static)}"
        )
        if _overlap(dynamic, static):
            accuracy += " (the intervals overlap)"
    return (
        f"By KL, the distilled router is {verdict} the static one {where}: {dynamic.kl:.4f} against {static.kl:.4f} "
        f"nats per token{accuracy}, {dynamic.n_items} items; it takes "
        f"{dynamic.latency_ms / static.latency_ms:.2f} times as long."
    )


def _overlap(a: Measurement, b: Measurement) -> bool:
    if None in (a.accuracy_low, a.accuracy_high, b.accuracy_low, b.accuracy_high):
        return False
    return (a.accuracy_low or 0) <= (b.accuracy_high or 0) and (b.accuracy_low or 0) <= (a.accuracy_high or 0)
