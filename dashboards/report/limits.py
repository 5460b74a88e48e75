"""Limits of the results: where other rows are better than the selected point, and what the numbers cannot tell."""

from __future__ import annotations

from collections.abc import Sequence

from dashboards.analysis.growth import left_out_ablations
from dashboards.analysis.intervals import accuracy_interval, kl_interval, latency_quartiles, overlap, speedup_interval
from dashboards.analysis.records import ReportData
from dashboards.analysis.tables import bracketed, counted, kl_text
from dashboards.report.beginnings import about_beginnings
from studies import Measurement, TrialState
from studies.analysis.clock import check_clock
from studies.analysis.predictions import latency_predictions
from studies.analysis.prefill_speed import prefill_speedup
from studies.pareto import HALF_STEP
from studies.records.halves import halves
from studies.records.trial import finite_values

_NAMED_AT_ONCE = 4


def limits(data: ReportData) -> list[str]:
    """The limits of the figures, most serious first; each a sentence or two."""
    return [
        *limits_of_results(data),
        *_of_predictions(data),
        *_of_trials(data),
        *_of_numbers(data, data.selected),
    ]


def limits_of_results(data: ReportData) -> list[str]:
    """The limits that are known without all trials, most serious first."""
    selected = data.selected
    found = [] if selected is None else _of_selected(data, selected)
    clock = check_clock(data.measurements, "test")
    if clock is not None and clock.sentence:
        found = [clock.sentence, *found]
    return [
        *found,
        *_of_beginnings(data, selected),
        *_of_routers(data),
        *_of_rounds(data),
    ]


def _of_beginnings(data: ReportData, selected: Measurement | None) -> list[str]:
    keep_first, unprotected = data.study.facts.keep_first, data.study.facts.unprotected_beginning
    if selected is None:
        return about_beginnings(keep_first, unprotected)
    return about_beginnings(keep_first, unprotected, halves(selected.schedule)[0], selected.length)


def disagreements(data: ReportData) -> str:
    """The items that selected and dense model answer differently, in words; empty before they are compared."""
    seen = data.examples
    if seen is None or not seen.n_items:
        return ""
    if not seen.n_disagreements:
        return f"Dense and selected model give the same answer to all {counted(seen.n_items, 'test item')}."
    neither = seen.n_disagreements - seen.n_lost - seen.n_won
    parts = [
        f"right before and wrong now: {seen.n_lost}",
        f"wrong before and right now: {seen.n_won}",
        *([f"wrong both times, in different ways: {neither}"] if neither > 0 else []),
    ]
    share = seen.n_disagreements / seen.n_items
    return (
        f"Dense and selected model differ on {seen.n_disagreements} of {counted(seen.n_items, 'test item')} "
        f"({share:.1%}); {', '.join(parts)}."
    )


def _of_selected(data: ReportData, selected: Measurement) -> list[str]:
    dense = data.measured("dense")
    others = [m for m in data.results if m is not selected]
    found = _better(selected, [m for m in others if m.variant != "dense" and _no_slower(m, selected)])
    found += _against_dense(data, selected, dense) if dense is not None else []
    found += _against_wishes(data, selected)
    unsure = [m for m in others if m.variant not in ("dense", "candidate")]
    close = [m.variant for m in unsure if overlap(kl_interval(m), kl_interval(selected))]
    if close:
        found.append(
            f"The KL interval of the selected point overlaps with that of {_listed(close)}: these items are too few to "
            "call one better with confidence."
        )
    if data.measured("uniform") is None:
        found.append("Uniform sparsity was not measured, so what the search is worth is not shown.")
    return found


def _no_slower(m: Measurement, selected: Measurement) -> bool:
    """Tells whether a row takes no longer, as far as known."""
    is_as_fast = prefill_speedup(m).ratio >= prefill_speedup(selected).ratio
    return is_as_fast or overlap(speedup_interval(m), speedup_interval(selected))


def _better(selected: Measurement, no_slower: Sequence[Measurement]) -> list[str]:
    """Those of the rows that are no slower which are better."""
    by_kl = [m for m in no_slower if m.kl < selected.kl]
    more_right = [m for m in no_slower if (m.accuracy or 0.0) > (selected.accuracy or 0.0)]
    found = []
    for better, quality in ((by_kl, "a lower KL"), (more_right, "a higher accuracy")):
        if not better:
            continue
        verb = "is no slower than the selected point and has" if len(better) == 1 else "are no slower and have"
        sure = ""
        if not any(_told_apart(m, selected, quality) for m in better):
            sure = "; its interval overlaps" if len(better) == 1 else "; all their intervals overlap"
            sure += f" with the selected point's, or {'is' if len(better) == 1 else 'are'} not known"
        found.append(f"{_rows(better, quality)} {verb} {quality}{sure}.")
    return found


def _told_apart(m: Measurement, selected: Measurement, quality: str) -> bool:
    """Tells whether the intervals of two measurements are known and apart."""
    interval = kl_interval if "KL" in quality else accuracy_interval
    ends = (interval(m), interval(selected))
    return None not in ends and not overlap(*ends)


def _rows(found: Sequence[Measurement], quality: str) -> str:
    """Rows with the numbers that matter, the first few by name."""

    def said(m: Measurement) -> str:
        name = m.variant if m.trial is None else f"{m.variant} (trial {m.trial})"
        number = f"KL {kl_text(m.kl)}" if "KL" in quality else f"accuracy {m.accuracy:.1%}"
        return f"{name} at {m.latency_ms:.1f} ms with {number}"

    named = [said(m) for m in found[:_NAMED_AT_ONCE]]
    more = len(found) - len(named)
    words = _listed([*named, f"{more} more"] if more else named)
    return words[0].upper() + words[1:]


def _against_dense(data: ReportData, selected: Measurement, dense: Measurement) -> list[str]:
    found = []
    interval = speedup_interval(selected)
    if interval is not None and interval[0] <= 1 <= interval[1]:
        found.append(
            f"The interval of its prefill's speed-up, {bracketed(interval, '.2f')}, holds 1: no speed-up is shown."
        )
    elif interval is None and overlap(latency_quartiles(selected), latency_quartiles(dense)):
        found.append("The quartiles of its latency overlap with the dense model's: no speed-up is shown.")
    elif selected.latency_ms > dense.latency_ms:
        found.append(
            f"It is slower than the dense model: {selected.latency_ms:.1f} against {dense.latency_ms:.1f} ms. Routing "
            "costs more than skipping saves on this input."
        )
    if selected.accuracy is None or dense.accuracy is None:
        found.append("The data has no choices: accuracy and retention are not known, only KL and perplexity.")
        return found
    if data.only_guesses:
        found.append(data.only_guesses)
        return found
    kept = data.retention(selected)
    ends = None if kept is None else kept.interval
    if ends is not None and ends[1] < 1:
        found.append(
            f"Accuracy is lost beyond what chance explains: the interval of retention, {bracketed(ends, '.1%')}, ends "
            "below 100%."
        )
    elif overlap(accuracy_interval(selected), accuracy_interval(dense)):
        n = selected.n_choice_items or selected.n_items
        reach = "" if ends is None else f"; with {n} items a retention down to {ends[0]:.1%} is not ruled out"
        found.append(
            f"The accuracy intervals of the selected point and the dense model overlap{reach}: no difference is shown, "
            "which is not the same as none."
        )
    return found


def _against_wishes(data: ReportData, selected: Measurement) -> list[str]:
    """The demands that the selected point misses, on test items or on the clock."""
    config, found = data.study.config, []
    target, limit, least = (config.get(key) for key in ("target_sparsity", "max_latency_ms", "min_retention"))
    if target is not None and abs(selected.overall_sparsity - target) > HALF_STEP:
        found.append(f"The target was an overall sparsity of {target:.1%}; it has {selected.overall_sparsity:.1%}.")
    dense = next((m for m in data.measurements if m.split == "test" and m.variant == "dense"), None)
    saved, speedup = config.get("target_flops_saved"), config.get("target_speedup")
    if saved is not None and dense is not None and 1 - selected.flops / dense.flops < saved:
        found.append(f"The target was {saved:.1%} of FLOPs saved; it saves {1 - selected.flops / dense.flops:.1%}.")
    if speedup is not None and selected.speedup is not None and selected.speedup < speedup:
        found.append(f"The target was a predicted speed-up of {speedup:g}; measured is {selected.speedup:.2f}.")
    if limit is not None and selected.latency_ms > limit:
        found.append(f"The limit was {limit:g} ms; measured are {selected.latency_ms:.1f} ms.")
    kept = data.retention(selected)
    if least is not None and kept is not None and kept.share < least:
        of_what = "of the dense model's accuracy" if kept.by == "accuracy" else "by the ratio of perplexities"
        found.append(f"The demand was to retain {least:.1%} {of_what}; on the test items {kept.share:.1%} is retained.")
    elif least is not None and kept is not None and kept.interval is not None and kept.interval[0] < least:
        found.append(f"The interval of retention reaches below the {least:.1%} that were demanded.")
    elif least is not None and data.only_guesses:
        found.append(
            f"The demand was to retain {least:.1%}; as the dense model only guesses, that was read as the ratio of "
            "perplexities, dense to pruned."
        )
    return found


def _of_predictions(data: ReportData) -> list[str]:
    predictions = latency_predictions(data.study, data.trials, data.measurements, data.router_runs)
    if predictions.is_doubtful:
        return [predictions.sentence(data.study.name)]
    return [f"Latency was predicted while searching: {one}." for one in predictions.compared if one.what == "selected"]


def _of_routers(data: ReportData) -> list[str]:
    found = []
    compared = [run for run in data.router_runs if len(run.curves.get("held_out_kl", [])) > 1]
    lost = [run.title for run in compared if not run.beats_static]
    if lost:
        found.append(
            "Training found no router that beats the static one's decisions by KL on validation items: "
            f"{_listed(lost)}."
        )
    pair = data.router_pair()
    if pair is not None and pair[0].kl >= pair[1].kl:
        found.append(
            f"On the test items the distilled router has no lower KL than the static one at the same schedule: "
            f"{kl_text(pair[0].kl)} against {kl_text(pair[1].kl)}."
        )
    refined, static = data.measured("refined"), data.measured("static")
    if refined is not None and static is not None and refined.kl >= static.kl:
        found.append(
            f"Refinement brought nothing on the test items: KL {kl_text(refined.kl)}, where static has "
            f"{kl_text(static.kl)}."
        )
    return found


def _of_rounds(data: ReportData) -> list[str]:
    rounds = data.study.facts.rounds
    still = [str(one.round) for one in rounds if one.growth is not None and one.growth <= 0]
    if not still:
        return []
    return [f"The front did not grow in round{'s' if len(still) > 1 else ''} {_listed(still)}."]


def _of_trials(data: ReportData) -> list[str]:
    fewer = data.study.facts.fewer_items
    found = [fewer] if fewer else []
    found += [left_out] if (left_out := left_out_ablations(data)) else []
    trials = counted(len(data.trials), "trial")
    failed = [trial for trial in data.trials if trial.state is TrialState.FAILED]
    if failed:
        said = f" The last one says: {failed[-1].error}" if failed[-1].error else ""
        found.append(f"{len(failed)} of {trials} failed.{said}")
    strange = [t for t in data.trials if t.values is not None and not finite_values(t.values)]
    if strange:
        found.append(
            f"{len(strange)} of {trials} have objective values that are not finite, and compare with no other."
        )
    return [*found, str(data.left_aside)] if data.left_aside.total else found


def _of_numbers(data: ReportData, selected: Measurement | None) -> list[str]:
    """Limits of every such report, which are easily forgotten."""
    if not data.results:
        return []
    m = selected or data.results[0]
    found = [
        f"Latency holds for this machine and a prefill of {m.batch} × {m.length} tokens; shorter prompts and smaller "
        "batches gain less, and may lose. Tokens that are generated run every block: the longer the answer, the "
        "smaller the share that is saved."
    ]
    if any(one.variant == "candidate" for one in data.results):
        found.append(
            "Many rows were measured, and some look better than they are by chance: the selected point was not chosen "
            "among them by these numbers, whoever picks another row by them does just that."
        )
    return found


def _listed(words: Sequence[str]) -> str:
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}"
