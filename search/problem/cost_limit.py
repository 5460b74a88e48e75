"""Limits on what schedules may cost, and what each of their genes costs."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from ftp_core.schedule import SparsitySchedule
from studies.records.objectives import CostName

Floats = NDArray[np.float64]
LimitKind = Literal["max_latency_ms", "target_flops_saved", "target_speedup"]

# The cost that each of them limits.
LIMIT_COSTS: Mapping[LimitKind, CostName] = {
    "target_flops_saved": "flops",
    "target_speedup": "latency_ms",
    "max_latency_ms": "latency_ms",
}

# What sums of floats are off by does not count.
_SLACK = 1e-9
# Schedules that show whether a cost adds up over genes.
_PROBES = 3


@dataclass(frozen=True)
class CostLimit:
    """Upper limit on the cost of every schedule.

    A target is a limit, too: less cost than was asked for costs quality, so that proposals are brought close to it.

    Attributes:
        kind: The setting that it comes from.
        asked: Value of the setting.
        cost: The cost of a schedule: milliseconds or FLOPs of a prefill.
        dense: Cost of the dense model.
    """

    kind: LimitKind
    asked: float
    cost: Callable[[SparsitySchedule], float]
    dense: float

    @property
    def most(self) -> float:
        """The highest cost that is allowed."""
        if self.kind == "target_flops_saved":
            return (1 - self.asked) * self.dense
        return self.dense / self.asked if self.kind == "target_speedup" else self.asked

    @property
    def is_target(self) -> bool:
        """True if proposals shall lie close to it, and not just below."""
        return self.kind != "max_latency_ms"

    def is_kept_by(self, cost: float) -> bool:
        """True if a cost is allowed."""
        return cost <= self.most * (1 + _SLACK)

    def violation(self, cost: float) -> float:
        """By how much a cost exceeds what is allowed, as a share of it; 0 if it does not."""
        return 0.0 if self.is_kept_by(cost) else cost / self.most - 1

    def refusal(self, least: float) -> str:
        """Says that no schedule keeps it, given the least cost of any."""
        if self.kind == "target_flops_saved":
            return (
                f"A target of {self.asked:g} of the FLOPs saved cannot be reached: with what else is constrained, at "
                f"most {max(0.0, 1 - least / self.dense):.3f} of the dense prefill's can be."
            )
        if self.kind == "target_speedup":
            return (
                f"A target speed-up of {self.asked:g} cannot be reached: with what else is constrained, at most "
                f"{self.dense / least:.3f} is predicted."
            )
        return (
            f"No schedule takes at most {self.asked:g} ms: the fastest that the other constraints allow is predicted "
            f"to take {least:.1f} ms. Allow more, or constrain less."
        )


class GeneCosts:
    """A cost as a sum over genes: `base + sum(table[gene, index])`.

    FLOPs are exactly that with every router, and predicted latency with the static one. Other costs are tabled by
    single changes of the dense schedule, see `is_additive`.

    Attributes:
        base: Cost of the dense schedule.
        table: Change of the cost by each gene at each grid index `[genes, top + 1]`, mostly less than 0.
        is_additive: True if the table tells the cost of every schedule.
    """

    def __init__(
        self,
        cost: Callable[[Sequence[int]], float],
        n_genes: int,
        top: int,
    ) -> None:
        """Table a cost of grid indices."""
        self._cost = cost
        dense = [0] * n_genes
        self.base = cost(dense)
        self.table: Floats = np.zeros((n_genes, top + 1))
        for gene in range(n_genes):
            for index in range(1, top + 1):
                self.table[gene, index] = cost([*dense[:gene], index, *dense[gene + 1 :]]) - self.base
        self._genes = np.arange(n_genes)
        self.is_additive = all(self._adds_up(top, random.Random(seed)) for seed in range(_PROBES))

    def tabled(self, indices: Sequence[int]) -> float:
        """Cost of grid indices by the table; mostly too high if the cost is not additive."""
        return float(self.base + self.table[self._genes, np.asarray(indices, dtype=np.intp)].sum())

    def of(self, indices: Sequence[int]) -> float:
        """Cost of grid indices."""
        return self.tabled(indices) if self.is_additive else self._cost(indices)

    def _adds_up(self, top: int, rng: random.Random) -> bool:
        indices = [rng.randint(0, top) for _ in self._genes]
        true = self._cost(indices)
        return abs(self.tabled(indices) - true) <= _SLACK * abs(true) + 1e-12
