"""Observers of a run, which can neither slow it down nor end it."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from queue import SimpleQueue
from typing import Protocol

from search.config.run_config import RunConfig
from studies import Measurement, StudyState

_PATIENCE_S = 60.0
_PATIENCE_AFTER_CTRL_C_S = 5.0


class RunObserver(Protocol):
    """Follows the run of a study: a view that draws it, or a tracker that records it.

    `began` comes first and `ended` last. One observer may see several runs, one after the other.
    """

    def began(self, name: str, config: RunConfig, stages: Sequence[str]) -> None:
        """A run begins, or goes on.

        Args:
            name: The study's name.
            config: Its configuration.
            stages: The stages foreseen, in order, those that an earlier run finished among them; rounds may end early.
        """

    def stage_changed(self, stage: str, state: StudyState) -> None:
        """A stage runs now, or has come to an end.

        Args:
            stage: Its name.
            state: `RUNNING`, then `FINISHED`, `STOPPED` or `FAILED`.
        """

    def figures(self, stage: str, step: int, figures: Mapping[str, float]) -> None:
        """Something was found out on the way.

        Args:
            stage: The stage that runs.
            step: Counts up within the stage, over interruptions: trials ended, or steps of a training.
            figures: Figures by name.
        """

    def measured(self, measurements: Sequence[Measurement]) -> None:
        """The test measurements are there."""

    def ended(self, state: StudyState) -> None:
        """The run has come to an end: `FINISHED`, `STOPPED` or `FAILED`."""


class Observers:
    """Passes events to several observers in order, each in its own thread.

    So one that waits for a server holds up neither the run nor the others. One that raises is told nothing more.

    Args:
        observers: Observers.
        report: Called in the observer's thread with one line on an observer that is given up.
        patience_s: Longest wait of `ended` for observers that lag behind; shorter after Ctrl-C.
    """

    def __init__(
        self, observers: Sequence[RunObserver], report: Callable[[str], None], patience_s: float = _PATIENCE_S
    ) -> None:
        self._observers = list(observers)
        self._report = report
        self._patience_s = patience_s
        self._messengers: list[_Messenger] = []

    def began(self, name: str, config: RunConfig, stages: Sequence[str]) -> None:
        """Tell that a run begins."""
        self._messengers = [_Messenger(observer, self._report) for observer in self._observers]
        stages = list(stages)
        self._tell(lambda observer: observer.began(name, config, stages))

    def stage_changed(self, stage: str, state: StudyState) -> None:
        """Tell where a stage stands."""
        self._tell(lambda observer: observer.stage_changed(stage, state))

    def figures(self, stage: str, step: int, figures: Mapping[str, float]) -> None:
        """Tell what was found out."""
        figures = dict(figures)
        self._tell(lambda observer: observer.figures(stage, step, figures))

    def measured(self, measurements: Sequence[Measurement]) -> None:
        """Tell the test measurements."""
        measurements = list(measurements)
        self._tell(lambda observer: observer.measured(measurements))

    def ended(self, state: StudyState) -> None:
        """Tell that the run has come to an end, and wait for observers that lag behind, within patience."""
        self._tell(lambda observer: observer.ended(state))
        hurries = state is StudyState.STOPPED
        patience_s = min(self._patience_s, _PATIENCE_AFTER_CTRL_C_S) if hurries else self._patience_s
        deadline = time.monotonic() + patience_s
        for messenger in self._messengers:
            messenger.finish(deadline)
        self._observers = [messenger.observer for messenger in self._messengers if not messenger.is_given_up]
        self._messengers = []

    def _tell(self, event: Callable[[RunObserver], None]) -> None:
        for messenger in self._messengers:
            messenger.tell(event)


class _Messenger:
    """Brings events to one observer."""

    def __init__(self, observer: RunObserver, report: Callable[[str], None]) -> None:
        self.observer = observer
        self.is_given_up = False
        self._report = report
        self._events: SimpleQueue[Callable[[RunObserver], None] | None] = SimpleQueue()
        # A daemon: an observer that hangs does not keep the process from ending.
        self._thread = threading.Thread(target=self._bring, name=type(observer).__name__, daemon=True)
        self._thread.start()

    def tell(self, event: Callable[[RunObserver], None]) -> None:
        if not self.is_given_up:
            self._events.put(event)

    def finish(self, deadline: float) -> None:
        self._events.put(None)
        self._thread.join(max(0.0, deadline - time.monotonic()))
        if self._thread.is_alive():
            self._give_up("it has not taken everything that it was told in time")

    def _bring(self) -> None:
        while (event := self._events.get()) is not None:
            try:
                event(self.observer)
            except Exception as error:
                # A tracker's own message may be a page long.
                lines = str(error).strip().splitlines() or [""]
                self._give_up(f"{type(error).__name__}: {lines[0]}")
                return

    def _give_up(self, reason: str) -> None:
        if not self.is_given_up:
            self.is_given_up = True
            self._report(f"{type(self.observer).__name__} is told nothing more: {reason}")
