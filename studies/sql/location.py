"""Finds the database that a URL names."""

from __future__ import annotations

import os
import re
import sqlite3
from contextlib import closing
from pathlib import Path
from urllib.parse import quote

from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError

from studies.errors import StorageError

# "FTPS" in the header of a SQLite file says whose it is: https://www.sqlite.org/pragma.html#pragma_application_id
APPLICATION_ID = int.from_bytes(b"FTPS", "big")

_EXPECTED = "write sqlite:///PATH or postgresql+psycopg://USER:PASSWORD@HOST/DATABASE"
_DRIVERS = {"sqlite": "pysqlite", "postgresql": "psycopg"}
# Everything between the scheme and the last @, because a password may hold any sign.
_CREDENTIALS = re.compile(r"(?<=://).*@")


def parse(url: str) -> URL:
    """Read the URL of a database.

    Raises:
        StorageError: It is none, or one of a kind that is not supported.
    """
    try:
        parsed = make_url(url)
    except (ArgumentError, ValueError) as error:  # ValueError: a port that is no number
        shown = _CREDENTIALS.sub("***@", url)
        raise StorageError(f"{shown!r} is not the URL of a database: {_EXPECTED}.") from error
    backend = parsed.get_backend_name()
    if backend not in _DRIVERS:
        raise StorageError(f"Databases of kind {backend!r} are not supported: {_EXPECTED}.")
    if parsed.drivername == "postgresql":
        # SQLAlchemy's own choice for a bare scheme is another driver than the one that comes with this program.
        parsed = parsed.set(drivername="postgresql+psycopg")
    if "+" in parsed.drivername and parsed.drivername != f"{backend}+{_DRIVERS[backend]}":
        raise StorageError(f"The driver of {parsed.drivername!r} is not supported: {_EXPECTED}.")
    if backend == "sqlite" and (parsed.query or str(parsed.database or "").startswith("file:")):
        raise StorageError(f"{str(parsed)!r}: a SQLite database is named by its path alone; write sqlite:///PATH.")
    return parsed


def database_file(url: str | URL) -> Path | None:
    """The file of a SQLite database; None for other databases, and for one in memory.

    Raises:
        StorageError: See `parse`.
    """
    parsed = parse(url) if isinstance(url, str) else url
    if parsed.get_backend_name() != "sqlite" or parsed.database in (None, "", ":memory:"):
        return None
    return Path(str(parsed.database))


def is_read_only(file: Path) -> bool:
    """True if a SQLite file is there and cannot be written to by this process.

    Its folder counts, too: SQLite writes its log beside the file.
    """
    return file.exists() and not (_may(file, os.W_OK) and _may(file.parent, os.W_OK | os.X_OK))


def _may(path: Path, mode: int) -> bool:
    # Of the user whose rights count where files are opened.
    return os.access(path, mode, effective_ids=os.access in os.supports_effective_ids)


def read_only_uri(file: Path) -> str:
    """URI under which SQLite opens a file that is only read (https://www.sqlite.org/uri.html).

    Without a log beside it nobody writes to the file, and it needs no locks. Their files would be this user's, and in
    the way of those who may write.

    Raises:
        StorageError: There is a log that cannot be read without making a file beside it.
    """
    log, index = (Path(f"{file}-{ending}") for ending in ("wal", "shm"))
    mode = "mode=ro"
    if not (log.exists() and log.stat().st_size > 0):
        mode += "&immutable=1"
    elif not index.exists():
        raise StorageError(
            f"The database {file} has a log, {log.name}, that is read only where files are made beside it: copy both "
            "to a folder of your own."
        )
    return f"file:{quote(str(file.absolute()))}?{mode}"


def check_file(file: Path, create: bool) -> bool:
    """Look whether a SQLite file may be opened, before it is opened to be used.

    SQLite itself would take an empty file for a database, and another program's for ours.

    Args:
        file: Its path.
        create: Whether it may be missing or empty.

    Returns:
        Whether it is there, with content.

    Raises:
        StorageError: It is not ours, or is missing.
    """
    if not file.parent.is_dir():
        raise StorageError(f"Cannot open the database {file}: its folder {file.parent} does not exist; make it first.")
    try:
        has_content = file.exists() and (not file.is_file() or file.stat().st_size > 0)
        owner = _application_id(file) if has_content else None
    except sqlite3.OperationalError as error:
        raise StorageError(f"Cannot read the database {file}: {error}.") from error
    except OSError as error:
        raise StorageError(f"Cannot read the database {file}: {error.strerror or error}.") from error
    if not has_content:
        if create:
            return False
        raise StorageError(f"There is no database {file}: run a study first, or name another database with --storage.")
    if owner is None:
        raise StorageError(f"{file} is not a database: name a database with --storage; the file is left as it is.")
    if owner != APPLICATION_ID:
        raise StorageError(
            f"The database {file} belongs to another program: name a database of studies, or one that does not "
            "exist yet, with --storage."
        )
    return True


def _application_id(file: Path) -> int | None:
    """The id in the header of a SQLite file, of the program that it belongs to; None if the file is no database.

    SQLite reads it, without a lock or a log. Were the file opened and closed here, all locks would be gone that this
    process' connections hold on it (https://www.sqlite.org/howtocorrupt.html, section 2.2): the next other process that
    is done with the database would take its log away, and what these connections commit from then on would be lost.
    """
    with closing(sqlite3.connect(f"file:{quote(str(file.absolute()))}?mode=ro&immutable=1", uri=True)) as connection:
        try:
            return int(connection.execute("PRAGMA application_id").fetchone()[0])
        except sqlite3.OperationalError:
            raise
        except sqlite3.DatabaseError:
            return None
