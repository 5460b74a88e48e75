"""Ctrl-C during a search: the first lets what is in flight end, the second leaves at once."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType


class Interruption:
    """State of a request to stop: `requested` once Ctrl-C was pressed."""

    requested = False


@contextmanager
def gentle_interruption(on_first: Callable[[], None]) -> Iterator[Interruption]:
    """Context in which the first Ctrl-C only sets a flag; the next one raises `KeyboardInterrupt` as usual.

    Outside the main thread, which alone may handle signals, nothing changes.

    Args:
        on_first: Called at the first one, to say what happens now.
    """
    interruption = Interruption()
    if threading.current_thread() is not threading.main_thread():
        yield interruption
        return

    def handle(_signal: int, _frame: FrameType | None) -> None:
        if interruption.requested:
            raise KeyboardInterrupt
        interruption.requested = True
        on_first()

    before = signal.signal(signal.SIGINT, handle)
    try:
        yield interruption
    finally:
        signal.signal(signal.SIGINT, before)
