"""The sparsities that a search tries of each gene."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Grid:
    """A grid of sparsities: 0, a least one, and from there on equal steps.

    Attributes:
        step: Distance of the grid.
        first: Number of steps of the least sparsity above 0.
    """

    step: float
    first: int = 1

    def level(self, index: int) -> int:
        """Number of steps of a grid index."""
        return index + self.first - 1 if index else 0

    def sparsity(self, index: int) -> float:
        """The sparsity of a grid index."""
        return self.level(index) * self.step

    def sparsities(self, indices: Floats) -> Floats:
        """The sparsities of grid indices."""
        found: Floats = np.where(indices > 0, indices + (self.first - 1), 0.0) * self.step
        return found

    def position(self, sparsity: float) -> float:
        """The place of any sparsity among grid indices, between two where it is none of the grid's."""
        level = sparsity / self.step
        return level - self.first + 1 if level >= self.first else level / self.first

    def index(self, sparsity: float) -> int:
        """The nearest grid index."""
        return round(self.position(sparsity))
