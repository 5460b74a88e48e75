"""Evaluators: where a schedule is turned into figures.

The engine knows them by the `Evaluator` protocol alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol

from ftp_core.schedule import SparsitySchedule


@dataclass(frozen=True)
class Evaluation:
    """What an evaluator found out about one schedule.

    Attributes:
        schedule: What was evaluated.
        metrics: Figures by name, `kl` among them; empty if it failed.
        seconds: Time that it took on the worker.
        error: What went wrong, if it failed.
    """

    schedule: SparsitySchedule
    metrics: Mapping[str, float] = field(default_factory=dict)
    seconds: float = 0.0
    error: str | None = None


class Evaluator(Protocol):
    """Evaluates schedules, several at a time."""

    @property
    def capacity(self) -> int:
        """How many schedules should be in flight to keep every worker busy."""

    def submit(self, schedule: SparsitySchedule) -> None:
        """Start evaluating a schedule."""

    def next_result(self) -> Evaluation:
        """Wait for any submitted schedule to be done."""

    def close(self) -> None:
        """Release workers; what is in flight is dropped."""
