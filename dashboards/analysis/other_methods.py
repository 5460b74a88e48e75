"""What other methods came to: their models of all seeds at a target, as tables and figures show them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from studies import Measurement
from studies.records.compared import Compared, ComparedModel, latest
from studies.records.objectives import COSTS, DEFAULT_COST

_QUALITIES = ("kl", "accuracy", "perplexity")


@dataclass(frozen=True)
class MethodPoint:
    """A method at a target.

    Of several seeds, KL, perplexity and accuracy are means, and intervals reach over those of all. Costs and times are
    those of the first one.
    """

    method: str
    match: str  # what is alike at the target
    target: float  # share to be saved
    models: tuple[ComparedModel, ...]  # one for each seed, at least one

    @property
    def first(self) -> ComparedModel:
        """The model of the first seed."""
        return self.models[0]

    @property
    def kl(self) -> float:
        """Mean KL."""
        return float(np.mean([one.kl for one in self.models]))

    @property
    def kl_interval(self) -> tuple[float, float]:
        """Lowest and highest end of the intervals of KL."""
        return min(one.kl_low for one in self.models), max(one.kl_high for one in self.models)

    @property
    def perplexity(self) -> float:
        """Mean perplexity."""
        return float(np.mean([one.perplexity for one in self.models]))

    @property
    def accuracy(self) -> float | None:
        """Mean accuracy; None without choices."""
        known = [one.accuracy for one in self.models if one.accuracy is not None]
        return float(np.mean(known)) if known else None

    @property
    def accuracy_interval(self) -> tuple[float, float] | None:
        """Lowest and highest end of the intervals of accuracy; None without any."""
        ends = [_ends(one.accuracy_low, one.accuracy_high) for one in self.models]
        known = [one for one in ends if one is not None]
        return (min(low for low, _ in known), max(high for _, high in known)) if known else None

    @property
    def speedup_interval(self) -> tuple[float, float] | None:
        """Interval of the speed-up; None where there were too few turns."""
        return _ends(self.first.speedup_low, self.first.speedup_high)

    @property
    def title(self) -> str:
        """The target in words."""
        return target_title(self.match, self.target)

    def value(self, quantity: str, dense: Measurement | None) -> float | None:
        """Its value of a quantity beside a study's measurements; None where it has none that compares with theirs.

        Costs compare if they are of the same prefill. Latency is the dense model's among the measurements by the
        speed-up, which was measured in turns: milliseconds of another hour are of another clock.

        Args:
            quantity: Name of a quantity.
            dense: Measurement of the dense model; None if there is none.
        """
        if quantity in _QUALITIES:
            found: float | None = getattr(self, quantity)
            return found
        own = self.first
        if quantity not in COSTS or dense is None or (dense.batch, dense.length) != (own.batch, own.length):
            return None
        return dense.latency_ms / own.speedup if quantity == DEFAULT_COST else float(getattr(own, quantity))


def target_title(match: str, target: float) -> str:
    """A target in words."""
    return f"{target:.0%} less {'time' if match == 'latency' else 'operations'} for a prefill"


def method_points(rows: Iterable[Compared]) -> list[MethodPoint]:
    """A point for each method and target that a model was made for, in the order of the rows."""
    models: dict[tuple[str, str, float], list[ComparedModel]] = {}
    for one in latest(rows):
        if one.model is not None:
            models.setdefault((one.method, one.match, one.target), []).append(one.model)
    return [MethodPoint(*key, tuple(own)) for key, own in models.items()]


def _ends(low: float | None, high: float | None) -> tuple[float, float] | None:
    return None if low is None or high is None else (low, high)
