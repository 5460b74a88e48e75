"""Replaces the objective values of trials, where what these were predicted from was measured anew."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from studies.errors import StorageError
from studies.records.study_facts import StudyFacts
from studies.records.trial import Trial
from studies.sql import schema
from studies.store.names import Part
from studies.store.runs import forget_stages
from studies.store.trials import ended_columns

# Databases take only so many parameters in a statement.
_AT_ONCE = 500

_run, _trial = schema.search_run.c, schema.trial.c


class Revaluation(Part):
    """Replaces the objective values of trials, of all of them at once."""

    def apply(
        self,
        name: str,
        trials: Sequence[Trial],
        facts: StudyFacts,
        due: Sequence[str] = (),
        chosen_trial: int | None = None,
    ) -> None:
        """Replaces what is known of trials that have ended, in one transaction with the facts that it follows from.

        Their rows are written anew under other ids: every process that remembers finished trials then reads them again.

        Args:
            name: Name of the study.
            trials: The trials as they shall be; others stay as they are.
            facts: The facts that change.
            due: Stages that count as not begun, as they rest on the trials.
            chosen_trial: The trial that is chosen from the front; None for that of before.

        Raises:
            StorageError: One of them has not ended.
        """
        columns = {trial.number: ended_columns(trial) for trial in trials}

        def work(connection: Connection, study_id: int) -> None:
            # Its row's lock keeps the facts, and whoever adds a trial, from changing meanwhile.
            of_study = _run.study_id == study_id
            stored = connection.execute(sa.select(_run.facts).where(of_study).with_for_update()).scalar_one()
            known = StudyFacts.from_stored(stored)
            numbers = list(columns)
            for start in range(0, len(numbers), _AT_ONCE):
                _replace(connection, name, study_id, {n: columns[n] for n in numbers[start : start + _AT_ONCE]})
            counted = StudyFacts(revaluations=known.revaluations + 1)
            values: dict[str, Any] = {"facts": known.updated(facts).updated(counted).stored()}
            if chosen_trial is not None:
                values["chosen_trial"] = chosen_trial
            connection.execute(sa.update(schema.search_run).where(of_study).values(**values))
            forget_stages(connection, study_id, due)

        self._names.transact(name, work, write=True)


def _replace(connection: Connection, name: str, study_id: int, columns: Mapping[int, Mapping[str, Any]]) -> None:
    """Write rows anew, with some of their columns changed."""
    where = sa.and_(_trial.study_id == study_id, _trial.number.in_(list(columns)), _trial.completed_at.is_not(None))
    rows = connection.execute(sa.select(schema.trial).where(where).order_by(_trial.number)).all()
    if len(rows) < len(columns):
        missing = min(set(columns) - {row.number for row in rows})
        raise StorageError(f"Trial {missing} of study {name!r} has not ended, so that it has no values to replace.")
    connection.execute(sa.delete(schema.trial).where(where))
    for row in rows:
        kept = {key: value for key, value in row._asdict().items() if key != "id"}
        connection.execute(sa.insert(schema.trial), {**kept, **columns[row.number]})
