"""Proposals of schedules."""

from __future__ import annotations

from dataclasses import dataclass

GridIndices = tuple[int, ...]
Values = tuple[float, ...]


@dataclass(frozen=True, slots=True)
class Proposal:
    """A schedule to evaluate next.

    Attributes:
        grid_indices: Steps of sparsity, one per block.
        parents: Evaluated schedules that it is made from, each once; empty if it comes from none in particular,
            but from chance, or from a model of all of them.
    """

    grid_indices: GridIndices
    parents: tuple[GridIndices, ...] = ()
