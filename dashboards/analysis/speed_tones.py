"""How speed-ups are set: muted where no difference from the dense model is shown, as bad news where one is slower."""

from __future__ import annotations

from dashboards.analysis.intervals import latency_quartiles, overlap
from dashboards.analysis.tables import Tone
from studies import Measurement
from studies.analysis.clock import ClockCheck
from studies.analysis.prefill_speed import prefill_speedup
from studies.records.generation_speed import GenerationSpeed


def is_usable(clock: ClockCheck | None) -> bool:
    """Tells if times were found usable, or nothing is known against them."""
    return clock is None or clock.is_usable


def prefill_tone(m: Measurement, dense: Measurement | None, clock: ClockCheck | None) -> Tone:
    """The tone of a measured prefill's speed-up.

    Args:
        m: The measurement.
        dense: The dense model's; None where it was not measured.
        clock: Check of the times that both were measured in.
    """
    if not is_usable(clock):
        return "unclear"
    if m.variant == "dense":
        return ""
    faster = prefill_speedup(m)
    if faster.low is not None and faster.high is not None:
        return _tone(faster.low, faster.high)
    if dense is None or overlap(latency_quartiles(m), latency_quartiles(dense)):
        return "unclear"
    return "" if faster.ratio > 1 else "bad"


def generation_tone(one: GenerationSpeed) -> Tone:
    """The tone of a speed-up with new tokens."""
    if one.speedup_low is None or one.speedup_high is None:
        return "unclear"
    return _tone(one.speedup_low, one.speedup_high)


def _tone(low: float, high: float) -> Tone:
    return "" if low > 1 else "bad" if high < 1 else "unclear"
