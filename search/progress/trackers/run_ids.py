"""Tracker run of each study, kept beside its report so that a resumed study continues it."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from search.progress.trackers import TRACKERS

_FOLDER = "tracking"


def known_run(folder: Path, tracker: str) -> str | None:
    """The identifier of the run that the study whose report is in a folder has with a tracker; None for none."""
    try:
        return (folder / _FOLDER / tracker).read_text().strip() or None
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
        return None


def keep_run(folder: Path, tracker: str, identifier: str) -> None:
    """Keeps the identifier of the run that a study has with a tracker."""
    (folder / _FOLDER).mkdir(parents=True, exist_ok=True)
    (folder / _FOLDER / tracker).write_text(identifier + "\n")


def forget_runs(folder: Path) -> dict[str, str]:
    """Lets the next study whose report goes to a folder have runs of its own; what trackers know stays with them.

    Returns:
        What `restore_runs` takes: the forgotten identifiers, by tracker.
    """
    known = {name: run for name in TRACKERS if (run := known_run(folder, name)) is not None}
    for name in known:
        (folder / _FOLDER / name).unlink()
    # Files of others may be there.
    with suppress(OSError):
        (folder / _FOLDER).rmdir()
    return known


def restore_runs(folder: Path, runs: Mapping[str, str]) -> None:
    """Takes back `forget_runs`: the study whose report is in a folder keeps its runs, and no others."""
    forget_runs(folder)
    for tracker, run in runs.items():
        keep_run(folder, tracker, run)
