"""Writes the engine's trials into a study."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import asdict
from datetime import UTC, datetime

from ftp_core.schedule import SparsitySchedule
from search.evaluators import Evaluation
from search.proposers.tally import ProposerTally
from studies import Lease, StudyStore, TrialRecord, TrialState

_SECONDS_BETWEEN_TALLIES = 1.0


class StudyLedger:
    """A study as the engine's ledger; every call is one transaction.

    Tallies are written once a second at most, so that they cost a fast search nothing: `keep_tallies` writes the last.

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
        self._tallies: Mapping[str, ProposerTally] = {}
        self._last_tally = time.monotonic()

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

    def tally(self, tallies: Mapping[str, ProposerTally]) -> None:
        """See `Ledger.tally`."""
        self._tallies = tallies
        if time.monotonic() - self._last_tally > _SECONDS_BETWEEN_TALLIES:
            self.keep_tallies()

    def keep_tallies(self) -> None:
        """Write the tallies as the engine noted them last."""
        self._lease.check()
        self._store.keep_proposer_states(self._name, {name: asdict(tally) for name, tally in self._tallies.items()})
        self._last_tally = time.monotonic()

    def tallies(self) -> dict[str, ProposerTally]:
        """What proposers have done in the study so far.

        Finished trials are counted anew: a process that was killed did not write its last tally.
        """
        kept = {state.proposer: ProposerTally.stored(state.state) for state in self._store.proposer_states(self._name)}
        finished = Counter(trial.proposer for trial in self._trials if trial.state is TrialState.FINISHED)
        for proposer, count in finished.items():
            kept.setdefault(proposer, ProposerTally()).finished = count
        return kept
