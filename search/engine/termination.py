"""Conditions that end a search."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field

# Growth of hypervolume below this share counts as none.
_TOLERANCE = 1e-3


@dataclass
class Stopping:
    """The conditions that end a search; the first that is met does.

    Attributes:
        trials: Number of trials, in whole evaluations.
        seconds: Time in which trials may begin; None for no limit.
        plateau: Trials in a row after which the search ends, unless the front's hypervolume grew by a thousandth; None
            for no limit.
        clock: Seconds, from any beginning.
    """

    trials: float
    seconds: float | None = None
    plateau: int | None = None
    clock: Callable[[], float] = time.monotonic
    _began: float = field(init=False)
    _growth: float = field(init=False, default=0.0)
    _barren: int = field(init=False, default=0)

    def __post_init__(self) -> None:
        """The clock runs from here."""
        self._began = self.clock()

    def ended(self, gain: float) -> None:
        """Note that a trial ended, and by which share it enlarged the hypervolume."""
        self._growth += gain
        self._barren += 1
        if self._growth >= _TOLERANCE:
            self._growth, self._barren = 0.0, 0

    @property
    def reason(self) -> str | None:
        """The reason why no more trials shall begin, apart from their number; None if they shall."""
        if self.seconds is not None and self.clock() - self._began >= self.seconds:
            return f"{self.seconds:g} seconds are over"
        if self.plateau is not None and self._barren >= self.plateau:
            return f"the last {self._barren} trials added nothing to the front"
        return None
