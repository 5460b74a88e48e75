"""Remembers finished trials, which never change again, so that only what is new is read from the database."""

from __future__ import annotations

import gc
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import sqlalchemy as sa
from optuna.trial import FrozenTrial
from sqlalchemy.engine import Connection

from studies.sql import schema
from studies.sql.database import Database
from studies.sql.rows import check_study
from studies.sql.space import Spaces

_MANY = 1000
_LATELY = 64

_trial = schema.trial.c


class _Known:
    """Finished trials of a study in memory."""

    def __init__(self) -> None:
        # By number; None where one has not finished.
        self.finished: list[FrozenTrial | None] = []
        self.unfinished: set[int] = set()
        self.last_id = 0


class FinishedTrials:
    """The trials of a database's studies as far as they have finished; threads may share it.

    Args:
        database: Database of the studies.
        spaces: Distributions of their parameters.
    """

    def __init__(self, database: Database, spaces: Spaces) -> None:
        self._database = database
        self._spaces = spaces
        self._reading = threading.Lock()
        self._known: dict[int, _Known] = {}
        # Whoever ends a trial asks for it next.
        self._lately: dict[int, FrozenTrial] = {}
        self._lock = threading.Lock()

    def keep(self, trial_id: int, trial: FrozenTrial) -> None:
        """Remember a trial that finished here, for a while."""
        with self._lock:
            self._lately[trial_id] = trial
            while len(self._lately) > _LATELY:
                self._lately.pop(next(iter(self._lately)))

    def lately(self, trial_id: int) -> FrozenTrial | None:
        """A trial that finished here lately."""
        return self._lately.get(trial_id)

    def forget(self, study_id: int) -> None:
        """Drop what is known of a study."""
        with self._lock:
            self._known.pop(study_id, None)
            self._lately.clear()

    def with_unfinished(self, study_id: int) -> list[FrozenTrial]:
        """Every trial of a study by number: finished ones from memory, the others and new ones from the database.

        Raises:
            KeyError: There is no such study.
        """
        with self._reading, _without_garbage_collection():
            return self._database.stream(lambda connection: self._read(connection, study_id))

    def _read(self, connection: Connection, study_id: int) -> list[FrozenTrial]:
        check_study(connection, study_id)
        known = self._known.setdefault(study_id, _Known())
        conditions = [_trial.id > known.last_id]
        waiting = sorted(known.unfinished)
        conditions += [_trial.id.in_(waiting[i : i + _MANY]) for i in range(0, len(waiting), _MANY)]
        fresh: dict[int, FrozenTrial] = {}
        for condition in conditions:
            # In the order of ids: if it breaks off, what is known has no gap.
            selected = sa.select(schema.trial).where(_trial.study_id == study_id, condition).order_by(_trial.id)
            for row in connection.execute(selected, execution_options={"yield_per": _MANY}):
                trial = self._spaces.frozen(connection, row)
                trial_id, number = trial._trial_id, trial.number
                known.last_id = max(known.last_id, trial_id)
                if len(known.finished) <= number:
                    known.finished += [None] * (number + 1 - len(known.finished))
                if trial.state.is_finished():
                    known.finished[number] = trial
                    known.unfinished.discard(trial_id)
                else:
                    fresh[number] = trial
                    known.unfinished.add(trial_id)
        if not fresh:
            return [trial for trial in known.finished if trial is not None]
        merged = (fresh.get(i) if trial is None else trial for i, trial in enumerate(known.finished))
        return [trial for trial in merged if trial is not None]


@contextmanager
def _without_garbage_collection() -> Iterator[None]:
    """Reading many trials makes millions of objects, none of them garbage: looking for it takes a third of the time."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()
