"""Compares a schedule with a shortened prompt: the uniform schedule with the static router.

It keeps the same tokens in every block, which anybody can have without a search. Both are compared at the same FLOPs,
or where a speed-up is the target, at the same predicted time.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from studies.records.measurement import Measurement
from studies.records.records import ReportExamples
from studies.records.trial import Trial, TrialState

# FLOPs that differ by a smaller share count as the same: about a quarter of a step of the grid.
_SAME_COST = 0.01
# Blocks of a uniform schedule skip the same but for rounding.
_ROUNDING = 1e-9


@dataclass(frozen=True)
class AgainstShortenedPrompt:
    """A schedule with its router beside a shortened prompt that costs about the same."""

    shortened_by: float  # share of the prompt's tokens that the shortened one lacks
    kl: float  # KL of the schedule, nats per token
    shortened_kl: float  # KL of the shortened prompt, on the same items
    # The 95 % interval of their ratio, items being drawn for both together; None where single items are not known.
    ratio_low: float | None
    ratio_high: float | None
    # True if the intervals of both KL overlap, which counts where that of the ratio is not known; None if unknown, too.
    overlap: bool | None
    items: str  # the items, in words
    flops_saved: float | None  # share of the dense model's FLOPs that the schedule saves; None where that is not known
    shortened_flops_saved: float | None  # share that the shortened prompt saves
    is_one: bool  # True if the schedule is a shortened prompt itself
    equal: str = "FLOPs"  # what the two have about the same of

    @property
    def is_better(self) -> bool:
        """True if its KL is lower, beyond what chance explains as far as that can be told."""
        if self.is_one or self.kl >= self.shortened_kl:
            return False
        if self.ratio_high is not None:
            return self.ratio_high < 1
        return not self.overlap

    @property
    def sentence(self) -> str:
        """The verdict, with its figures."""
        prompt = f"a prompt shortened by {_percent(self.shortened_by, 0)}"
        if self.is_one:
            return f"The schedule is no better than {prompt}: it is one, the same tokens skip every block."
        verdict = "better" if self.is_better else "no better"
        numbers = [f"{self.kl:.3g} and {self.shortened_kl:.3g} nats per token", self.items]
        ratio = ""
        if self.shortened_kl > 0:
            ends = "" if self.ratio_low is None else f" [{self.ratio_low:.3g}, {self.ratio_high:.3g}]"
            ratio = f"its KL is {self.kl / self.shortened_kl:.3g} times as high{ends}"
        if self.ratio_low is None and self.overlap:
            numbers.append("the intervals overlap")
        cost = ""
        if self.flops_saved is not None and self.shortened_flops_saved is not None:
            cost = f", with {_percent(self.flops_saved)} and {_percent(self.shortened_flops_saved)} of the FLOPs saved"
        return f"The schedule is {verdict} than {prompt}: {ratio or 'by KL'} ({', '.join(numbers)}){cost}."

    def to_json(self) -> dict[str, Any]:
        """As plain values, the verdict among them."""
        return {**asdict(self), "is_better": self.is_better, "sentence": self.sentence}


def measured_against_shortened_prompt(
    selected: Measurement,
    uniform: Measurement | None,
    dense: Measurement | None = None,
    examples: ReportExamples | None = None,
) -> AgainstShortenedPrompt | None:
    """Compares measurements on test items.

    Args:
        selected: The selected point.
        uniform: The uniform schedule with the static router.
        dense: The dense model.
        examples: Single items of the test set.

    Returns:
        None without anything to compare: no uniform schedule was measured, or the selected one skips nothing.
    """
    if uniform is None or not any(selected.schedule):
        return None
    ends = None if examples is None else examples.kl_ratios.get(uniform.variant)
    (low, high), (uniform_low, uniform_high) = [(m.kl_low, m.kl_high) for m in (selected, uniform)]
    overlap = None
    if low is not None and high is not None and uniform_low is not None and uniform_high is not None:
        overlap = low <= uniform_high and uniform_low <= high
    return AgainstShortenedPrompt(
        shortened_by=uniform.overall_sparsity,
        kl=selected.kl,
        shortened_kl=uniform.kl,
        ratio_low=None if ends is None else ends[0],
        ratio_high=None if ends is None else ends[1],
        overlap=overlap,
        items=f"{selected.n_items} test items",
        flops_saved=None if dense is None else 1 - selected.flops / dense.flops,
        shortened_flops_saved=None if dense is None else 1 - uniform.flops / dense.flops,
        is_one=selected.router is None and is_uniform(selected.schedule),
    )


def searched_against_shortened_prompt(chosen: Trial, trials: Sequence[Trial]) -> AgainstShortenedPrompt | None:
    """Compares evaluations of a search, before anything was measured.

    Args:
        chosen: The chosen trial.
        trials: All trials of its study.

    Returns:
        None where it cannot be told: no uniform schedule that was evaluated costs the same, or less without being
        worse, or more without being better; or the chosen one skips nothing.
    """
    flops = {trial.number: trial.metrics.get("flops") for trial in trials}
    dense = next((flops[trial.number] for trial in trials if not any(trial.schedule)), None)
    own = flops.get(chosen.number)
    if not any(chosen.schedule) or chosen.values is None or own is None:
        return None
    if chosen.router is None and is_uniform(chosen.schedule):
        return _searched(chosen, chosen, own, own, dense)
    uniform = [
        (trial, known)
        for trial in trials
        if trial.state is TrialState.FINISHED and trial.fidelity == 1.0 and trial.values is not None
        if trial.router is None and any(trial.schedule) and is_uniform(trial.schedule)
        if (known := flops[trial.number]) is not None
    ]
    telling = [
        (trial, known)
        for trial, known in uniform
        if abs(known - own) <= _SAME_COST * own or (known < own) == (_kl(trial) <= _kl(chosen))
    ]
    if not telling:
        return None
    nearest, known = min(telling, key=lambda one: (abs(one[1] - own), one[0].number))
    return _searched(chosen, nearest, own, known, dense)


def _searched(
    chosen: Trial, uniform: Trial, flops: float, uniform_flops: float, dense: float | None
) -> AgainstShortenedPrompt:
    return AgainstShortenedPrompt(
        shortened_by=uniform.overall_sparsity,
        kl=_kl(chosen),
        shortened_kl=_kl(uniform),
        ratio_low=None,
        ratio_high=None,
        overlap=None,
        items="on the search set alone",
        flops_saved=None if dense is None else 1 - flops / dense,
        shortened_flops_saved=None if dense is None else 1 - uniform_flops / dense,
        is_one=chosen.number == uniform.number,
    )


def _kl(trial: Trial) -> float:
    assert trial.values is not None
    return trial.values[0]


def is_uniform(schedule: Sequence[float]) -> bool:
    """Tells if the same tokens skip every block."""
    return max(schedule) - min(schedule) <= _ROUNDING


def _percent(share: float, digits: int = 1) -> str:
    return f"{100 * share:.{digits}f} %"
