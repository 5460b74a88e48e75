"""Names of all methods that a study can be compared with: those that models alone need, and those of the search."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from ftp_core.baselines.catalogue import baseline, baseline_names

if TYPE_CHECKING:
    from ftp_core.baselines.protocol import Baseline

# Module and class of each: importing them takes torch, which names do not need.
_HOMES = {"puzzle": "puzzle:Puzzle", "evopress": "evopress:EvoPress"}


def method_names() -> tuple[str, ...]:
    """Names of all methods."""
    return (*baseline_names(), *_HOMES)


def method_of(name: str) -> Baseline:
    """The method of a name.

    Raises:
        CoreError: There is none.
    """
    if name not in _HOMES:
        return baseline(name)
    module, _, maker = _HOMES[name].partition(":")
    own: Baseline = getattr(import_module(f"search.comparison.{module}"), maker)()
    return own
