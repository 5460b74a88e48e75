"""The stages of a run as a view shows them: which is where, and how long it took."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from rich.console import Console, ConsoleOptions, RenderResult
from rich.table import Table
from rich.text import Text

from studies import StudyState

_SYMBOLS = {
    StudyState.RUNNING: ("▸", ">", "bold cyan"),
    StudyState.FINISHED: ("✓", "+", "green"),
    StudyState.STOPPED: ("■", "#", "yellow"),
    StudyState.FAILED: ("✗", "x", "bold red"),
}
_PASSED_OVER = ("–", "-", "dim")
_TO_COME = ("·", ".", "dim")


def duration(seconds: float) -> str:
    """Seconds as minutes and seconds, with hours where there are any."""
    minutes, whole = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{whole:02}" if hours else f"{minutes}:{whole:02}"


@dataclass
class _Entry:
    name: str
    state: StudyState | None = None
    began: float | None = None
    seconds: float | None = None


class StageList:
    """Draws stages side by side, in as many rows as the width makes necessary, and at most half of the height.

    A stage before one that has begun, which has not begun itself, was passed over: an earlier run finished it, or it
    was not needed.

    Args:
        stages: Those foreseen, in order; others join where they begin.
        clock: Tells seconds.
    """

    def __init__(self, stages: Sequence[str], clock: Callable[[], float] = time.monotonic) -> None:
        self._entries = [_Entry(name) for name in stages]
        self._clock = clock

    def change(self, stage: str, state: StudyState) -> None:
        """Note where a stage stands now."""
        entry = self._entry(stage)
        if state is StudyState.RUNNING:
            entry.began, entry.seconds = self._clock(), None
        elif entry.began is not None:
            entry.seconds = self._clock() - entry.began
        entry.state = state

    def place(self, stage: str) -> tuple[int, int]:
        """Number of the stage, from 1, and number of stages."""
        return self._entries.index(self._entry(stage)) + 1, len(self._entries)

    def seconds(self, stage: str) -> float | None:
        """Duration of a stage so far; None if it has not begun."""
        entry = self._entry(stage)
        if entry.began is None or entry.seconds is not None:
            return entry.seconds
        return self._clock() - entry.began

    def _entry(self, stage: str) -> _Entry:
        for entry in self._entries:
            if entry.name == stage:
                return entry
        entry = _Entry(stage)
        self._entries.insert(self._n_reached(), entry)
        return entry

    def _n_reached(self) -> int:
        """Number of stages up to the last one that has begun."""
        return max((n for n, entry in enumerate(self._entries, 1) if entry.state is not None), default=0)

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        # Another thread may add stages meanwhile.
        entries, n_reached = list(self._entries), self._n_reached()
        if not entries:
            return
        taken = [self._taken(entry) for entry in entries]
        n_name, n_taken = max(len(entry.name) for entry in entries), max(5, *map(len, taken))
        n_columns = max(1, min(len(entries), (options.max_width + 2) // (n_name + n_taken + 5)))
        n_shown = n_columns * max(1, console.height // 2)
        first = min(max(0, n_reached - n_shown // 2), max(0, len(entries) - n_shown)) // n_columns * n_columns
        table = Table.grid(padding=(0, 2, 0, 0))
        cells = []
        for number in range(first, min(first + n_shown, len(entries))):
            entry = entries[number]
            symbol, ascii_symbol, style = _PASSED_OVER if number < n_reached else _TO_COME
            if entry.state is not None:
                symbol, ascii_symbol, style = _SYMBOLS.get(entry.state, _TO_COME)
            text = f"{entry.name:<{n_name}} {taken[number]:>{n_taken}}"
            symbol = ascii_symbol if options.ascii_only else symbol
            cells.append(Text(f"{symbol} {text}", style=style, no_wrap=True, overflow="ellipsis"))
        for start in range(0, len(cells), n_columns):
            table.add_row(*cells[start : start + n_columns])
        yield table

    def _taken(self, entry: _Entry) -> str:
        seconds = self.seconds(entry.name)
        return "" if seconds is None else duration(seconds)
