"""Opens a database of studies: connections, transactions, and patience while it does not answer."""

from __future__ import annotations

import json
import logging
import random
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from functools import cached_property
from typing import Any, TypeVar

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from studies.errors import StorageError
from studies.sql import schema
from studies.sql.location import APPLICATION_ID, check_file, database_file, is_read_only, parse, read_only_uri

T = TypeVar("T")

_BUSY_TIMEOUT_MS = 30_000
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.1, 10.0
# A server that is restarted, also on another machine, is back by then.
DEFAULT_PATIENCE_S = 600.0

_log = logging.getLogger(__name__)


class Database:
    """A SQLite file or a PostgreSQL database that holds studies.

    What runs in it is a function of a connection: one transaction, which is tried again as a whole if the database
    goes away meanwhile. A SQLite file that this process may not write to is opened to be read.

    Args:
        url: `sqlite:///PATH` or `postgresql+psycopg://USER:PASSWORD@HOST/DATABASE`.
        create: Whether a SQLite file that does not exist, or is empty, becomes a database; one that can only be read is
            refused then.
        patience_s: Longest absence of a database that answered before, in seconds.
        any_revision: Leave the schema as it is found, whichever it is: for migrations.

    Raises:
        StorageError: The URL is of no supported kind, the database cannot be opened, or its schema is another one.
    """

    def __init__(
        self,
        url: str,
        create: bool = True,
        patience_s: float = DEFAULT_PATIENCE_S,
        any_revision: bool = False,
    ) -> None:
        self._url = parse(url)
        self._patience_s = patience_s
        file = database_file(self._url)
        fresh = file is not None and not check_file(file, create)
        if create and self.is_read_only:
            raise self._refused_write()
        self._connect()
        try:
            if any_revision or self.is_read_only:
                revision = self._transact(schema_revision, self._reading)
                if not any_revision and revision != schema.HEAD:
                    raise StorageError(self._other_revision(revision or "0000"))
            else:
                self._transact(self._prepare, self._writing)
        except BaseException as error:
            self._engine.dispose()
            # Another process may have filled the file meanwhile: only what holds nothing is taken away.
            if file is not None and fresh and file.is_file() and file.stat().st_size == 0:
                file.unlink()
            if isinstance(error, _AwayError):
                # It never answered: waiting is for one that did.
                raise StorageError(f"Cannot open the database {self}: {error}. Is its server running?") from error
            raise

    def _connect(self) -> None:
        # How many hurries began, and go on: who waits when one begins is not to miss it, however short it is.
        self._hurry, self._hurries, self._hurrying = threading.Condition(), 0, 0
        sqlite = self._url.get_backend_name() == "sqlite"
        memory = sqlite and database_file(self._url) is None
        # All threads share the one connection that a database in memory lives in.
        self._turn: Any = threading.RLock() if memory else nullcontext()
        options: dict[str, Any] = {"poolclass": sa.StaticPool} if memory else {}
        if memory:
            options["connect_args"] = {"check_same_thread": False}
        file = database_file(self._url)
        if file is not None and self.is_read_only:
            # Opened anew each time: whoever may write to it may have begun to do so.
            options["poolclass"] = sa.NullPool
            options["creator"] = lambda: sqlite3.connect(read_only_uri(file), uri=True)
        try:
            self._engine = sa.create_engine(self._url, json_serializer=_strict_json, **options)
        except (ImportError, sa.exc.ArgumentError) as error:
            raise StorageError(f"Cannot open {self}: {error}. Install the driver of that database.") from error
        if sqlite:
            if not self.is_read_only:
                sa.event.listen(self._engine, "connect", _configure_sqlite)
            sa.event.listen(self._engine, "begin", _begin_sqlite)
        self._writing = self._engine.execution_options(ftp_write=True)
        # PostgreSQL's statements see what is committed when they begin, in a transaction or not: reading goes without,
        # which spares two round trips.
        self._reading = self._engine if sqlite else self._engine.execution_options(isolation_level="AUTOCOMMIT")

    def __repr__(self) -> str:
        return self._url.render_as_string(hide_password=True)

    def __getstate__(self) -> dict[str, Any]:
        return {"url": self._url, "patience_s": self._patience_s}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self._url, self._patience_s = state["url"], state["patience_s"]
        self._connect()

    @property
    def url(self) -> sa.URL:
        """URL with the password."""
        return self._url

    @property
    def dialect(self) -> str:
        """`sqlite` or `postgresql`."""
        return self._engine.dialect.name

    @cached_property
    def is_read_only(self) -> bool:
        """True if this process may read the SQLite file, and not write to it; False for other databases."""
        file = database_file(self._url)
        return file is not None and is_read_only(file)

    def close(self) -> None:
        """Gives connections back."""
        self._engine.dispose()

    def read(self, work: Callable[[Connection], T]) -> T:
        """Run `work`, which only reads.

        Raises:
            StorageError: The database refused, or stayed away for longer than `patience_s`.
        """
        return self._patiently(work, self._reading)

    def stream(self, work: Callable[[Connection], T]) -> T:
        """Run `work`, which reads many rows piece by piece: PostgreSQL's cursors need a transaction; see `read`."""
        return self._patiently(work, self._engine)

    def write(self, work: Callable[[Connection], T]) -> T:
        """Run `work` in a transaction that holds SQLite's write lock from its start; all of it happens, or nothing.

        Raises:
            StorageError: See `read`.
            sqlalchemy.exc.IntegrityError: What was written contradicts what is there.
        """
        self.check_writable()
        return self._patiently(work, self._writing)

    def write_once(self, work: Callable[[Connection], T]) -> T:
        """Run `work`, whose statements may happen one by one, on PostgreSQL without a transaction; see `write`."""
        self.check_writable()
        return self._patiently(work, self._writing if self.dialect == "sqlite" else self._reading)

    def check_writable(self) -> None:
        """Raise `StorageError` if this process may read the database, and not write to it, as far as its file says."""
        if self.is_read_only:
            raise self._refused_write()

    def _refused_write(self) -> StorageError:
        return StorageError(
            f"The database {self} can be read here, but not written to: its file or its folder is read-only. It can be "
            "listed, shown, reported elsewhere and exported; for anything else get the right to write, or copy it."
        )

    @contextmanager
    def hurried(self) -> Iterator[None]:
        """Wait for nothing inside: a database that is away is given up at the first try, in all threads.

        For what a process writes as it leaves. Who waits already gives up as well.
        """
        with self._hurry:
            self._hurries += 1
            self._hurrying += 1
            self._hurry.notify_all()
        try:
            yield
        finally:
            with self._hurry:
                self._hurrying -= 1

    def _patiently(self, work: Callable[[Connection], T], engine: sa.Engine) -> T:
        until = None
        pause = _FIRST_PAUSE_S
        hurries = self._hurries

        def is_hurried() -> bool:
            return self._hurrying > 0 or self._hurries > hurries

        while True:
            try:
                return self._transact(work, engine)
            except _AwayError as away:
                now = time.monotonic()
                until = now + self._patience_s if until is None else until
                if is_hurried() or now + pause > until:
                    waited = now - until + self._patience_s
                    raise StorageError(
                        f"The database {self} has not answered for {waited:.0f} s: {away}. Everything that "
                        "it confirmed is kept; start it again, then resume."
                    ) from away.__cause__
                _log.warning("The database %s does not answer (%s): trying again in %.1f s.", self, away, pause)
                # Not all at the same moment when the server is back.
                with self._hurry:
                    self._hurry.wait_for(is_hurried, pause * random.uniform(0.8, 1.2))
                pause = min(2 * pause, _LONGEST_PAUSE_S)

    def _transact(self, work: Callable[[Connection], T], engine: sa.Engine) -> T:
        """One try; whatever the database complains about becomes one line that names it."""
        try:
            with self._turn, engine.begin() as connection:
                return work(connection)
        except sa.exc.IntegrityError:
            raise
        except (sa.exc.DBAPIError, sqlite3.Error) as error:
            orig = getattr(error, "orig", error)
            reason = str(orig).strip().splitlines()[0] if str(orig).strip() else type(orig).__name__
            if isinstance(error, sa.exc.DBAPIError) and _is_away(error):
                raise _AwayError(reason) from error
            raise StorageError(
                f"The database {self} refused: {reason}. Check that it exists, is writable, and is not locked, and "
                "that its disk has space; what it confirmed is kept."
            ) from error
        except sa.exc.StatementError as error:
            # Raised before the database saw it: a value that no column takes, such as NaN in JSON.
            raise StorageError(f"This cannot be stored in {self}: {error.orig}.") from error

    def _prepare(self, connection: Connection) -> None:
        """Makes the tables of an empty database, or checks those that are there."""
        if self.dialect == "postgresql":
            # Else two processes that begin at once would both find no tables, and both make them.
            connection.execute(sa.select(sa.func.pg_advisory_xact_lock(APPLICATION_ID)))
        revision = schema_revision(connection)
        if revision is None:
            schema.metadata.create_all(connection)
            connection.execute(sa.insert(schema.alembic_version).values(version_num=schema.HEAD))
        elif revision != schema.HEAD:
            raise StorageError(self._other_revision(revision))

    def _other_revision(self, revision: str) -> str:
        if revision < schema.HEAD and self.is_read_only:
            return (
                f"The database {self} has schema revision {revision}, this program reads {schema.HEAD}, and it can "
                "only be read here: copy it to where it can be written to, and bring the copy up to date with "
                "`ftp-search db upgrade`."
            )
        if revision < schema.HEAD:
            return (
                f"The database {self} has schema revision {revision}, and this program reads {schema.HEAD}: bring it "
                f"up to date with `ftp-search db upgrade --storage {self}`."
            )
        return (
            f"The database {self} has schema revision {revision}, which a newer program wrote, and this one reads "
            f"{schema.HEAD}: use that program; the database is left as it is."
        )


class _AwayError(Exception):
    """The database does not answer, for now."""


def _is_away(error: sa.exc.DBAPIError) -> bool:
    """True if the connection is gone, rather than the statement wrong."""
    if error.connection_invalidated:
        return True
    # psycopg's errors of a server that starts up, shuts down, or cannot be reached carry no state, or one of class 57P
    # or 08.
    state = getattr(error.orig, "sqlstate", None)
    if isinstance(error, sa.exc.OperationalError) and type(error.orig).__module__.startswith("psycopg"):
        return state is None or state.startswith(("08", "57P"))
    return False


def schema_revision(connection: Connection) -> str | None:
    """Revision of the schema of a database; None if it holds no tables of ours."""
    if not sa.inspect(connection).has_table(schema.alembic_version.name):
        return None
    revision: str | None = connection.scalar(sa.select(schema.alembic_version.c.version_num))
    return revision


def _configure_sqlite(connection: Any, _: Any) -> None:
    # Transactions are begun by `_begin_sqlite`, not by the driver in front of some statements.
    connection.isolation_level = None
    cursor = connection.cursor()
    cursor.execute(f"PRAGMA busy_timeout = {_BUSY_TIMEOUT_MS}")
    cursor.execute("PRAGMA foreign_keys = ON")
    # Before the log is on, so that the file's own header says at once whose it is.
    if cursor.execute("PRAGMA application_id").fetchone()[0] != APPLICATION_ID:
        cursor.execute(f"PRAGMA application_id = {APPLICATION_ID}")
    _turn_log_on(cursor)
    # The log is not forced to the disk at every commit. What was committed survives whatever happens to processes; a
    # power cut may take the last commits as a whole, never a part of one (https://www.sqlite.org/pragma.html).
    cursor.execute("PRAGMA synchronous = NORMAL")
    cursor.close()


def _turn_log_on(cursor: Any) -> None:
    """Switches a file to its write-ahead log, however many processes do so at once.

    SQLite waits for a lock, except where two that wait could wait for each other, as here, where both read the file
    before either may write it: it says at once that the file is locked (https://www.sqlite.org/c3ref/busy_handler.html).
    """
    deadline = time.monotonic() + _BUSY_TIMEOUT_MS / 1000
    while True:
        try:
            cursor.execute("PRAGMA journal_mode = WAL")
            return
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode & 0xFF != sqlite3.SQLITE_BUSY or time.monotonic() > deadline:
                raise
            time.sleep(random.uniform(0.001, 0.02))


def _begin_sqlite(connection: Connection) -> None:
    # A transaction that reads first and writes later could find that another one has written meanwhile, and fail.
    write = connection.get_execution_options().get("ftp_write", False)
    # Straight to the driver, since this is part of every transaction.
    driver = connection.connection.driver_connection
    assert isinstance(driver, sqlite3.Connection)
    driver.execute("BEGIN IMMEDIATE" if write else "BEGIN")


def _strict_json(value: Any) -> str:
    # NaN and infinity are not JSON: other programs, and PostgreSQL, refuse them.
    return json.dumps(value, allow_nan=False)
