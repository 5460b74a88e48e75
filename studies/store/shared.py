"""Keeps what all studies of a database share: evaluations of schedules, and latency profiles of machines."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.engine import Connection

from studies.records.trial import Trial
from studies.sql import schema
from studies.store.names import Part

_table, _profile = schema.evaluation.c, schema.latency_profile.c
# The first result stays: others of the same context can differ by rounding alone.
_KEEP = {
    "sqlite": sqlite.insert(schema.evaluation).on_conflict_do_nothing(),
    "postgresql": postgresql.insert(schema.evaluation).on_conflict_do_nothing(),
}
_FIND = sa.select(_table.schedule, _table.metrics).where(
    _table.context == sa.bindparam("of_context"), _table.schedule.in_(sa.bindparam("of_schedules", expanding=True))
)
# Databases take only so many parameters in a statement.
_AT_ONCE = 500


def keep_evaluations(connection: Connection, context: str, trials: Iterable[Trial]) -> None:
    """Keeps the evaluations of trials that finished on the whole search set; part of a transaction."""
    _keep(connection, context, [(trial.schedule, trial.metrics) for trial in trials])


def _keep(connection: Connection, context: str, found: Iterable[tuple[Sequence[float], Mapping[str, Any]]]) -> None:
    rows = [{"context": context, "schedule": one, "metrics": dict(metrics)} for one, metrics in found]
    connection.execute(_KEEP[connection.dialect.name], rows)


class Evaluations(Part):
    """Evaluations that all studies of a database share, by what they depend on beside the schedule."""

    def find(self, context: str, schedules: Sequence[tuple[float, ...]]) -> dict[tuple[float, ...], Mapping[str, Any]]:
        """Metrics of schedules by schedule, whichever study found them; schedules that none evaluated are left out.

        Args:
            context: Hash of model, search set and router.
            schedules: Shares of tokens skipped, one per block each.
        """

        def work(connection: Connection) -> dict[tuple[float, ...], Mapping[str, Any]]:
            found: dict[tuple[float, ...], Mapping[str, Any]] = {}
            for start in range(0, len(schedules), _AT_ONCE):
                bound = {"of_context": context, "of_schedules": list(schedules[start : start + _AT_ONCE])}
                for row in connection.execute(_FIND, bound):
                    found[row.schedule] = row.metrics
            return found

        return self._database.read(work)

    def keep(self, context: str, schedule: Sequence[float], metrics: Mapping[str, Any]) -> None:
        """Keeps what the evaluation of a schedule found out, for studies that ask for the same.

        Args:
            context: Hash of all that it depends on beside the schedule.
            schedule: Share of tokens skipped, one per block.
            metrics: Figures by name.
        """
        self._database.write(lambda connection: _keep(connection, context, [(schedule, metrics)]))


class Profiles(Part):
    """Latency profiles that all studies of a database share."""

    def get(self, fingerprint: str) -> Mapping[str, Any] | None:
        """The latency profile that was measured under these conditions; None if there is none."""
        selected = sa.select(_profile.profile).where(_profile.fingerprint == fingerprint)
        return self._database.read(lambda connection: connection.execute(selected).scalar())

    def keep(
        self, fingerprint: str, conditions: Mapping[str, Any], profile: Mapping[str, Any], replace: bool = False
    ) -> Mapping[str, Any]:
        """Keeps a latency profile for every study of this database.

        Args:
            fingerprint: Hash of the conditions.
            conditions: Model, machine and software that it holds for.
            profile: The profile.
            replace: Whether it takes the place of an earlier one. Studies that began with that one keep it.

        Returns:
            The profile that is kept: an earlier one, if there is one and it is not replaced.
        """
        row = {"fingerprint": fingerprint, "conditions": dict(conditions), "profile": dict(profile)}

        def work(connection: Connection) -> None:
            if replace:
                connection.execute(sa.delete(schema.latency_profile).where(_profile.fingerprint == fingerprint))
            connection.execute(sa.insert(schema.latency_profile), {**row, "created_at": datetime.now(UTC)})

        try:
            self._database.write(work)
        except sa.exc.IntegrityError:
            return self.get(fingerprint) or profile
        return profile
