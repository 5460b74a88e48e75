"""Ctrl-C while a command is being loaded."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager

INTERRUPTED = 130


@contextmanager
def ends_at_once() -> Iterator[None]:
    """Context in which Ctrl-C and SIGTERM end the process, for imports: there is nothing to be kept yet.

    An exception in the middle of an import may be swallowed or replaced by what is being imported. Outside the main
    thread, which alone may handle signals, nothing changes; nor does a signal that is ignored.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def end(*_: object) -> None:
        os.write(2, b"Stopped.\n")
        os._exit(INTERRUPTED)

    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    handled = {number: handler for number, handler in before.items() if handler is not signal.SIG_IGN}
    for number in handled:
        signal.signal(number, end)
    try:
        yield
    finally:
        for number, handler in handled.items():
            signal.signal(number, handler)
