"""Speed-up of a measured prefill over the dense model's, with its interval or the reason why there is none."""

from __future__ import annotations

import math
from dataclasses import dataclass

from studies.records.measurement import Measurement


@dataclass(frozen=True)
class PrefillSpeedup:
    """A measured speed-up of a prefill over the dense model's."""

    ratio: float  # the speed-up; see `Measurement.speedup`
    low: float | None  # lower end of its 95 % interval; None after too few turns
    high: float | None  # upper end of it
    turns: int  # number of timed runs

    @property
    def is_faster(self) -> bool | None:
        """True if it is faster than the dense model beyond the clock's noise; None after too few turns."""
        return None if self.low is None else self.low > 1

    @property
    def is_slower(self) -> bool | None:
        """True if it is slower than the dense model beyond the clock's noise; None after too few turns."""
        return None if self.high is None else self.high < 1

    @property
    def half_width(self) -> float:
        """Half the width of the interval as a share of the ratio; infinite where it is not known."""
        return math.inf if self.low is None or self.high is None else (self.high - self.low) / (2 * self.ratio)

    @property
    def unknown(self) -> str:
        """Reason why the interval is not known; empty where it is."""
        return f"{self.turns} turns are too few for one" if self.low is None else ""

    @property
    def interval(self) -> str:
        """The interval as text, or that it is not known and why."""
        return f"interval unknown: {self.unknown}" if self.low is None else f"[{self.low:.2f}, {self.high:.2f}]"

    @property
    def times(self) -> str:
        """The ratio with its interval: "1.32 times [1.30, 1.34]"."""
        return f"{self.ratio:.2f} times " + (f"({self.interval})" if self.low is None else self.interval)

    def __str__(self) -> str:
        return f"{self.times} the dense model's prefill speed"


def prefill_speedup(m: Measurement) -> PrefillSpeedup:
    """The speed-up of a measurement's prefill, which must have been timed; the dense model's is over itself."""
    assert m.speedup is not None
    return PrefillSpeedup(m.speedup, m.speedup_low, m.speedup_high, m.repeats)
