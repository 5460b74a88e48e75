"""Limits on what schedules may cost."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

from ftp_core.schedule import SparsitySchedule
from search.problem.gene_costs import SLACK
from studies.records.objectives import CostName

LimitKind = Literal["max_latency_ms", "target_flops_saved", "target_speedup"]

# The cost that each of them limits.
LIMIT_COSTS: Mapping[LimitKind, CostName] = {
    "target_flops_saved": "flops",
    "target_speedup": "latency_ms",
    "max_latency_ms": "latency_ms",
}


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
        return cost <= self.most * (1 + SLACK)

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
