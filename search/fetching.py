"""Fetches the report and the pruned model of a service's study."""

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

# Status of a model that is not there yet, or not on the service's machine.
_NO_MODEL = (404, 409)


@dataclass(frozen=True)
class Fetched:
    """Files of a study.

    Attributes:
        files: Files that were written.
        without_model: Reason why no model is among them; None if one is.
    """

    files: tuple[Path, ...]
    without_model: str | None


def fetch_study(client: Client, name: str, folder: Path, say: Callable[[str], None] = lambda what: None) -> Fetched:
    """Writes the report of a study into a folder and its model into `model` below it, all or nothing.

    Args:
        client: Connection to the service.
        name: Name of the study.
        folder: Empty or missing folder.
        say: Function that is called with what is fetched next.

    Raises:
        ConfigError: The folder is not empty, or cannot be created.
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
        # Fails if files were written there meanwhile.
        os.replace(fetched, folder)
    return Fetched(tuple(folder / path for path in written), without_model)


def _check_empty(folder: Path) -> None:
    if folder.is_dir() and not any(folder.iterdir()):
        return
    if os.path.lexists(folder):
        raise ConfigError(f"DIR is {str(folder)!r}, where there is something already: expected a new or empty folder.")


def _unpack(archive: Path, folder: Path) -> None:
    """Writes the files of an archive into a folder, without the folders of the archive."""
    folder.mkdir()
    with zipfile.ZipFile(archive) as packed:
        for member in packed.infolist():
            file = Path(member.filename).name
            if not member.is_dir() and file not in ("", ".", ".."):
                with packed.open(member) as content, (folder / file).open("xb") as target:
                    shutil.copyfileobj(content, target)
