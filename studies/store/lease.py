"""Leases of studies: one process at a time holds the lease of a study, and shows that it lives."""

from __future__ import annotations

import json
import logging
import os
import platform
import threading
import uuid
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa
from optuna.trial import TrialState
from sqlalchemy.engine import Connection

from studies.errors import LeaseLostError, StorageError, StudiesError, StudyBusyError, StudyNotFoundError
from studies.optuna_storage.attributes import begun_by_search
from studies.records.records import StudyState
from studies.sql import schema
from studies.sql.database import Database
from studies.sql.rows import unfinished_rows

RENEW_EVERY_S = 5.0
DEAD_AFTER_S = 30.0

_log = logging.getLogger(__name__)

_lease = schema.lease.c


@dataclass(frozen=True)
class Holder:
    """Process that holds a lease."""

    owner: str  # identifier drawn anew for each lease
    host: str  # the machine, with the process namespace in which `pid` means something
    pid: int  # the process
    age_s: float  # seconds since it was acquired
    silent_s: float  # seconds since it was renewed

    @property
    def alive(self) -> bool:
        """True if it has shown itself lately, and has not died on this machine."""
        if self.silent_s > DEAD_AFTER_S:
            return False
        return self.host != this_host() or _process_exists(self.pid)

    def __str__(self) -> str:
        host = self.host.split("/")[0]
        return f"process {self.pid} on {host}, since {self.age_s:.0f} s, last seen {self.silent_s:.0f} s ago"


def this_host() -> str:
    """This machine; containers of one machine count as several, since each has process numbers of its own."""
    try:
        namespace = os.readlink("/proc/self/ns/pid")
    except OSError:
        namespace = ""
    return f"{platform.node()}/{namespace}"


def _process_exists(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True


def clock(connection: Connection) -> sa.ColumnElement[float]:
    """Seconds since 1970 by the database's clock, which all processes share."""
    if connection.dialect.name == "sqlite":
        return (sa.func.julianday("now") - 2440587.5) * 86400.0
    return sa.cast(sa.func.extract("epoch", sa.func.clock_timestamp()), sa.Float(53))


def holder(connection: Connection, study_id: int) -> Holder | None:
    """Holder of the lease of a study, dead or alive; None if there is none."""
    return _holders(connection, _lease.study_id == study_id).get(study_id)


def holders(connection: Connection) -> dict[int, Holder]:
    """Holders of all leases, dead or alive, by the study's id."""
    return _holders(connection, sa.true())


def current_state(stored: str, held: Holder | None) -> StudyState:
    """State of a study: one that runs without anybody who runs it was stopped."""
    state = StudyState(stored)
    is_left = state is StudyState.RUNNING and (held is None or not held.alive)
    return StudyState.STOPPED if is_left else state


def holder_columns(connection: Connection) -> tuple[sa.ColumnElement[Any], ...]:
    """Columns of a lease that `Holder` takes, in its order."""
    now = clock(connection)
    ages = (now - _lease.acquired_at).label("age_s"), (now - _lease.renewed_at).label("silent_s")
    return (_lease.owner, _lease.host, _lease.pid, *ages)


def _holders(connection: Connection, where: sa.ColumnElement[bool]) -> dict[int, Holder]:
    rows = connection.execute(sa.select(_lease.study_id, *holder_columns(connection)).where(where))
    return {study_id: Holder(*columns) for study_id, *columns in rows}


class Lease:
    """The right to work on a study, from `with` until its end; renewed by a thread meanwhile.

    Whoever takes it over from a dead process returns that one's running trials to the queue; those that other programs
    run through Optuna stay with them.

    Args:
        database: Database of the study.
        study_id: Its id.
        name: Its name, for errors.

    Raises:
        StudyBusyError: Another process holds it, and lives.
        StudyNotFoundError: The study has been deleted since its id was looked up.
    """

    def __init__(self, database: Database, study_id: int, name: str) -> None:
        self._database, self._study_id, self._name = database, study_id, name
        self._owner = str(uuid.uuid4())
        self._lost = False
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._keep_renewing, name=f"lease of {name}", daemon=True)

    def __enter__(self) -> Lease:
        self._database.write(self._acquire)
        self._thread.start()
        return self

    def __exit__(self, kind: object = None, *_: object) -> None:
        self._ended.set()
        if kind is None:
            self._give_back()
            return
        try:
            # Who leaves because of an error, or because somebody wants it to, keeps nobody waiting.
            with self._database.hurried():
                self._give_back()
        except StorageError as error:
            _log.warning("The lease of study %r is not given back, and ends with this process: %s", self._name, error)

    def _give_back(self) -> None:
        self._thread.join()
        self._database.write(self.give_up)

    def give_up(self, connection: Connection) -> None:
        """Lets go of the study before the end of `with`, in a transaction of the caller's; it is no longer ours then.

        Where the transaction also says that nobody works on the study any more, others may touch it as soon as they
        read so. Whoever has taken it over meanwhile keeps it.
        """
        connection.execute(sa.delete(schema.lease).where(self._mine))

    @property
    def _mine(self) -> sa.ColumnElement[bool]:
        return sa.and_(_lease.study_id == self._study_id, _lease.owner == self._owner)

    def check(self) -> None:
        """Makes sure that the study is still ours.

        Raises:
            LeaseLostError: Another process has taken it over, because this one seemed dead.
        """
        if self._lost:
            raise LeaseLostError(
                f"Study {self._name!r} was taken over by another process, since this one had not shown itself for "
                f"{DEAD_AFTER_S:.0f} s. What was evaluated is kept; that process goes on."
            )

    def _acquire(self, connection: Connection) -> None:
        study = schema.study.c.id == self._study_id
        if connection.execute(sa.select(schema.study.c.id).where(study).with_for_update()).first() is None:
            raise StudyNotFoundError(
                f"Study {self._name!r} was deleted a moment ago: `ftp-search studies` lists those that are there."
            )
        held = holder(connection, self._study_id)
        if held is not None and held.owner != self._owner and held.alive:
            raise StudyBusyError(
                f"Study {self._name!r} is being worked on by {held}: wait until it ends, or stop it; if it is dead, "
                f"try again in {DEAD_AFTER_S:.0f} s."
            )
        connection.execute(sa.delete(schema.lease).where(_lease.study_id == self._study_id))
        now = clock(connection)
        row = {"study_id": self._study_id, "owner": self._owner, "host": this_host(), "pid": os.getpid()}
        connection.execute(sa.insert(schema.lease).values(**row, acquired_at=now, renewed_at=now))
        # Those of other programs may be at work in them: they hold no lease.
        running = unfinished_rows(connection, self._study_id, [TrialState.RUNNING.value])
        left = [row.id for row in running if begun_by_search(json.loads(row.user_attributes or "{}"))]
        if left:
            returned = sa.update(schema.trial).where(schema.trial.c.id.in_(left))
            connection.execute(returned.values(state=TrialState.WAITING.value))

    def renew(self) -> bool:
        """Show that this process lives; whether the lease is still ours."""

        def work(connection: Connection) -> bool:
            update = sa.update(schema.lease).where(self._mine).values(renewed_at=clock(connection))
            return connection.execute(update).rowcount == 1

        self._lost = self._lost or not self._database.write(work)
        return not self._lost

    def _keep_renewing(self) -> None:
        while not self._ended.wait(RENEW_EVERY_S):
            try:
                if not self.renew():
                    return
            except StudiesError:
                # The work itself meets the same database, and says what is wrong with it.
                continue
