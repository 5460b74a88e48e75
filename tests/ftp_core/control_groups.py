"""Made-up files that say which control groups a process is in."""

from __future__ import annotations

from pathlib import Path

import pytest

from ftp_core import control_groups


def made_up_proc(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder in place of what the system says of this process."""
    (folder / "proc").mkdir()
    monkeypatch.setattr(control_groups, "_PROC", folder / "proc")
    return folder / "proc"


def mounted(proc: Path, cgroup: str, *mounts: tuple[str, Path, str]) -> None:
    """Writes the groups of this process, and mounts: each its root, its place, and its type with its options."""
    (proc / "cgroup").write_text(cgroup)
    lines = ["22 27 0:21 / /proc rw,relatime - proc proc rw"]
    for root, place, kind in mounts:
        escaped = str(place).replace(" ", "\\040")
        lines.append(f"40 31 0:29 {root} {escaped} rw,nosuid shared:9 - {kind.split()[0]} cgroup {kind.split()[1]}")
    (proc / "mountinfo").write_text("\n".join(lines) + "\n")
