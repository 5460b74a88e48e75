"""Events of the studies that runners of the service run, for those who watch from elsewhere."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection, Row

from studies.sql import schema
from studies.store.lease import clock
from studies.store.names import Part

# Older ones are forgotten.
MAX_EVENTS = 20_000
_PRUNE_EVERY = 1000

_event = schema.run_event.c


@dataclass(frozen=True)
class RunEvent:
    """Something that happened in the run of a study."""

    number: int  # place among the study's events, from 1, without gaps
    at: datetime  # when it was kept, by the database's clock, UTC
    kind: str  # "began", "stage", "figures", "measured", "ended", or "log" for a line of text
    content: Mapping[str, Any]  # plain values, as JSON knows them


class Events(Part):
    """The latest events of every study that was ever submitted."""

    def add(self, name: str, events: Sequence[tuple[str, Mapping[str, Any]]]) -> None:
        """Keep events, each a kind and a content; those of a study that was never submitted are not kept."""
        submission, table = schema.submission, schema.run_event

        def work(connection: Connection, study_id: int) -> None:
            of_study = submission.c.study_id == study_id
            # This locks the row: who reads event n has seen all before it, whichever process wrote them.
            counted = sa.update(submission).where(of_study).values(n_events=submission.c.n_events + len(events))
            if not connection.execute(counted).rowcount:
                return
            last: int = connection.execute(sa.select(submission.c.n_events).where(of_study)).scalar_one()
            now = connection.execute(sa.select(clock(connection))).scalar_one()
            first = last - len(events) + 1
            rows = [
                {"study_id": study_id, "number": number, "at": now, "kind": kind, "content": _finite(dict(content))}
                for number, (kind, content) in enumerate(events, first)
            ]
            connection.execute(sa.insert(table), rows)
            if last // _PRUNE_EVERY > (first - 1) // _PRUNE_EVERY:
                old = sa.and_(_event.study_id == study_id, _event.number <= last - MAX_EVENTS)
                connection.execute(sa.delete(table).where(old))

        if events:
            self._names.transact(name, work, write=True)

    def of(self, name: str, after: int = 0, limit: int = 500, kinds: Collection[str] | None = None) -> list[RunEvent]:
        """Events of a study behind a number, oldest first.

        Args:
            name: The study.
            after: Number of the last one that is known already.
            limit: Most events to give.
            kinds: Kinds wanted; None for all.
        """

        def work(connection: Connection, study_id: int) -> list[RunEvent]:
            selected = sa.select(schema.run_event).where(_event.study_id == study_id, _event.number > after)
            if kinds is not None:
                selected = selected.where(_event.kind.in_(list(kinds)))
            rows = connection.execute(selected.order_by(_event.number).limit(limit))
            return [_record(row) for row in rows]

        return self._names.transact(name, work)

    def latest(self, name: str, kinds: Collection[str], limit: int = 1) -> list[RunEvent]:
        """The last events of some kinds, oldest first; at most `limit`."""

        def work(connection: Connection, study_id: int) -> list[RunEvent]:
            selected = sa.select(schema.run_event).where(_event.study_id == study_id, _event.kind.in_(list(kinds)))
            rows = connection.execute(selected.order_by(_event.number.desc()).limit(limit)).all()
            return [_record(row) for row in reversed(rows)]

        return self._names.transact(name, work)

    def generation(self, name: str) -> str:
        """A name for the study's events that no other study of this name has, before or after it."""
        return str(self._names.id(name))


def _record(row: Row[Any]) -> RunEvent:
    return RunEvent(row.number, datetime.fromtimestamp(row.at, UTC), row.kind, row.content)


def _finite(value: Any) -> Any:
    """Plain values as JSON can say them: numbers that are none become null."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): _finite(one) for key, one in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(one) for one in value]
    return value
