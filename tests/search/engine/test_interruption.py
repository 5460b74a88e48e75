"""The first Ctrl-C asks, the second one insists."""

from __future__ import annotations

import signal
import threading

import pytest

from search.engine.interruption import Interruption, gentle_interruption


def press_twice(heard: list[str]) -> None:
    with gentle_interruption(lambda: heard.append("asked")) as interruption:
        assert not interruption.requested
        signal.raise_signal(signal.SIGINT)
        assert interruption.requested and heard == ["asked"]
        signal.raise_signal(signal.SIGINT)
        heard.append("went on")


def test_the_first_ctrl_c_sets_a_flag_and_the_second_one_interrupts() -> None:
    before = signal.getsignal(signal.SIGINT)
    heard: list[str] = []
    with pytest.raises(KeyboardInterrupt):
        press_twice(heard)
    assert signal.getsignal(signal.SIGINT) == before and heard == ["asked"]


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
