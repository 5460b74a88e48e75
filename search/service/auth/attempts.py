"""Limits how often an address may send wrong tokens."""

from __future__ import annotations

import threading
import time
from collections import OrderedDict, deque
from collections.abc import Callable

_MAX_ADDRESSES = 10_000


class FailedAttempts:
    """Counts failures by address, for this process: with `most` of them within `window_s`, an address must wait."""

    def __init__(self, most: int = 10, window_s: float = 60.0, clock: Callable[[], float] = time.monotonic) -> None:
        self._most = most
        self._window_s = window_s
        self._clock = clock
        self._failures: OrderedDict[str, deque[float]] = OrderedDict()
        self._lock = threading.Lock()

    def note(self, address: str) -> None:
        """Counts a failure."""
        with self._lock:
            failures = self._failures.setdefault(address, deque(maxlen=self._most))
            failures.append(self._clock())
            self._failures.move_to_end(address)
            if len(self._failures) > _MAX_ADDRESSES:
                self._failures.popitem(last=False)

    def wait_s(self, address: str) -> float:
        """Seconds until an address may try again."""
        with self._lock:
            failures = self._failures.get(address)
            if failures is None or len(failures) < self._most:
                return 0.0
            return max(0.0, failures[0] + self._window_s - self._clock())
