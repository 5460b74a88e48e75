"""Memory that control groups, such as those of containers, leave to this process."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

_PROC = Path("/proc/self")
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
    for version, directory, mount in _groups():
        # A limit of a group is one of all groups inside it.
        for group in (directory, *directory.parents):
            limit, used = _number(group / version.limit), _number(group / version.usage)
            if limit is not None and used is not None and limit < _NO_LIMIT:
                yield limit, used - _reclaimable(group / "memory.stat", version)
            if group == mount:
                break


def _groups() -> Iterator[tuple[_Version, Path, Path]]:
    """The innermost groups of this process that can limit memory, each with the mount that it is in."""
    try:
        memberships = [line.split(":", 2) for line in (_PROC / "cgroup").read_text().splitlines()]
        mounts = [line.split(" ") for line in (_PROC / "mountinfo").read_text().splitlines()]
    except OSError:
        return
    paths = {kind: path for _, kinds, path in memberships for kind in kinds.split(",")}
    for fields in mounts:
        # See proc_pid_mountinfo(5): optional fields end with a hyphen, behind which type, source and options stand.
        kind, _, options = fields[fields.index("-") + 1 :]
        version = _SECOND if kind == "cgroup2" else _FIRST
        path = paths.get("" if version is _SECOND else "memory")
        if path is None or (version is _FIRST and not (kind == "cgroup" and "memory" in options.split(","))):
            continue
        root, mount = (_unescaped(field) for field in fields[3:5])
        # In a container the mount may begin at the container's own group, and so may the path.
        inside = Path(path).relative_to(root) if Path(path).is_relative_to(root) else Path(path.lstrip("/"))
        directory = Path(mount) / inside
        yield version, directory if directory.is_dir() else Path(mount), Path(mount)


def _unescaped(text: str) -> str:
    """Text of a mount with its spaces, which are written as octal numbers."""
    return re.sub(r"\\([0-7]{3})", lambda found: chr(int(found[1], 8)), text)


def _number(path: Path) -> int | None:
    """The number that a file holds; None if there is none, as where `max` stands."""
    try:
        return int(path.read_text())
    except (OSError, ValueError):
        return None


def _reclaimable(path: Path, version: _Version) -> int:
    """Memory in use by a group that the system takes back where it is needed."""
    try:
        stated = dict(line.split(" ", 1) for line in path.read_text().splitlines())
    except (OSError, ValueError):
        return 0
    return sum(int(stated.get(name, 0)) for name in version.reclaimable)
