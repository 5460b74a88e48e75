"""Costs of schedules, for objectives, the latency limit, and the metrics of trials."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, partial

from ftp_core.cost import LatencyProfile
from ftp_core.cost.flops import FlopsCounter
from ftp_core.cost.memory import kv_bytes
from ftp_core.cost.profile import router_kind
from ftp_core.routers import Router, StaticRouter
from ftp_core.schedule import SparsitySchedule
from ftp_core.skipping.skipping_model import SkippingModel
from search.errors import SearchError
from studies.records.objectives import COSTS, CostName


@dataclass(frozen=True)
class Costs:
    """Costs of a prefill by name; they follow from the schedule alone, and nothing is run for them.

    Attributes:
        model: Model whose blocks are skipped.
        batch: Rows of the prefill.
        length: Tokens in each row.
        profile: Predicts latency; None where none was measured.
        router: Decides which tokens are kept; what that takes counts. None for the static one, which takes nothing.
            The latency of one that reads the hidden states of every block is predicted as the dynamic one's: both score
            every token there, and only that one was profiled.
    """

    model: SkippingModel
    batch: int
    length: int
    profile: LatencyProfile | None = None
    router: Router | None = None

    def of(self, schedule: SparsitySchedule) -> dict[str, float]:
        """Every cost that is known: without a profile there is no latency."""
        known = [name for name in COSTS if self.profile is not None or name != "latency_ms"]
        return {name: self.function(name)(schedule) for name in known}

    def function(self, name: CostName) -> Callable[[SparsitySchedule], float]:
        """One of the costs, as a function of the schedule.

        Raises:
            SearchError: It is latency, and there is no profile.
        """
        if name == "flops":
            return self._flops
        if name == "kv_bytes":
            return self._kv_bytes
        if self.profile is None:
            raise SearchError("Latency cannot be predicted without a profile: measure one before the search begins.")
        kind = router_kind(StaticRouter() if self.router is None else self.router)
        return partial(self.profile.predict_ms, batch=self.batch, length=self.length, router=kind)

    def dense(self, name: CostName) -> float:
        """One of the costs, of the dense model.

        Raises:
            SearchError: See `function`.
        """
        return self.function(name)(SparsitySchedule.uniform(0.0, self.model.n_blocks))

    @cached_property
    def _counter(self) -> FlopsCounter:
        return FlopsCounter(self.model)

    def _flops(self, schedule: SparsitySchedule) -> float:
        return self._counter.count(schedule, self.batch, self.length, router=self.router).total

    def _kv_bytes(self, schedule: SparsitySchedule) -> float:
        return float(kv_bytes(self.model, schedule, self.batch, self.length))
