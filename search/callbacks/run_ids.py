"""Which run of a tracker is a study's: kept beside the study's report, so that a resumed study goes on with it."""

from __future__ import annotations

import shutil
from pathlib import Path

_FOLDER = "tracking"


def known_run(folder: Path, tracker: str) -> str | None:
    """The identifier of the run that a study has with a tracker; None if there is none.

    Args:
        folder: Where the study's report goes.
        tracker: The tracker's name.
    """
    try:
        return (folder / _FOLDER / tracker).read_text().strip() or None
    except FileNotFoundError:
        return None


def keep_run(folder: Path, tracker: str, identifier: str) -> None:
    """Keep the identifier of the run that a study has with a tracker."""
    (folder / _FOLDER).mkdir(parents=True, exist_ok=True)
    (folder / _FOLDER / tracker).write_text(identifier + "\n")


def forget_runs(folder: Path) -> None:
    """Let the next study whose report goes to a folder have runs of its own; what trackers know stays with them."""
    shutil.rmtree(folder / _FOLDER, ignore_errors=True)
