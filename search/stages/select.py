"""Selects the point that a study ends with, by measurements on validation examples."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from search.errors import SearchError
from studies import Measurement
from studies.analysis.prefill_speed import prefill_speedup
from studies.analysis.retention import chance_sentence
from studies.pareto import HALF_STEP, knee_index, nearest_to_sparsity, non_dominated
from studies.records.objectives import CostName, objective
from studies.records.target import Target
from studies.records.trial import finite_values

Rule = Literal[
    "target_sparsity", "target_flops_saved", "target_speedup", "max_latency_ms", "min_retention", "knee", "asked"
]

# Accuracies are shares in float32, which are off by less; one item of a million is more.
_ROUNDING = 5e-7
_OTHERS = {"flops": "arithmetic", "kv_bytes": "KV cache"}


@dataclass(frozen=True)
class Selection:
    """The selected point as measured on validation examples, the rule that decided in the end, and the reason.

    `retention` is the share of the dense model's quality that it keeps, see `Measurement.retention`; by perplexity
    where the dense model only guesses.
    """

    measurement: Measurement
    rule: Rule
    reason: str
    retention: float | None


def select(
    candidates: Sequence[Measurement],
    dense: Measurement,
    *,
    cost: CostName,
    target: Target | None = None,
    max_latency_ms: float | None = None,
    min_retention: float | None = None,
    latency: Literal["measured", "predicted"] = "measured",
    chance: float | None = None,
    trial: int | None = None,
) -> Selection:
    """Selects the point to report and to export, among points measured on validation examples.

    With the number of a trial that was asked for, that one is selected, whatever the others are. Else:

    1. Candidates beyond the largest latency are out. If all are, the fastest is taken.
    2. With a target sparsity those count that are within half a grid step of it, or else the nearest; where a cost is
       the target, all count, since every candidate was counted or predicted to keep it.
    3. Those that the clock shows to be slower than the dense model are out, unless all that skip anything are.
    4. With a target, the one with the lowest KL is taken; if a retention is demanded, too, the one with the lowest KL
       of those that keep it.
    5. With a retention and no target, the cheapest of those that keep it is taken.
    6. Without either, the knee of KL against the cost.

    Where none keeps the retention, the one that keeps most is taken. Retention is the share of the dense model's
    accuracy; where the data has no choices, or the dense model answers them no better than `chance`, the ratio of
    perplexities, dense to pruned. Of equals the one with the lower KL is taken, then the earlier trial. A candidate
    whose KL, cost or latency is not finite is none. As a cost, latency is the dense model's, divided by each point's
    speed-up in the same turns, where that was measured, as the machine's pace may change between turns.

    Raises:
        SearchError: There is no candidate with finite figures, or something was measured on other than validation
            examples.
    """
    for m in (*candidates, dense):
        if m.split != "validation":
            raise SearchError(
                f"{_title(m)} was measured on {m.split} examples, but selection may see validation examples alone: "
                "what it saw would be held out no more."
            )
    candidates = [m for m in candidates if finite_values((m.kl, _figure(m, cost), m.latency_ms))]
    if not candidates:
        raise SearchError(
            "There is no candidate with a finite KL, cost and latency to select from: measure other points of the "
            "front."
        )
    choice = _Choice(candidates, dense, cost, latency, chance)
    if trial is not None:
        return choice.asked(trial)
    if max_latency_ms is not None and not choice.keep_within(max_latency_ms):
        fastest = min(candidates, key=lambda m: (m.latency_ms, *_order(m)))
        why = (
            f"No candidate runs within {max_latency_ms:g} ms; the fastest of {len(candidates)}, {_name(fastest)}, "
            f"{choice.takes} {fastest.latency_ms:.1f} ms."
        )
        return choice.selection(fastest, "max_latency_ms", why)
    if target is not None:
        return choice.at_target(target, min_retention)
    choice.leave_out_slower()
    if min_retention is not None:
        return choice.cheapest_that_keeps(min_retention)
    return choice.knee()


class _Choice:
    """Candidates that are left, in their order, and the words for them."""

    def __init__(
        self, candidates: Sequence[Measurement], dense: Measurement, cost: CostName, latency: str, chance: float | None
    ) -> None:
        self._left = sorted(candidates, key=_order)
        self._dense = dense
        self._cost = cost
        self._cost_words = f"{latency} latency" if cost == "latency_ms" else _OTHERS[cost]
        self.takes = "takes" if latency == "measured" else "is predicted to take"
        self._has_choices = all(m.accuracy is not None for m in (dense, *candidates))
        self._guessed = chance_sentence(dense, chance)
        self._where = ""

    def asked(self, trial: int) -> Selection:
        """The one that was asked for; a SearchError if it is none that can be compared."""
        best = next((m for m in self._left if m.trial == trial), None)
        if best is None:
            raise SearchError(
                f"Trial {trial} is to be selected, but has no finite figures on validation examples: name another one "
                "with --select-trial."
            )
        return self.selection(best, "asked", f"{_title(best)} was asked for.")

    def keep_within(self, max_latency_ms: float) -> bool:
        """Rule out what takes longer; False, and nothing is, if all do."""
        within = [m for m in self._left if m.latency_ms <= max_latency_ms]
        if within:
            self._where = f" within {max_latency_ms:g} ms"
            self._left = within
        return bool(within)

    def leave_out_slower(self) -> None:
        """Rule out what skips tokens and is slower for it, beyond the clock's noise; nothing is if all are."""
        slower = [m for m in self._left if m.speedup is not None and prefill_speedup(m).is_slower]
        left = [m for m in self._left if m not in slower]
        if slower and any(any(m.schedule) for m in left):
            self._where += " not slower than the dense model"
            self._left = left

    def at_target(self, target: Target, min_retention: float | None) -> Selection:
        """The lowest KL at a target, of those that keep a retention if one is demanded."""
        is_met = True
        if (sparsity := target.sparsity) is not None:
            self._left = nearest_to_sparsity(self._left, sparsity)
            is_met = any(abs(m.overall_sparsity - sparsity) <= HALF_STEP for m in self._left)
        self.leave_out_slower()
        near = self._left
        asked, keeping, those, kept = str(target), near, "", ""
        if min_retention is not None:
            keeping, keep, kept = self._keeping(near, min_retention)
            those = f" {keep} {kept}"
        if not keeping:
            best = max(near, key=self._retention)
            place = f"{self._where} at {asked}" if is_met else f"{self._where} has {asked}, and none nearest to it"
            why = (
                f"No candidate{place} keeps {kept}; the best, {_name(best)}, keeps {100 * self._retention(best):.2f} %."
            )
            return self.selection(best, "min_retention", why)
        best = keeping[0]
        if is_met:
            why = f"{_title(best)} has the lowest KL of {_count(keeping)}{self._where} at {asked}{those}."
        else:
            why = (
                f"No candidate{self._where} has {asked}; of {_count(keeping)} nearest to it{those}, {_name(best)} with "
                f"{_percent(best.overall_sparsity)} has the lowest KL."
            )
        return self.selection(best, target.kind, why)

    def _keeping(self, points: Sequence[Measurement], min_retention: float) -> tuple[list[Measurement], str, str]:
        """The points that keep a retention, and the words for that."""
        keeping = [m for m in points if self._retention(m) >= min_retention - _ROUNDING]
        keep = "that keeps" if len(keeping) == 1 else "that keep"
        return keeping, keep, f"{100 * min_retention:g} % {self._of_dense}"

    def cheapest_that_keeps(self, min_retention: float) -> Selection:
        """The cheapest that keeps a retention."""
        keeping, keep, kept = self._keeping(self._left, min_retention)
        if keeping:
            best = min(keeping, key=self._cost_of)
            why = f"{_title(best)} has the lowest {self._cost_words} of {_count(keeping)}{self._where} {keep} {kept}."
        else:
            best = max(self._left, key=self._retention)
            why = (
                f"No candidate{self._where} keeps {kept}; the best of {len(self._left)}, {_name(best)}, keeps "
                f"{100 * self._retention(best):.2f} %."
            )
        return self.selection(best, "min_retention", why)

    def knee(self) -> Selection:
        """Takes the knee of KL against the cost, which is not the dense model if anything else is left."""
        best = self._bend(self._left)
        sparse = [m for m in self._left if any(m.schedule)]
        if sparse and not any(best.schedule):
            best = self._bend(sparse)
        why = (
            f"{_title(best)} is the knee of {_count(self._left)}{self._where}, where KL against "
            f"{self._cost_words} bends most."
        )
        return self.selection(best, "knee", why)

    def _bend(self, points: Sequence[Measurement]) -> Measurement:
        points = sorted(points, key=lambda m: (m.kl, self._cost_of(m), *_order(m)))
        values = [(m.kl, self._cost_of(m)) for m in points]
        kept = np.flatnonzero(non_dominated(values)).tolist()
        return points[kept[knee_index([values[place] for place in kept])]]

    def _cost_of(self, m: Measurement) -> float:
        if self._cost == "latency_ms" and m.speedup is not None:
            return self._dense.latency_ms / m.speedup
        return _figure(m, self._cost)

    def selection(self, best: Measurement, rule: Rule, why: str) -> Selection:
        """The selection, with its figures behind the reason."""
        said = " ".join(filter(None, (why, self._figures(best), self._guessed)))
        return Selection(best, rule, said, self._kept(best))

    def _kept(self, m: Measurement) -> float | None:
        return self._dense.perplexity / m.perplexity if self._guessed else m.retention(self._dense)

    def _retention(self, m: Measurement) -> float:
        kept = self._kept(m)
        # Of nothing everything is kept.
        return 1.0 if kept is None else kept

    @property
    def _of_dense(self) -> str:
        if self._has_choices and not self._guessed:
            return "of the dense model's accuracy"
        why = "the dense model only guesses" if self._guessed else "the data has no choices"
        return f"by the ratio of perplexities, dense to pruned, as {why}"

    def _figures(self, m: Measurement) -> str:
        """The measured figures, in a sentence."""
        dense, cost = self._dense, objective(self._cost)
        if m.accuracy is not None and dense.accuracy is not None:
            interval = ""
            if m.accuracy_low is not None and m.accuracy_high is not None:
                interval = f" (95 % interval {100 * m.accuracy_low:.1f} to {_percent(m.accuracy_high)})"
            of_items = (
                f"{m.n_choice_items} validation items it has {_percent(m.accuracy)} right{interval}, the "
                f"dense model {_percent(dense.accuracy)}"
            )
        else:
            of_items = (
                f"{m.n_items} validation items its perplexity is {m.perplexity:.4g}, the dense model's "
                f"{dense.perplexity:.4g}"
            )
        said = (
            f"On {of_items}; its KL is {m.kl:.3g} nats per token, and a prefill of {m.batch} × {m.length} tokens "
            f"{self.takes} "
        )
        said += f"{m.latency_ms:.1f} ms instead of {dense.latency_ms:.1f} ms"
        if m.speedup is not None:
            said += f", {prefill_speedup(m)}"
        if self._cost != "latency_ms":
            said += f", with {cost.text(_figure(m, self._cost))} instead of {cost.text(_figure(dense, self._cost))}"
        return f"{said}."


def _figure(m: Measurement, cost: CostName) -> float:
    return float(getattr(m, cost))


def _order(m: Measurement) -> tuple[float, int, int]:
    """Sorts points by KL, and those of equal KL by trial and router."""
    return m.kl, -1 if m.trial is None else m.trial, -1 if m.router is None else m.router


def _name(m: Measurement) -> str:
    trial = "the dense model" if m.trial is None else f"trial {m.trial}"
    return trial if m.router is None else f"{trial} with router {m.router}"


def _title(m: Measurement) -> str:
    name = _name(m)
    return name[0].upper() + name[1:]


def _count(points: Sequence[Measurement]) -> str:
    return f"{len(points)} candidate{'' if len(points) == 1 else 's'}"


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"
