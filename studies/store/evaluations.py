"""Keeps what schedules were found to do, for every study that asks for the same."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.engine import Connection

from studies.records.records import KnownEvaluation, TrialRecord
from studies.sql import schema
from studies.store.named import NamedStudies

_table = schema.evaluation.c
# The first result stays: others of the same context can differ by rounding alone.
_KEEP = {
    "sqlite": sqlite.insert(schema.evaluation).on_conflict_do_nothing(),
    "postgresql": postgresql.insert(schema.evaluation).on_conflict_do_nothing(),
}
_FIND = sa.select(_table.schedule, _table.metrics, _table.seconds).where(
    _table.context == sa.bindparam("of_context"), _table.schedule.in_(sa.bindparam("of_schedules", expanding=True))
)
# Databases take only so many parameters in a statement.
_AT_ONCE = 500


def keep_evaluations(connection: Connection, context: str, trials: Iterable[TrialRecord | KnownEvaluation]) -> None:
    """Keep the evaluations of trials that finished on the whole search set, or others; part of a transaction."""
    rows = [
        {
            "context": context,
            "schedule": tuple(trial.schedule),
            "metrics": dict(trial.metrics),
            "seconds": trial.seconds,
        }
        for trial in trials
    ]
    connection.execute(_KEEP[connection.dialect.name], rows)


class KnownEvaluations(NamedStudies):
    """Evaluations that all studies of a database share, by what they depend on beside the schedule."""

    def known_evaluations(
        self, context: str, schedules: Sequence[tuple[float, ...]]
    ) -> dict[tuple[float, ...], KnownEvaluation]:
        """What evaluations of schedules found out, in whichever study; those that nobody evaluated are left out.

        Args:
            context: Hash of model, search set and router.
            schedules: Shares of tokens skipped, one per block each.
        """

        def work(connection: Connection) -> dict[tuple[float, ...], KnownEvaluation]:
            found = {}
            for start in range(0, len(schedules), _AT_ONCE):
                bound = {"of_context": context, "of_schedules": list(schedules[start : start + _AT_ONCE])}
                for row in connection.execute(_FIND, bound):
                    found[row.schedule] = KnownEvaluation(row.schedule, row.metrics, row.seconds)
            return found

        return self._database.read(work)

    def keep_evaluation(self, context: str, evaluation: KnownEvaluation) -> None:
        """Keep what the evaluation of a schedule found out, for whoever asks for the same.

        Args:
            context: Hash of all that it depends on beside the schedule.
            evaluation: What was found out.
        """
        self._database.write(lambda connection: keep_evaluations(connection, context, [evaluation]))
