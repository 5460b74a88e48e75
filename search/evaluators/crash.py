"""Causes of death in Ray's errors."""

from __future__ import annotations

# Parts of Ray's texts on deaths: found only where the cause is unknown, and found before the cause.
KERNEL, _DETAIL = "OOM killer", "Worker exit detail: "


def cause_of(error: BaseException) -> str:
    """The last line of a Ray error, which is the one that the worker raised, or a short form of how it died."""
    if KERNEL in str(error):
        return "its process ended all at once: killed, perhaps for want of memory, or crashed"
    lines = [line for line in str(error).splitlines() if line.strip()]
    return lines[-1].strip().rpartition(_DETAIL)[2] if lines else type(error).__name__
