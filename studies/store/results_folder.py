"""Marks a folder with the study whose results it holds, so that no study writes over those of another one."""

from __future__ import annotations

import json
import os
import secrets
from collections.abc import Collection
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path

from studies.errors import ForeignResultsError
from studies.records.records import StudyRecord
from studies.records.study_facts import Origin

# The files of a report; the last one says, as the mark does, which study it is of.
REPORT_FILES = ("report.html", "report.md", "rows.csv", "front.csv", "speeds.csv", "report.json")
COMPARISON_FILES = ("comparison.html", "comparison.md", "comparison.csv", "comparison.json")
# What says, beside a pruned model, which study it is of.
MODEL_FILE = "schedule.json"
_MARK = "study.json"


def own_origins(study: StudyRecord) -> set[Origin]:
    """The origins whose files a study may write over: itself, and what it was begun to replace."""
    return {study.origin, *study.facts.replaces}


def results_in(folder: Path) -> Origin | None:
    """The study whose results a folder holds; None if it holds those of none that is known."""
    return _stated(folder / _MARK) or _stated(folder / REPORT_FILES[-1])


def exported_in(directory: Path) -> Origin | None:
    """The study whose pruned model a directory holds; None if none is known to have written one there."""
    return _stated(directory / MODEL_FILE, "study", "study_created_at")


def _stated(path: Path, name: str = "name", created_at: str = "created_at") -> Origin | None:
    """The origin that a JSON file states under these keys; None if it states none."""
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        return Origin(str(values[name]), values[created_at])
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def check_results(folder: Path, allowed: set[Origin], advice: str) -> None:
    """Check that results can be written to a folder without replacing what something else wrote.

    Args:
        folder: The folder; need not exist.
        allowed: Origins whose files may be replaced.
        advice: Advice for the error.

    Raises:
        ForeignResultsError: It holds the results of another study, or files of a report that no study is known to
            have written.
    """
    found = results_in(folder)
    if found in allowed:
        return
    if found is not None:
        raise ForeignResultsError(f"{folder} holds the results of another study, {found}: {advice}.")
    taken = [name for name in (_MARK, *REPORT_FILES) if os.path.lexists(folder / name)]
    if taken:
        raise ForeignResultsError(
            f"{folder} holds a file {taken[0]} that no study is known to have written, and which would be replaced: "
            f"move it, or {advice}."
        )


def claim_results(folder: Path, study: StudyRecord) -> None:
    """Mark a folder as that of a study's results, before they are written; it is made if missing.

    Raises:
        ForeignResultsError: See `check_results`.
    """
    allowed = own_origins(study)
    folder.mkdir(parents=True, exist_ok=True)
    check_results(folder, allowed, "choose another folder with --out")
    mark, own = folder / _MARK, study.origin
    if _stated(mark) == own:
        return
    partial = folder / f".{_MARK}.{secrets.token_hex(4)}.partial"
    try:
        partial.write_text(json.dumps(asdict(own)) + "\n", encoding="utf-8")
        if _stated(mark) is None:
            # Of two studies that find the folder free at the same moment, one gets it.
            with suppress(FileExistsError):
                os.link(partial, mark)
            check_results(folder, allowed, "choose another folder with --out")
        if _stated(mark) != own:
            os.replace(partial, mark)
    finally:
        partial.unlink(missing_ok=True)


def check_comparison(folder: Path, own: Collection[Origin], replaced: Collection[str], advice: str) -> None:
    """Check that a comparison of studies can be written to a folder without replacing one of others.

    Args:
        folder: The folder; need not exist.
        own: The studies to be compared, as far as there are any; an earlier comparison of some of them is replaced.
        replaced: Names of studies; a comparison of some of them may be replaced, whichever studies these were.
        advice: Advice for the error.

    Raises:
        ForeignResultsError: It holds a comparison of other studies.
    """
    if not any(os.path.lexists(folder / name) for name in COMPARISON_FILES):
        return
    try:
        studies = json.loads((folder / COMPARISON_FILES[-1]).read_text(encoding="utf-8"))["studies"]
        found = {Origin(str(one["name"]), one["created_at"]) for one in studies}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        found = set()
    if any(one in own or one.name in replaced for one in found):
        return
    shown = ", ".join(sorted(str(one) for one in found)[:3]) or "something else"
    raise ForeignResultsError(f"{folder} holds a comparison of {shown}: {advice}.")
