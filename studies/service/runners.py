"""The runners of the service: processes that run submitted studies, and show that they live."""

from __future__ import annotations

import os
from dataclasses import dataclass
from datetime import UTC, datetime

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from studies.sql import schema
from studies.store.lease import Holder, clock, this_host
from studies.store.names import Part

BEAT_EVERY_S = 5.0
# Runners that have been silent for longer are forgotten.
_FORGET_AFTER_S = 24 * 3600.0

_runner = schema.runner.c


@dataclass(frozen=True)
class RunnerRecord:
    """A process that runs submitted studies."""

    id: str  # drawn anew for each process
    host: str  # the machine
    pid: int  # the process
    began_at: datetime  # when it began, by the database's clock, UTC
    silent_s: float  # seconds since it showed itself
    is_alive: bool  # True if it has shown itself lately, and has not died on this machine
    study: str | None  # the study that it runs; None if it waits for one


class Runners(Part):
    """Runners that use a database, or lately did."""

    def beat(self, runner: str, study: str | None) -> None:
        """Shows that a runner of this process lives; the first time, it becomes known.

        Args:
            runner: Id of the runner.
            study: Study that it runs; None if it waits for one.
        """

        def work(connection: Connection) -> None:
            now = clock(connection)
            of_study = sa.select(schema.study.c.id).where(schema.study.c.name == study).scalar_subquery()
            values = {"seen_at": now, "study_id": None if study is None else of_study}
            mine = sa.update(schema.runner).where(_runner.id == runner).values(**values)
            if not connection.execute(mine).rowcount:
                row = {"id": runner, "host": this_host(), "pid": os.getpid(), "began_at": now, **values}
                connection.execute(sa.delete(schema.runner).where(_runner.seen_at < now - _FORGET_AFTER_S))
                connection.execute(sa.insert(schema.runner).values(**row))

        self._database.write(work)

    def forget(self, runner: str) -> None:
        """Notes that a runner has left."""
        self._database.write(
            lambda connection: connection.execute(sa.delete(schema.runner).where(_runner.id == runner))
        )

    def all(self) -> list[RunnerRecord]:
        """Every runner that has shown itself within a day and has not left, oldest first."""

        def work(connection: Connection) -> list[RunnerRecord]:
            now = clock(connection)
            columns = (schema.runner, (now - _runner.seen_at).label("silent_s"), schema.study.c.name)
            joined = schema.runner.outerjoin(schema.study)
            recent = sa.select(*columns).select_from(joined).where(_runner.seen_at >= now - _FORGET_AFTER_S)
            found = []
            for row in connection.execute(recent.order_by(_runner.began_at, _runner.id)):
                is_alive = Holder(row.id, row.host, row.pid, 0.0, row.silent_s).alive
                host, began_at = row.host.split("/")[0], datetime.fromtimestamp(row.began_at, UTC)
                found.append(RunnerRecord(row.id, host, row.pid, began_at, row.silent_s, is_alive, row.name))
            return found

        return self._database.read(work)
