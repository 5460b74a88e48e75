"""Names of all methods that a study can be compared with: those that models alone need, and those of the search."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ftp_core.baselines.catalogue import baseline, baseline_names

if TYPE_CHECKING:
    from ftp_core.baselines.protocol import Baseline

_PUZZLE = "puzzle"


def method_names() -> tuple[str, ...]:
    """Names of all methods."""
    return (*baseline_names(), _PUZZLE)


def method_of(name: str) -> Baseline:
    """The method of a name.

    Raises:
        CoreError: There is none.
    """
    if name != _PUZZLE:
        return baseline(name)
    # Its imports take torch, which names do not need.
    from search.comparison.puzzle import Puzzle

    return Puzzle()
