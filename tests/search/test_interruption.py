"""The first Ctrl-C asks, the second one insists."""

from __future__ import annotations

import signal
import threading

import pytest

from search.interruption import Interruption, gentle_interruption


def test_the_first_ctrl_c_sets_a_flag_and_the_second_one_interrupts() -> None:
    before = signal.getsignal(signal.SIGINT)
    heard: list[str] = []
    with pytest.raises(KeyboardInterrupt), gentle_interruption(lambda: heard.append("first")) as interruption:
        assert not interruption.requested
        signal.raise_signal(signal.SIGINT)
        assert interruption.requested and heard == ["first"]
        signal.raise_signal(signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) == before and heard == ["first"]


def test_outside_the_main_thread_signals_are_left_alone() -> None:
    seen: list[Interruption] = []

    def work() -> None:
        with gentle_interruption(lambda: None) as interruption:
            seen.append(interruption)

    before = signal.getsignal(signal.SIGINT)
    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert signal.getsignal(signal.SIGINT) == before and not seen[0].requested
