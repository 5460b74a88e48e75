"""Memory that control groups, such as those of containers, leave to this process."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from ftp_core.control_groups import control_groups, number, words

# The first version writes the largest number of pages where there is no limit.
_NO_LIMIT = 2**60


@dataclass(frozen=True)
class _Version:
    """Names of the files of a version of cgroups, and of what can be taken back among the memory in use."""

    limit: str
    usage: str
    reclaimable: tuple[str, ...]


# Pages of files are read again when they are needed; /proc/meminfo counts them as available, too.
_FIRST = _Version("memory.limit_in_bytes", "memory.usage_in_bytes", ("total_inactive_file", "total_active_file"))
_SECOND = _Version("memory.max", "memory.current", ("inactive_file", "active_file", "slab_reclaimable"))


def limit_bytes() -> int | None:
    """Most memory that the control groups of this process may have; None without a limit."""
    return min((limit for limit, _ in _limits()), default=None)


def bytes_within_limits() -> int | None:
    """Memory that the control groups of this process can still have; None without a limit."""
    return min((max(0, limit - used) for limit, used in _limits()), default=None)


def _limits() -> Iterator[tuple[int, int]]:
    """Limit and memory in use of each group that this process is in and that has a limit."""
    for is_second, group in control_groups("memory"):
        version = _SECOND if is_second else _FIRST
        limit, used = _number(group / version.limit), _number(group / version.usage)
        if limit is not None and used is not None and limit < _NO_LIMIT:
            yield limit, used - _reclaimable(group / "memory.stat", version)


def _number(path: Path) -> int | None:
    """The number that a file holds; None if there is none, as where `max` stands."""
    return number(next(iter(words(path)), None))


def _reclaimable(path: Path, version: _Version) -> int:
    """Memory in use by a group that the system takes back where it is needed."""
    try:
        stated = dict(line.split(" ", 1) for line in path.read_text().splitlines())
    except (OSError, ValueError):
        return 0
    return sum(int(stated.get(name, 0)) for name in version.reclaimable)
