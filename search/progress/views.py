"""Makes the progress views of commands."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich.console import Console

if TYPE_CHECKING:
    from search.progress.observer import RunObserver
    from search.progress.progress_view import ProgressView


def make_view(quiet: bool, track: str) -> ProgressView:
    """A view on standard error, since standard output is for results.

    Args:
        quiet: True to draw nothing.
        track: Names of trackers, separated by commas; empty for none.

    Raises:
        SearchError: A tracker is unknown, or not installed.
    """
    from search.progress.progress_view import ProgressView

    observers: Sequence[RunObserver] = ()
    if track:
        from search.progress.trackers import make_observers

        observers = make_observers(track)
    return ProgressView(Console(stderr=True, markup=False), quiet=quiet, observers=observers)
