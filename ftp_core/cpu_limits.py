"""Cores that affinity and control groups, such as those of containers, leave to this process."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from pathlib import Path

from ftp_core.control_groups import control_groups, number, words


def n_cores() -> int:
    """Cores that this process may use at once, as far as the system says: at least one.

    A quota of CPU time counts as the cores that can spend it, rounded up.
    """
    affinity = getattr(os, "sched_getaffinity", None)
    cores = (os.cpu_count() or 1) if affinity is None else len(affinity(0))
    return max(1, min([cores, *map(math.ceil, _quotas())]))


def _quotas() -> Iterator[float]:
    """CPU time per time, for each group of this process that has a limit."""
    for is_second, group in control_groups("cpu"):
        quota, period = _second(group) if is_second else _first(group)
        # Without a limit there is no number in the second version, and -1 in the first.
        if quota is not None and period is not None and quota > 0 and period > 0:
            yield quota / period


def _second(group: Path) -> tuple[int | None, int | None]:
    """Quota and period of a group of version 2, in microseconds."""
    said = words(group / "cpu.max")
    return (number(said[0]), number(said[1])) if len(said) == 2 else (None, None)


def _first(group: Path) -> tuple[int | None, int | None]:
    """Quota and period of a group of version 1, in microseconds."""
    quota, period = (words(group / f"cpu.cfs_{name}_us") for name in ("quota", "period"))
    return number(next(iter(quota), None)), number(next(iter(period), None))
