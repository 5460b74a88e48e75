"""Control groups that this process is in, such as those of containers, which limit memory and CPU time."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

_PROC = Path("/proc/self")


def control_groups(controller: Literal["memory", "cpu"]) -> Iterator[tuple[bool, Path]]:
    """Directories of the groups that can limit this process, and those around them, whose limits hold for it, too.

    Args:
        controller: Name of the limited resource.

    Yields:
        Whether the group is one of version 2, and its directory.
    """
    for is_second, directory, mount in _innermost(controller):
        for group in (directory, *directory.parents):
            yield is_second, group
            if group == mount:
                break


def _innermost(controller: str) -> Iterator[tuple[bool, Path, Path]]:
    """The innermost groups of this process, each with the mount that it is in."""
    try:
        memberships = [line.split(":", 2) for line in (_PROC / "cgroup").read_text().splitlines()]
        mounts = [line.split(" ") for line in (_PROC / "mountinfo").read_text().splitlines()]
    except OSError:
        return
    paths = {kind: path for _, kinds, path in memberships for kind in kinds.split(",")}
    for fields in mounts:
        # See proc_pid_mountinfo(5): optional fields end with a hyphen, behind which type, source and options stand.
        kind, _, options = fields[fields.index("-") + 1 :]
        is_second = kind == "cgroup2"
        path = paths.get("" if is_second else controller)
        if path is None or not (is_second or (kind == "cgroup" and controller in options.split(","))):
            continue
        root, mount = (_unescaped(field) for field in fields[3:5])
        # In a container the mount may begin at the container's own group, and so may the path.
        inside = Path(path).relative_to(root) if Path(path).is_relative_to(root) else Path(path.lstrip("/"))
        directory = Path(mount) / inside
        yield is_second, directory if directory.is_dir() else Path(mount), Path(mount)


def _unescaped(text: str) -> str:
    """Text of a mount with its spaces, which are written as octal numbers."""
    return re.sub(r"\\([0-7]{3})", lambda found: chr(int(found[1], 8)), text)


def words(path: Path) -> list[str]:
    """Words of a file of a group; none where there is no such file."""
    try:
        return path.read_text().split()
    except (OSError, ValueError):
        return []


def number(text: str | None) -> int | None:
    """The number that a text is; None if it is none, as `max` is."""
    try:
        return None if text is None else int(text)
    except ValueError:
        return None
