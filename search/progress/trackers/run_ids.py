"""Tracker run of each study, kept beside its report so that a resumed study continues it."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

_FOLDER = "tracking"


def known_run(folder: Path, tracker: str) -> str | None:
    """The identifier of the run that a study has with a tracker; None if there is none.

    Args:
        folder: Folder of the study's report.
        tracker: The tracker's name.
    """
    try:
        return (folder / _FOLDER / tracker).read_text().strip() or None
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
        return None


def keep_run(folder: Path, tracker: str, identifier: str) -> None:
    """Keep the identifier of the run that a study has with a tracker."""
    (folder / _FOLDER).mkdir(parents=True, exist_ok=True)
    (folder / _FOLDER / tracker).write_text(identifier + "\n")


def forget_runs(folder: Path, trackers: Iterable[str]) -> dict[str, str]:
    """Let the next study whose report goes to a folder have runs of its own; what trackers know stays with them.

    Args:
        folder: Folder of the study's report.
        trackers: Names of the trackers.

    Returns:
        The identifiers that are forgotten, by tracker.
    """
    known = {name: run for name in trackers if (run := known_run(folder, name)) is not None}
    for name in known:
        (folder / _FOLDER / name).unlink()
    # Files of others may be there.
    with suppress(OSError):
        (folder / _FOLDER).rmdir()
    return known
