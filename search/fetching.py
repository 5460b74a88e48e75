"""Fetches what a study of a service wrote: its report, and the pruned model."""

from __future__ import annotations

import os
import shutil
import tempfile
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from search.client import Client, ServiceError
from search.errors import ConfigError

# The service's words for "not yet" and "not here".
_NO_MODEL = (404, 409)


@dataclass(frozen=True)
class Fetched:
    """What was fetched.

    Attributes:
        files: The files that were written.
        without_model: Why there is no model among them; None if there is one.
    """

    files: tuple[Path, ...]
    without_model: str | None


def fetch_study(client: Client, name: str, folder: Path, say: Callable[[str], None] = lambda what: None) -> Fetched:
    """Write the report of a study into a folder, and its model into `model` below it: all of it, or nothing.

    Args:
        client: The service.
        name: The study.
        folder: A folder that is empty or not there yet.
        say: Called with what is fetched next.

    Raises:
        ConfigError: The folder holds something, or cannot be made.
        ServiceError: There is no such study, it has not written its report, or the service does not answer.
    """
    _check_empty(folder)
    study = client.study(name)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".partial-", dir=folder.parent) as partial:
        fetched, without_model = Path(partial) / "fetched", None
        say("report")
        if not client.download_report(name, fetched):
            raise ServiceError(
                f"Study {name!r} has no report to fetch: it is {study['state']}, and writes its report at its end. "
                f"Wait for it with `ftp-search wait {name}`."
            )
        say("model")
        try:
            archive = client.download_model(name, Path(partial) / "model.zip")
        except ServiceError as error:
            if error.status not in _NO_MODEL:
                raise
            without_model = str(error)
        else:
            _unpack(archive, fetched / "model")
        written = sorted(path.relative_to(fetched) for path in fetched.rglob("*") if path.is_file())
        # Somebody may have written there meanwhile: what is not empty, this does not replace.
        os.replace(fetched, folder)
    return Fetched(tuple(folder / path for path in written), without_model)


def _check_empty(folder: Path) -> None:
    if folder.is_dir() and not any(folder.iterdir()):
        return
    if os.path.lexists(folder):
        raise ConfigError(f"DIR is {str(folder)!r}, where there is something already: expected a new or empty folder.")


def _unpack(archive: Path, folder: Path) -> None:
    """Write the files of an archive into a folder, whatever folders the archive has them in."""
    folder.mkdir()
    with zipfile.ZipFile(archive) as packed:
        for member in packed.infolist():
            file = Path(member.filename).name
            if not member.is_dir() and file not in ("", ".", ".."):
                with packed.open(member) as content, (folder / file).open("xb") as target:
                    shutil.copyfileobj(content, target)
