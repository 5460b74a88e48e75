"""Names of all methods that a study can be compared with: those that models alone need, and those of the search."""

from __future__ import annotations

from collections.abc import Callable

from ftp_core.baselines.catalogue import baseline, baseline_names
from ftp_core.baselines.protocol import Baseline
from search.comparison.evopress import EvoPress
from search.comparison.puzzle import Puzzle

_OWN: dict[str, Callable[[], Baseline]] = {Puzzle.name: Puzzle, EvoPress.name: EvoPress}


def method_names() -> tuple[str, ...]:
    """Names of all methods."""
    return (*baseline_names(), *_OWN)


def method_of(name: str) -> Baseline:
    """The method of a name.

    Raises:
        CoreError: There is none.
    """
    return _OWN[name]() if name in _OWN else baseline(name)
