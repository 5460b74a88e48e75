"""The share of the dense model's quality that a schedule keeps, with its interval."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from studies.records.measurement import Measurement
from studies.records.records import ReportExamples
from studies.records.study_facts import StudyFacts

Interval = tuple[float, float]


@dataclass(frozen=True)
class Retention:
    """The share of the dense model's quality that is kept."""

    share: float
    interval: Interval | None = None  # a 95 % interval of it; None where it cannot be had
    by: Literal["accuracy", "perplexity"] = "accuracy"  # compared figure; of perplexities dense to pruned
    method: str = ""  # method of the interval: "item by item" or "as if independent"; empty without one

    @property
    def text(self) -> str:
        """The share with its interval."""
        return " ".join(filter(None, (f"{self.share:.1%}", self.interval_text)))

    @property
    def interval_text(self) -> str:
        """The interval; empty where there is none."""
        return "" if self.interval is None else f"[{self.interval[0]:.1%}, {self.interval[1]:.1%}]"


def retention_of(
    m: Measurement, dense: Measurement | None, examples: ReportExamples | None = None, chance: float | None = None
) -> Retention | None:
    """Computes the retention of a measured point: the one figure that every page, table and file shows.

    Args:
        m: The point.
        dense: The dense model, measured on the same examples.
        examples: Single items of the point, if it is the selected one; None for any other.
        chance: Accuracy of guessing on these examples; None where it is not known.

    Returns:
        None where it is not known, and where accuracies are compared and the dense one is no better than guessing.
    """
    share = m.retention(dense)
    if share is None or dense is None or no_better_than_chance(dense, chance):
        return None
    if m.accuracy is None:
        return Retention(share, by="perplexity")
    if (paired := _item_by_item(m, dense, examples)) is not None:
        return Retention(share, paired, method="item by item")
    apart = _as_if_independent(m, dense)
    return Retention(share, apart, method="" if apart is None else "as if independent")


def chance_level(facts: StudyFacts, split: str) -> float | None:
    """The accuracy of guessing on a split, from the facts of a study; None without choices or where it is not known."""
    return (facts.chance or {}).get(split)


def no_better_than_chance(m: Measurement, chance: float | None) -> bool:
    """Tells if the interval of an accuracy reaches down to guessing; False where one of both is not known.

    Args:
        m: A measurement, most often of the dense model.
        chance: Accuracy of guessing on its items.
    """
    return chance is not None and m.accuracy_low is not None and m.accuracy_low <= chance


def chance_sentence(dense: Measurement | None, chance: float | None) -> str:
    """Warns of figures of accuracy where the dense model only guesses; empty where it does not.

    Args:
        dense: The dense model.
        chance: Accuracy of guessing on the items that it was measured on.
    """
    if dense is None or chance is None or dense.accuracy is None or not no_better_than_chance(dense, chance):
        return ""
    return (
        f"The dense model answers no better than chance ({dense.accuracy:.1%} of "
        f"{dense.n_choice_items or dense.n_items} items, chance {chance:.1%}): what share of its accuracy a schedule "
        "keeps says nothing; judge by KL and perplexity."
    )


def _as_if_independent(m: Measurement, dense: Measurement) -> Interval | None:
    """A 95 % interval of retention from the Wilson intervals of both accuracies; None where it cannot be had.

    The method of variance estimates recovery for a ratio, on the logarithmic scale (Zou and Donner 2008). It takes the
    two accuracies for independent. They are of the same items, which both models tend to have right, so it is wider
    than it would have to be.
    """
    if m is dense or m.variant == "dense" or not m.accuracy or not dense.accuracy:
        return None
    if not m.accuracy_low or m.accuracy_high is None or not dense.accuracy_low or dense.accuracy_high is None:
        return None
    below = math.hypot(math.log(m.accuracy / m.accuracy_low), math.log(dense.accuracy_high / dense.accuracy))
    above = math.hypot(math.log(m.accuracy_high / m.accuracy), math.log(dense.accuracy / dense.accuracy_low))
    kept = m.accuracy / dense.accuracy
    return kept * math.exp(-below), kept * math.exp(above)


def _item_by_item(m: Measurement, dense: Measurement, examples: ReportExamples | None) -> Interval | None:
    """A 95 % interval of the selected point's retention that knows which items both models have right.

    None where single items are not known, or are others than those of the accuracies.
    """
    if examples is None or m.accuracy is None or dense.accuracy is None:
        return None
    n = m.n_choice_items or m.n_items
    right, right_dense = round(m.accuracy * n), round(dense.accuracy * n)
    both = right_dense - examples.n_lost
    if examples.n_items != n or both < 0 or right != both + examples.n_won:
        return None
    return paired_ratio_interval(both, examples.n_won, examples.n_lost)


def paired_ratio_interval(both: int, first_only: int, second_only: int) -> Interval | None:
    """A 95 % interval of the ratio of two shares of the same items (Bonett and Price 2006); None without an item.

    Args:
        both: Items that count for both shares.
        first_only: Items that count for the numerator alone.
        second_only: Items that count for the denominator alone.
    """
    # It takes half a second to load, and most programs need no such interval.
    from scipy.stats import binomtest, norm

    n, first, second = both + first_only + second_only, both + first_only, both + second_only
    if not first or not second:
        return None
    spread = math.sqrt((first_only + second_only + 2) / ((first + 1) * (second + 1)))
    parts = [math.sqrt((1 - (count + 1) / (n + 2)) / (count + 1)) for count in (first, second)]
    confidence = 2 * norm.cdf(norm.ppf(0.975) * spread / sum(parts)) - 1
    of_first, of_second = (binomtest(count, n).proportion_ci(confidence, "wilson") for count in (first, second))
    return float(of_first.low / of_second.high), float(of_first.high / of_second.low)
