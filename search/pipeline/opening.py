"""Opens the database of a command that begins studies."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from studies import StudyStore
from studies.sql.location import database_file


@contextmanager
def opened(storage: str) -> Iterator[StudyStore]:
    """The studies of a database; if one is made for them and none comes to be, it is removed again.

    Raises:
        StorageError: The URL is of no supported kind, or the database cannot be opened.
    """
    database = database_file(storage)
    fresh = database is not None and not database.exists()
    store = StudyStore(storage)
    try:
        yield store
    finally:
        # Another process may have begun a study in it meanwhile.
        unused = fresh and not store.studies.summaries()
        store.close()
        if unused and database is not None:
            for path in (database, Path(f"{database}-wal"), Path(f"{database}-shm")):
                path.unlink(missing_ok=True)
