"""Writes the engine's trials into a study."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime

from ftp_core.schedule import SparsitySchedule
from search.evaluators import Evaluation
from studies import Lease, StudyStore, TrialRecord, TrialState


class StudyLedger:
    """A study as the engine's ledger; every call is one transaction.

    Args:
        store: Where the study lives.
        name: Its name.
        lease: The right to write into it.
        trials: Grows by each trial that ends.

    Attributes:
        on_kept: Called after a trial was kept.
    """

    def __init__(self, store: StudyStore, name: str, lease: Lease, trials: list[TrialRecord]) -> None:
        self._store = store
        self._name = name
        self._lease = lease
        self._trials = trials
        self.on_kept: Callable[[], None] = lambda: None

    def begin(self, schedule: SparsitySchedule, proposer: str) -> int:
        """See `Ledger.begin`."""
        self._lease.check()
        return self._store.begin_trial(self._name, tuple(schedule), proposer)

    def finish(self, number: int, evaluation: Evaluation, proposer: str, values: tuple[float, ...] | None) -> None:
        """See `Ledger.finish`."""
        record = TrialRecord(
            number=number,
            schedule=tuple(evaluation.schedule),
            values=values,
            state=TrialState.FAILED if values is None else TrialState.FINISHED,
            fidelity=1.0,
            proposer=proposer,
            seconds=evaluation.seconds,
            finished_at=datetime.now(UTC),
            metrics=evaluation.metrics,
            error=evaluation.error,
        )
        self._store.finish_trial(self._name, record)
        self._lease.check()
        self._trials.append(record)
        self.on_kept()
