"""Speed-up of a measured prefill over the dense model's, with its interval or the reason why there is none."""

from __future__ import annotations

import math
from dataclasses import dataclass

from studies.records.measurement import Measurement


@dataclass(frozen=True)
class PrefillSpeedup:
    """A measured speed-up of a prefill over the dense model's."""

    ratio: float  # the speed-up; see `Measurement.speedup`
    low: float | None = None  # lower end of its 95 % interval; None where that is not known
    high: float | None = None  # upper end of it
    unknown: str = ""  # reason why the interval is not known; empty where it is

    @property
    def is_faster(self) -> bool | None:
        """True if it is faster than the dense model beyond the clock's noise; None where that is not known."""
        return None if self.low is None else self.low > 1

    @property
    def is_slower(self) -> bool | None:
        """True if it is slower than the dense model beyond the clock's noise; None where that is not known."""
        return None if self.high is None else self.high < 1

    @property
    def half_width(self) -> float:
        """Half the width of the interval as a share of the ratio; infinite where it is not known."""
        return math.inf if self.low is None or self.high is None else (self.high - self.low) / (2 * self.ratio)

    @property
    def interval(self) -> str:
        """The interval as text, or that it is not known and why."""
        if self.low is None or self.high is None:
            return f"interval unknown: {self.unknown}"
        return f"[{self.low:.2f}, {self.high:.2f}]"

    @property
    def times(self) -> str:
        """The ratio with its interval: "1.32 times [1.30, 1.34]"."""
        between = f" {self.interval}" if self.low is not None else f" ({self.interval})"
        return f"{self.ratio:.2f} times{between}"

    def __str__(self) -> str:
        return f"{self.times} the dense model's prefill speed"


def prefill_speedup(m: Measurement, dense: Measurement | None) -> PrefillSpeedup | None:
    """The speed-up of a measurement's prefill.

    Args:
        m: The measurement; the dense model's own is compared with itself.
        dense: The dense model as it was timed in the same sitting. Where an earlier version measured, the speed-up is
            the ratio of both medians, without an interval.

    Returns:
        None where nothing was measured to compare with.
    """
    if m.speedup is not None:
        few = "" if m.speedup_low is not None else f"{m.repeats} turns are too few for one"
        return PrefillSpeedup(m.speedup, m.speedup_low, m.speedup_high, few)
    if dense is None:
        return None
    return PrefillSpeedup(dense.latency_ms / m.latency_ms, unknown="measured by an earlier version")
