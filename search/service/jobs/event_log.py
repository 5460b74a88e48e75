"""Keeps the events of a run in the database: an observer, and a console whose lines are events."""

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
    """A `RunObserver` that writes the events of a study's run once a second; of figures, the latest ones."""

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
        """Keeps the beginning of a run and its stages."""
        self._add("began", {"stages": list(stages)})

    def stage_changed(self, stage: str, state: StudyState) -> None:
        """Keeps the state of a stage."""
        self._add("stage", {"stage": stage, "state": state.value})

    def figures(self, stage: str, step: int, figures: Mapping[str, float]) -> None:
        """Keeps figures unless newer ones come within the second."""
        with self._lock:
            before = self._figures.get(stage, (0, {}))[1]
            self._figures[stage] = (step, {**before, **figures})

    def measured(self, measurements: Sequence[Measurement]) -> None:
        """Keeps the number of new measurements."""
        self._add("measured", {"n_measurements": len(measurements)})

    def ended(self, state: StudyState) -> None:
        """Keeps the final state of the run."""
        self._add("ended", {"state": state.value})

    def say(self, line: str) -> None:
        """Keeps a line of text."""
        self._add("log", {"text": line[:_MAX_LINE]})

    def close(self) -> None:
        """Writes the remaining events."""
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
                # The run itself fails with the same error.
                _log.warning("%d events of study %r are not kept: %s", len(events), self._name, error)


class _Lines(io.StringIO):
    """A stream whose lines become events and are shown."""

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
    """A console whose lines become events of a study and are shown on standard error with its name."""
    lines = _Lines(events, name)
    return Console(file=lines, force_terminal=False, width=_WIDTH, markup=False, highlight=False, emoji=False)
