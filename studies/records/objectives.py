"""Names and units of objectives, and of the hypervolume of fronts."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args


@dataclass(frozen=True)
class Objective:
    """Name and unit of an objective as they are shown."""

    name: str  # key in studies
    title: str  # in words
    unit: str  # unit that people read
    source: str = ""  # beside the unit, in the heading of a narrow column: where the number comes from
    per_unit: float = 1.0  # stored value of one unit

    @property
    def axis(self) -> str:
        """The title of an axis."""
        return f"{self.title}, {self.unit}" if self.unit else self.title

    def shown(self, value: float) -> float:
        """A stored value in the unit that people read."""
        return value / self.per_unit

    def number(self, value: float) -> str:
        """A stored value as digits of that unit: one decimal, or three digits of what is small."""
        shown = self.shown(value)
        return f"{shown:.1f}" if shown >= 10 or shown == 0 else f"{shown:.3g}"

    def text(self, value: float) -> str:
        """A stored value with its unit."""
        return f"{self.number(value)} {self.unit}".rstrip()


KL = "kl"
_KNOWN = {
    one.name: one
    for one in (
        Objective(KL, "KL to dense", "nats per token"),
        Objective("latency_ms", "predicted latency", "ms", "predicted"),
        Objective("flops", "prefill arithmetic", "GFLOPs", "counted", 1e9),
        Objective("kv_bytes", "KV cache", "MiB", "KV cache", 2.0**20),
    )
}


# Costs that trials keep as metrics; the default one is an objective unless another is named.
CostName = Literal["latency_ms", "flops", "kv_bytes"]
COSTS: tuple[CostName, ...] = get_args(CostName)
DEFAULT_COST: CostName = "latency_ms"


def objective(name: str) -> Objective:
    """An objective by its name; an unknown one has no unit."""
    return _KNOWN.get(name, Objective(name, name, ""))


def volume_unit(objectives: Sequence[str]) -> str:
    """The unit in which people read hypervolumes, see `studies.pareto`; empty for objectives without units."""
    unit = objective(objectives[-1]).unit
    return f"log nats × {unit}" if objectives[0] == KL and unit else ""


def shown_volume(volume: float, objectives: Sequence[str]) -> float:
    """A hypervolume in the unit that people read, see `volume_unit`."""
    return volume / math.prod(objective(name).per_unit for name in objectives)


def reference_text(reference: Sequence[float], objectives: Sequence[str]) -> str:
    """The corner up to which a hypervolume reaches, in words: without it, the number means nothing."""
    return ", ".join(
        f"KL {value:.3g}" if name == KL else objective(name).text(value)
        for name, value in zip(objectives, reference, strict=True)
    )
