"""Proposers: what to evaluate next.

The engine knows them by the `Proposer` protocol alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol


class Proposer(Protocol):
    """Proposes levels, and learns from every finished trial, whoever proposed it."""

    @property
    def name(self) -> str:
        """What trials are labelled with."""

    def ask(self, number: int) -> tuple[int, ...]:
        """Levels to evaluate as trial `number`, inside the space.

        Random choices depend on the seed, on the number, and on how often it was asked for this number before: a search
        that was resumed proposes as if it had never stopped.
        """

    def tell(self, levels: Sequence[int], values: Sequence[float]) -> None:
        """Objective values of evaluated levels, lower is better."""
