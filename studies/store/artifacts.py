"""A folder beside a database for work that is not finished."""

from __future__ import annotations

import os
from pathlib import Path

from sqlalchemy.engine import URL

from studies.sql.location import database_file

_FOLDER_VARIABLE = "FTP_SEARCH_ARTIFACTS"


def artifact_folder(url: URL) -> Path | None:
    """Folder of unfinished work: `$FTP_SEARCH_ARTIFACTS`, or beside a SQLite file, or `./ftp-artifacts`.

    None for a database in memory.
    """
    named = os.environ.get(_FOLDER_VARIABLE)
    if named:
        return Path(named)
    if url.get_backend_name() != "sqlite":
        return Path("ftp-artifacts").absolute()
    file = database_file(url)
    return None if file is None else file.absolute().with_name(f"{file.name}-artifacts")
