"""Progress of long work: bars on a terminal, plain lines elsewhere."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

_SECONDS_BETWEEN_LINES = 10.0


class Stage:
    """One piece of work with a known number of steps."""

    def __init__(self, console: Console, bars: Progress | None, title: str, total: int, completed: int) -> None:
        self._console = console
        self._bars = bars
        self._title = title
        self._total = total
        self._completed = completed
        self._note = ""
        self._last_line = time.monotonic()
        self._is_over = False
        self._bar: TaskID | None = None
        if bars is not None:
            self._bar = bars.add_task(title, total=total, completed=completed, note="")
        else:
            console.print(f"{title} ...", highlight=False)

    def advance(self, steps: int = 1, note: str = "") -> None:
        """Count steps as done, with a word on what was reached; one that is over counts no more."""
        if self._is_over:
            return
        self._completed += steps
        self._note = note or self._note
        if self._bars is not None and self._bar is not None:
            self._bars.update(self._bar, advance=steps, note=self._note)
        elif time.monotonic() - self._last_line > _SECONDS_BETWEEN_LINES:
            self._last_line = time.monotonic()
            self._console.print(f"{self._title}: {self._completed}/{self._total}  {self._note}", highlight=False)

    def finish(self) -> None:
        """Say that the work is done."""
        self._is_over = True
        if self._bars is None:
            self._console.print(f"{self._title}: done  {self._note}", highlight=False)


class ProgressView:
    """Draws stages on a console, one bar each.

    Args:
        console: Where to draw; standard error, so that standard output stays clean for data.
    """

    def __init__(self, console: Console) -> None:
        self.console = console

    @contextmanager
    def stage(self, title: str, total: int, completed: int = 0) -> Iterator[Stage]:
        """A stage of `total` steps, of which some may be done already."""
        if not self.console.is_terminal:
            stage = Stage(self.console, None, title, total, completed)
            yield stage
            stage.finish()
            return
        columns = (
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(compact=True, elapsed_when_finished=True),
            TextColumn("{task.fields[note]}", markup=False),
        )
        with Progress(*columns, console=self.console) as bars:
            stage = Stage(self.console, bars, title, total, completed)
            yield stage
            stage.finish()
