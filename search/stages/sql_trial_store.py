"""Writes the engine's trials into a study."""

from __future__ import annotations

import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from datetime import UTC, datetime

from ftp_core.schedule import SparsitySchedule
from search.engine.trial_store import Begun, Known, Queued, Result
from search.evaluators import Evaluation, Task
from search.proposers.catalogue import is_proposer
from search.proposers.proposer_stats import ProposerTally
from studies import Lease, StudyStore, Trial, TrialState, WorkSpan, front
from studies.pareto import ParetoArchive

_SECONDS_BETWEEN_TALLIES = 1.0


class StudyLedger:
    """A study as the engine's ledger; every call that writes is one transaction.

    Tallies are written once a second at most, so that they cost a fast search nothing: `keep_tallies` writes the last.

    Args:
        store: Where the study lives.
        name: Its name.
        lease: The right to write into it.
        context: Hash of what evaluations depend on beside the schedule; see `Trials.finish`.
        round: Which search of the study its trials belong to.
        router: Number of the study's router that decides in them; None for the static one. Only trials with this router
            are known to the engine: KL under another one does not compare.

    Attributes:
        n_trials: Trials of this round that have ended.
        front: The front of the whole study, as far as it was read or written here.
        blocks_run: Block computations of the trials that ended through this ledger.
        blocks_reused: Those that were spared, since their results were known.
        on_kept: Called with the number of trials after they were kept.
    """

    def __init__(
        self,
        store: StudyStore,
        name: str,
        lease: Lease,
        context: str,
        round: int = 0,
        router: int | None = None,
    ) -> None:
        self._store = store
        self._name = name
        self._lease = lease
        self._context = context
        self._round = round
        self._router = router
        self.n_trials = sum(trial.round == round for trial in store.trials.each(name))
        self.front: list[Trial] = []
        self._archive = ParetoArchive()
        self.blocks_run = 0
        self.blocks_reused = 0
        self.on_kept: Callable[[int], None] = lambda _: None
        self._tallies: Mapping[str, ProposerTally] = {}
        self._last_tally = time.monotonic()

    def known(self) -> Iterator[Known]:
        """See `Ledger.known`."""
        self.front, self._archive = [], ParetoArchive()
        for trial in self._store.trials.each(self._name):
            self._enter(trial)
            if trial.router != self._router:
                continue
            # Whoever appends a trial may know its objective values alone.
            is_known = trial.state is not TrialState.FAILED and "kl" in trial.metrics
            yield Known(
                trial.number,
                SparsitySchedule(trial.schedule),
                trial.proposer,
                trial.metrics if is_known else None,
                trial.fidelity,
                trial.seconds,
            )

    def queue(self) -> list[Queued]:
        """See `Ledger.queue`."""
        return [
            Queued(trial.number, SparsitySchedule(trial.schedule), trial.proposer, trial.parents)
            for trial in self._store.trials.claim_waiting(self._name)
        ]

    def recall(self, schedules: Sequence[SparsitySchedule]) -> list[Evaluation | None]:
        """See `Ledger.recall`."""
        known = self._store.evaluations.find(self._context, [tuple(schedule) for schedule in schedules])
        # It took this study no time, and that is what its proposer is judged by.
        return [
            None if found is None else Evaluation(Task(schedule), found)
            for schedule, found in ((schedule, known.get(tuple(schedule))) for schedule in schedules)
        ]

    def begin(self, begun: Sequence[Begun]) -> list[int]:
        """See `Ledger.begin`."""
        self._lease.check()
        trials = [Trial(0, tuple(one.schedule), one.proposer, one.parents) for one in begun]
        return [trial.number for trial in self._store.trials.begin(self._name, trials)]

    def finish(self, results: Sequence[Result]) -> None:
        """See `Ledger.finish`."""
        records = [self._record(result) for result in results]
        kept = self._store.trials.finish(self._name, records, self._context)
        self._lease.check()
        for result, record in zip(results, records, strict=True):
            self._enter(record)
            self.blocks_run += result.evaluation.blocks_run
            self.blocks_reused += result.evaluation.blocks_reused
        # Another program may have ended one meanwhile, which then is none of this search.
        self.n_trials += kept
        self.on_kept(kept)

    def tally(self, tallies: Mapping[str, ProposerTally]) -> None:
        """See `Ledger.tally`."""
        self._tallies = tallies
        if time.monotonic() - self._last_tally > _SECONDS_BETWEEN_TALLIES:
            self.keep_tallies()

    def keep_tallies(self) -> None:
        """Write the tallies as the engine noted them last."""
        self._lease.check()
        self._store.runs.keep_proposer_states(
            self._name, {name: asdict(tally) for name, tally in self._tallies.items()}
        )
        self._last_tally = time.monotonic()

    def tallies(self) -> dict[str, ProposerTally]:
        """What proposers have done in the study so far.

        Finished trials are counted anew, and so are gains: a process that was killed did not write its last tally. What
        trials with this router gained is left to the engine, which learns them again.
        """
        kept = {
            state.proposer: ProposerTally.stored(state.state) for state in self._store.runs.proposer_states(self._name)
        }
        finished, gains = Counter[str](), defaultdict[str, float](float)
        fronts: defaultdict[int | None, ParetoArchive] = defaultdict(ParetoArchive)
        for trial in self._store.trials.each(self._name):
            if trial.state is TrialState.FAILED or trial.values is None:
                continue
            finished[trial.proposer] += 1
            if trial.router != self._router and trial.is_comparable:
                gains[trial.proposer] += fronts[trial.router].add(trial.values)
        for proposer, count in finished.items():
            kept.setdefault(proposer, ProposerTally()).finished = count
        for proposer, tally in kept.items():
            # What every search evaluates first is nobody's gain.
            tally.gain = gains[proposer] if is_proposer(proposer) else 0.0
        return kept

    def _enter(self, trial: Trial) -> None:
        """Keep the trial if it is on the front, and what it dominates no longer."""
        if trial.is_comparable and self._archive.enter(trial.values or ()):
            self.front = front([*self.front, trial])

    def _record(self, result: Result) -> Trial:
        outcome, evaluation = result.outcome, result.evaluation
        state = TrialState.FINISHED
        if outcome is None:
            state = TrialState.FAILED
        elif outcome.fidelity < 1:
            state = TrialState.PRUNED
        return Trial(
            number=result.number,
            schedule=tuple(evaluation.schedule),
            values=None if outcome is None else outcome.values,
            state=state,
            fidelity=1.0 if outcome is None else outcome.fidelity,
            proposer=result.proposer,
            seconds=evaluation.seconds,
            finished_at=datetime.now(UTC),
            metrics=evaluation.metrics,
            error=evaluation.error,
            violation=0.0 if outcome is None else outcome.violation,
            round=self._round,
            router=self._router,
            parents=result.parents,
            work=work_spans(result.attempts),
        )


def work_spans(evaluations: Iterable[Evaluation]) -> tuple[WorkSpan, ...]:
    """When workers were at evaluations, to the millisecond, as far as that is known."""
    return tuple(
        WorkSpan(one.worker, datetime.fromtimestamp(round(one.began_at, 3), UTC), round(one.seconds, 3))
        for one in evaluations
        if one.worker is not None and one.began_at is not None
    )
