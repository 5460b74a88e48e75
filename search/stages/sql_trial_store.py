"""Keeps the engine's trials in a study."""

from __future__ import annotations

import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, replace

from ftp_core.schedule import SparsitySchedule
from search.proposers.catalogue import is_proposer
from search.proposers.proposer_stats import ProposerStatistics
from studies import StudyStore, Trial, TrialState, front
from studies.pareto import ParetoArchive
from studies.records.objectives import COSTS
from studies.records.trial import EVALUATIONS
from studies.store.lease import Lease

_SECONDS_BETWEEN_STATISTICS = 1.0
# Metrics that say nothing of the same schedule in another study.
_OWN_TO_A_STUDY = frozenset({*COSTS, EVALUATIONS})


class SqlTrialStore:
    """A study as the engine's trial store; every call that writes is one transaction.

    Statistics are written once a second at most, so that they cost a fast search nothing: `write_statistics` writes the
    last.

    Args:
        store: Database of the study.
        name: Name of the study.
        lease: Right to write into it.
        context: Hash of what evaluations depend on beside the schedule.
        round: Search of the study that its trials belong to.
        router: Number of the router that decides; None for the static one. Only trials with this router are known to
            the engine: KL under another one does not compare.
        costs: Costs of a schedule by name, which are kept among the metrics of its trial, whichever of them is the
            objective. Metrics that other studies found come without theirs, which may be of another input.
    """

    def __init__(
        self,
        store: StudyStore,
        name: str,
        lease: Lease,
        context: str,
        round: int = 0,
        router: int | None = None,
        costs: Callable[[SparsitySchedule], Mapping[str, float]] = lambda _: {},
    ) -> None:
        self._store = store
        self._name = name
        self._lease = lease
        self._context = context
        self._round = round
        self._router = router
        self._costs = costs
        # Trials of this round that have ended, in whole evaluations.
        self.evaluations = store.trials.spent(name, round)
        # That of the whole study, as far as it was read or written here.
        self.front: list[Trial] = []
        self._archive = ParetoArchive()
        # Called with the number of trials after they were kept.
        self.on_kept: Callable[[int], None] = lambda _: None
        self._statistics: Mapping[str, ProposerStatistics] = {}
        self._written = time.monotonic()

    @property
    def n_trials(self) -> int:
        """Trials of this round that have ended; ablations of a part of the search set count for that part."""
        return round(self.evaluations)

    def known(self) -> Iterator[Trial]:
        """See `TrialStore.known`."""
        self.front, self._archive = [], ParetoArchive()
        for trial in self._store.trials.each(self._name):
            self._enter(trial)
            if trial.router == self._router:
                # Whoever appends a trial may know its objective values alone.
                yield trial if "kl" in trial.metrics else replace(trial, metrics={})

    def queue(self) -> list[Trial]:
        """See `TrialStore.queue`."""
        return self._store.trials.claim_waiting(self._name)

    def recall(self, trials: Sequence[Trial]) -> list[Mapping[str, float] | None]:
        """See `TrialStore.recall`."""
        known = self._store.evaluations.find(self._context, [trial.schedule for trial in trials])
        found = (known.get(trial.schedule) for trial in trials)
        return [
            None if one is None else {name: figure for name, figure in one.items() if name not in _OWN_TO_A_STUDY}
            for one in found
        ]

    def begin(self, trials: Sequence[Trial]) -> list[Trial]:
        """See `TrialStore.begin`."""
        self._lease.check()
        return self._store.trials.begin(self._name, trials)

    def finish(self, trials: Sequence[Trial]) -> None:
        """See `TrialStore.finish`."""
        records = [self._record(trial) for trial in trials]
        kept = self._store.trials.finish(self._name, records, self._context)
        self._lease.check()
        for record in records:
            self._enter(record)
        # Another program may have ended one meanwhile, which then is none of this search.
        before = self.n_trials
        self.evaluations += sum(record.evaluations for record in records) if kept == len(records) else kept
        self.on_kept(self.n_trials - before)

    def note_statistics(self, statistics: Mapping[str, ProposerStatistics]) -> None:
        """See `TrialStore.note_statistics`."""
        self._statistics = statistics
        if time.monotonic() - self._written > _SECONDS_BETWEEN_STATISTICS:
            self.write_statistics()

    def write_statistics(self) -> None:
        """Writes the statistics that the engine noted last."""
        self._lease.check()
        states = {name: asdict(statistics) for name, statistics in self._statistics.items()}
        self._store.runs.keep_proposer_states(self._name, states)
        self._written = time.monotonic()

    def statistics(self) -> dict[str, ProposerStatistics]:
        """Statistics of the study's proposers so far, by name.

        Finished trials are counted anew, and so are gains: a process that was killed did not write its last statistics.
        What trials with this router gained is left to the engine, which learns them again.
        """
        states = self._store.runs.proposer_states(self._name)
        kept = {state.proposer: ProposerStatistics.stored(state.state) for state in states}
        finished, gains = Counter[str](), defaultdict[str, float](float)
        fronts: defaultdict[int | None, ParetoArchive] = defaultdict(ParetoArchive)
        for trial in self._store.trials.each(self._name):
            if trial.state is TrialState.FAILED or trial.values is None:
                continue
            finished[trial.proposer] += 1
            if trial.router != self._router and trial.is_comparable:
                gains[trial.proposer] += fronts[trial.router].add(trial.values)
        for proposer, count in finished.items():
            kept.setdefault(proposer, ProposerStatistics()).finished = count
        for proposer, statistics in kept.items():
            # What every search evaluates first is nobody's gain.
            statistics.gain = gains[proposer] if is_proposer(proposer) else 0.0
        return kept

    def _enter(self, trial: Trial) -> None:
        """Keeps the trial if it is on the front, and what it dominates no longer."""
        if trial.is_comparable and self._archive.enter(trial.values or ()):
            self.front = front([*self.front, trial])

    def _record(self, trial: Trial) -> Trial:
        metrics = trial.metrics
        if trial.state is not TrialState.FAILED:
            metrics = {**metrics, **self._costs(SparsitySchedule.of(trial.schedule))}
        return replace(trial, metrics=metrics, round=self._round, router=self._router)
