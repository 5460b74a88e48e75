"""Checks measured times by those that are known beforehand."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from studies.analysis.prefill_speed import prefill_speedup
from studies.records.measurement import Measurement

# The interval of what is exactly as fast as the dense model may miss 1 by such a share: of twenty, one does by chance,
# and hardly by more.
_OF_ITSELF = 0.01
# Half the width of an interval, as a share of the speed-up, beyond which points are not told apart any more.
_USABLE, _PRECISE = 0.15, 0.025
# Of the dense model's operations by a variant's: caches may make a little more of that, nothing makes so much more.
_MOST_OF_FLOPS = 1.5


@dataclass(frozen=True)
class ClockCheck:
    """Reliability of the times of one sitting."""

    split: str  # split of the measurements; each was timed in a sitting of its own
    turns: int  # number of times that each variant was timed
    of_itself: float  # speed-up of the dense model over itself, which is 1 on a clock that can be relied on
    half_width: float | None  # half the width of the widest interval of a speed-up, as a share of it; None if unknown
    doubts: tuple[str, ...]  # reasons, in words, not to use the times; empty if they are usable

    @property
    def is_usable(self) -> bool:
        """True if points can be selected and compared by these times."""
        return not self.doubts

    @property
    def sentence(self) -> str:
        """A warning for readers of the times; empty where they are precise."""
        if self.doubts:
            return f"Times were not usable, the machine was busy: {'; '.join(self.doubts)}."
        if self.half_width is not None and self.half_width > _PRECISE:
            return (
                f"Times are not precise: after {self.turns} turns, speed-ups are known to within {self.half_width:.0%} "
                "at worst."
            )
        return ""

    def to_json(self) -> dict[str, Any]:
        """As plain values, the verdict among them."""
        return {**asdict(self), "doubts": list(self.doubts), "is_usable": self.is_usable, "sentence": self.sentence}


def check_clock(measurements: Sequence[Measurement], split: str) -> ClockCheck | None:
    """Check the times of a sitting by what is known beforehand.

    The dense model, timed twice in every turn, is as fast as itself, and so is a schedule that skips nothing with the
    static router; no speed-up is far beyond the ratio of operations; and intervals are narrow enough to tell points
    apart.

    Args:
        measurements: Measurements of a study.
        split: "validation" or "test".

    Returns:
        None where the dense model was not measured then.
    """
    timed = [(m, prefill_speedup(m)) for m in measurements if m.split == split]
    dense, of_itself = next((one for one in timed if one[0].variant == "dense"), (None, None))
    if dense is None or of_itself is None:
        return None
    vaguest, vague = max(timed, key=lambda one: one[1].half_width)
    widest = vague.half_width
    doubts = []
    for m, one in timed:
        if one.low is None or one.high is None:
            continue
        if m.router is None and not any(m.schedule) and not one.low - _OF_ITSELF <= 1 <= one.high + _OF_ITSELF:
            what = "timed twice in every turn, was" if m is dense else f"as trial {m.trial}, was"
            doubts.append(f"the dense model, {what} {one.times} as fast as itself")
        most = dense.flops / m.flops
        if one.low > _MOST_OF_FLOPS * most:
            doubts.append(f"{_name(m)} was {one.times} as fast as dense, with {most:.2f} times fewer operations")
    if not math.isfinite(widest):
        doubts.append(f"{dense.repeats} turns are too few to tell how far off speed-ups are")
    elif widest > _USABLE:
        doubts.append(f"speed-ups are known to within {widest:.0%} only ({_name(vaguest)}: {vague.times})")
    return ClockCheck(split, dense.repeats, of_itself.ratio, widest if math.isfinite(widest) else None, tuple(doubts))


def _name(m: Measurement) -> str:
    return m.variant if m.trial is None else f"trial {m.trial}"
