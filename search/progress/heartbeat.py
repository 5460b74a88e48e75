"""Periodic calls in a thread."""

from __future__ import annotations

import threading
from collections.abc import Callable


class Heartbeat:
    """Calls something again and again, in a thread of its own, until it is stopped.

    Args:
        beat: Function to call.
        seconds: Time between two calls.
    """

    def __init__(self, beat: Callable[[], None], seconds: float) -> None:
        self._beat = beat
        self._seconds = seconds
        self._is_over = threading.Event()
        # A daemon: whatever ends the process does not wait for it.
        self._thread = threading.Thread(target=self._run, name=type(self).__name__, daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Stops the calls; a running one may still end."""
        self._is_over.set()

    def _run(self) -> None:
        while not self._is_over.wait(self._seconds):
            self._beat()
