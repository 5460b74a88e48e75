"""Contention for the machine's cores."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path


def pressure_us(file: Path = Path("/proc/pressure/cpu")) -> int | None:
    """The count of Linux so far, in microseconds; None where it does not count."""
    try:
        some = file.read_text().splitlines()[0]
        return int(some.rpartition("total=")[2])
    except (OSError, ValueError, IndexError):
        return None


class Contention:
    """Share of the time during which some process of the machine waited for a core ("PSI" in Linux).

    Args:
        waited_us: Reads the microseconds for which processes have waited so far; None if unknown.
        timer: Reads seconds since any moment.
    """

    def __init__(
        self, waited_us: Callable[[], int | None] = pressure_us, timer: Callable[[], float] = time.monotonic
    ) -> None:
        self._waited_us, self._timer = waited_us, timer
        self._began_at, self._began_us = timer(), waited_us()

    def share(self) -> float | None:
        """The share since this was made; None if unknown."""
        now_us, passed_s = self._waited_us(), self._timer() - self._began_at
        if now_us is None or self._began_us is None or passed_s <= 0:
            return None
        return min(1.0, (now_us - self._began_us) / 1e6 / passed_s)
