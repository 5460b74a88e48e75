"""The target of a study: what all its schedules have in common, so that their quality compares."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

TargetKind = Literal["target_sparsity", "target_flops_saved", "target_speedup"]
# Settings of a study; one of them at most is given.
TARGETS: tuple[TargetKind, ...] = get_args(TargetKind)


@dataclass(frozen=True)
class Target:
    """A target, by the setting that gives it.

    Overall sparsity is met exactly, to the grid. The others limit a cost: schedules cost at most as much as leaves so
    many FLOPs saved, or is so much faster by prediction.
    """

    kind: TargetKind
    value: float

    @classmethod
    def of(cls, config: Mapping[str, Any]) -> Target | None:
        """The target of a study's configuration; None if it has none."""
        given = ((kind, config.get(kind)) for kind in TARGETS)
        return next((cls(kind, float(value)) for kind, value in given if value is not None), None)

    @property
    def sparsity(self) -> float | None:
        """The overall sparsity, if that is the target."""
        return self.value if self.kind == "target_sparsity" else None

    def __str__(self) -> str:
        if self.kind == "target_speedup":
            return f"a predicted speed-up of {self.value:g}"
        return f"{100 * self.value:g} % {'overall sparsity' if self.sparsity is not None else 'of FLOPs saved'}"
