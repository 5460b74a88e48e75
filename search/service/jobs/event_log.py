"""Tells the database how a run goes: a tracker for the service, and a console whose lines are kept there, too."""

from __future__ import annotations

import io
import logging
import sys
import threading
from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console

from search.config.run_config import RunConfig
from studies import Measurement, StudiesError, StudyState
from studies.service.service_store import ServiceStore

_WRITE_EVERY_S = 1.0
_MAX_LINE = 4000
_WIDTH = 120

_log = logging.getLogger(__name__)


class EventLog:
    """Keeps what happens in the run of one study, written together once a second; it is a `RunObserver`.

    Of figures, the latest in each second are kept.

    Args:
        store: Where the study lives.
        name: Its name.
    """

    def __init__(self, store: ServiceStore, name: str) -> None:
        self._store = store
        self._name = name
        self._events: list[tuple[str, Mapping[str, Any]]] = []
        self._figures: dict[str, tuple[int, dict[str, float]]] = {}
        self._lock = threading.Lock()
        self._writing = threading.Lock()
        self._is_over = threading.Event()
        self._thread = threading.Thread(target=self._keep_writing, name=f"events of {name}", daemon=True)
        self._thread.start()

    def began(self, name: str, config: RunConfig, stages: Sequence[str]) -> None:
        """Keep that a run begins, and its stages."""
        self._add("began", {"stages": list(stages)})

    def stage_changed(self, stage: str, state: StudyState) -> None:
        """Keep where a stage stands."""
        self._add("stage", {"stage": stage, "state": state.value})

    def figures(self, stage: str, step: int, figures: Mapping[str, float]) -> None:
        """Keep figures, unless others come within the second."""
        with self._lock:
            before = self._figures.get(stage, (0, {}))[1]
            self._figures[stage] = (step, {**before, **figures})

    def measured(self, measurements: Sequence[Measurement]) -> None:
        """Keep that there are measurements, which are read where they are."""
        self._add("measured", {"n_measurements": len(measurements)})

    def ended(self, state: StudyState) -> None:
        """Keep how the run ended."""
        self._add("ended", {"state": state.value})

    def say(self, line: str) -> None:
        """Keep a line of text."""
        self._add("log", {"text": line[:_MAX_LINE]})

    def close(self) -> None:
        """Write what is left."""
        self._is_over.set()
        self._thread.join()
        self._write()

    def _add(self, kind: str, content: Mapping[str, Any]) -> None:
        with self._lock:
            self._take_figures()
            self._events.append((kind, content))

    def _take_figures(self) -> None:
        for stage, (step, figures) in self._figures.items():
            self._events.append(("figures", {"stage": stage, "step": step, "figures": figures}))
        self._figures.clear()

    def _keep_writing(self) -> None:
        while not self._is_over.wait(_WRITE_EVERY_S):
            self._write()

    def _write(self) -> None:
        with self._writing:
            with self._lock:
                self._take_figures()
                events, self._events = self._events, []
            try:
                self._store.events.add(self._name, events)
            except StudiesError as error:
                # The run itself meets the same database, and says what is wrong with it.
                _log.warning("%d events of study %r are not kept: %s", len(events), self._name, error)


class _Lines(io.StringIO):
    """A file whose lines are kept as events, and shown."""

    def __init__(self, events: EventLog, name: str) -> None:
        super().__init__()
        self._events = events
        self._name = name
        self._rest = ""
        self._lock = threading.Lock()

    def write(self, text: str) -> int:
        with self._lock:
            *lines, self._rest = (self._rest + text).split("\n")
        for line in lines:
            self._events.say(line.rstrip())
            print(f"{self._name}: {line.rstrip()}", file=sys.stderr, flush=True)
        return len(text)


def console_of(events: EventLog, name: str) -> Console:
    """A console whose lines are kept as events of a study, and shown on standard error with the study's name."""
    lines = _Lines(events, name)
    return Console(file=lines, force_terminal=False, width=_WIDTH, markup=False, highlight=False, emoji=False)
