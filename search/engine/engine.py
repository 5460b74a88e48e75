"""The search loop: asks proposers, keeps evaluators busy, and hands every result on as it arrives."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace

from search.engine.portfolio import Portfolio
from search.engine.proposals import Proposals
from search.engine.pruning import ParetoHalving, Pruner
from search.engine.termination import Stopping
from search.engine.trial_runner import Judge, TrialRunner
from search.engine.trial_store import TrialStore
from search.evaluators import Evaluator
from search.problem.space import ScheduleSpace
from search.problem.trial import GridIndices
from studies import Trial, TrialState
from studies.pareto import ParetoArchive, non_dominated
from studies.records.trial import ABLATION

# How many results a deterministic search lags behind: enough to keep eight workers with two schedules each busy.
DETERMINISTIC_LAG = 16
# How long the engine is deaf to a request to stop.
_POLL_S = 0.25
# How many of the latest trials of a resumed study proposers learn again.
_LATEST = 2000


class SearchEngine:
    """Asynchronous ask and tell: no generation barrier, no schedule evaluated twice.

    What is proposed for trial n depends on the seed, on n, and on the trials that proposers were told of before. They
    are told of each as it ends; or, in a deterministic search, of trials 0 to n - `DETERMINISTIC_LAG` in order, so that
    neither the number of workers nor an interruption changes any proposal.

    A trial's parents are those trials of the study from which proposers learned the schedules that it was made from; of
    schedules that were evaluated elsewhere there is none.

    Memory holds the running trials, the front, and of every schedule that was seen two integers.

    Args:
        space: Space of schedules.
        portfolio: Proposers, among which trials are shared out.
        evaluator: Evaluates schedules.
        judge: Turns metrics into objective values.
        store: Keeps the trials.
        seed: Seed of the random schedules that replace repeated proposals.
        deterministic: True for proposals that do not depend on timing.
        fidelities: Shares of the search set after which it is decided whether a trial goes on; the last is 1.
        pruner: Decides that; None for `ParetoHalving`.
        warm: Trials of another study, or of this one's searches with another router, which proposers learn from; those
            of their front are the first to be tried here.
        warm_is_own: True if those trials are this study's, so that others can name them as parents.
        generation: Evaluate so many, wait for all of them, and only then ask for more; None for no such barrier.
        first: Number of the first trial that is proposed here, if the store knows none with a higher one.
        ablations: Schedules that are evaluated early for what proposers learn from them, also where they are outside
            the space: then they break the constraints.
        ablation_fidelity: Share of the search set that they are evaluated on, which evaluators have as a part: the
            first of `fidelities`, or one of its own.
        design: Schedules of the initial design; None for `initial_design`.
    """

    def __init__(
        self,
        space: ScheduleSpace,
        portfolio: Portfolio,
        evaluator: Evaluator,
        judge: Judge,
        store: TrialStore,
        *,
        seed: int = 0,
        deterministic: bool = False,
        fidelities: Sequence[float] = (1.0,),
        pruner: Pruner | None = None,
        warm: Sequence[Trial] = (),
        warm_is_own: bool = False,
        generation: int | None = None,
        first: int = 0,
        ablations: Sequence[GridIndices] = (),
        ablation_fidelity: float = 1.0,
        design: Sequence[GridIndices] | None = None,
    ) -> None:
        self._space = space
        self._portfolio = portfolio
        self._store = store
        self._lag = DETERMINISTIC_LAG if deterministic else None
        self._runner = TrialRunner(
            space, evaluator, judge, fidelities, pruner or ParetoHalving(lag=self._lag), ablation_fidelity
        )
        self._generation = generation
        self._next = first
        self._is_dry = False
        # The front of what has ended, and, for credit, of what proposers have been told: in a deterministic search
        # these are not the same.
        self._ended, self._learned = ParetoArchive(), ParetoArchive()
        # Trials that proposers have not been told of, by number, and the number of the next one to tell in order.
        self._untold: dict[int, Trial] = {}
        self._told = 0
        warm_front = [space.grid_indices(trial.schedule) for trial in _front(warm)]
        self._proposals = Proposals(space, portfolio, seed, warm_front, ablations, design)
        for trial in warm:
            if trial.is_finite:
                self._proposals.learn(trial, warm_is_own)
        self._queue: list[Trial] = []
        for trial in store.queue():
            indices = space.grid_indices(trial.schedule)
            self._queue.append(replace(trial, schedule=space.schedule(indices)))
            self._proposals.see(indices)
            self._next = max(self._next, trial.number + 1)
        # Other numbers have no trial to wait for: Optuna's tools may have added some that are none of a search.
        self._awaited = {trial.number for trial in self._queue}
        self._take_over()

    @property
    def blocks_run(self) -> int:
        """Block computations of the trials that ended here."""
        return self._runner.blocks_run

    @property
    def blocks_reused(self) -> int:
        """Block computations that were spared, since their results were known."""
        return self._runner.blocks_reused

    def run(self, stopping: Stopping, is_asked_to_stop: Callable[[], bool] = lambda: False) -> float:
        """Evaluates schedules until a condition ends it.

        Args:
            stopping: The conditions.
            is_asked_to_stop: Asked all the time: trials that run then end, and no more begin.

        Returns:
            Whole evaluations of the trials that ended (`Trial.evaluations`): fewer than `stopping.trials` if another
            condition was met first, or if the space is exhausted.
        """
        done = 0.0
        while True:
            ends = stopping.reason is not None or is_asked_to_stop()
            if not ends and not (self._generation and self._runner):
                done += self._fill(stopping, done)
            if not self._runner:
                if ends or done >= stopping.trials or self._is_dry:
                    self._store.note_statistics(self._portfolio.statistics)
                    return done
                continue
            done += self._finish(self._runner.next_ended(_POLL_S), stopping)

    def _fill(self, stopping: Stopping, done: float) -> float:
        """Begins as many trials as the evaluator takes; gives what ended at once, since it was known."""
        wanted = min(self._generation or self._runner.capacity, math.ceil(stopping.trials - done)) - len(self._runner)
        if wanted <= 0:
            return 0
        for trial in (queued := self._queue[:wanted]):
            self._runner.submit(trial)
        self._queue = self._queue[wanted:]
        proposed = self._proposed(wanted - len(queued))
        self._is_dry = not queued and not proposed
        if not proposed:
            return 0
        known, begun = self._store.recall(proposed), self._store.begin(proposed)
        self._next = max(self._next, begun[-1].number + 1)
        self._awaited.update(trial.number for trial in begun)
        ended = []
        for trial, metrics in zip(begun, known, strict=True):
            if metrics is None:
                self._runner.submit(trial)
            else:
                ended.append(self._runner.recalled(trial, metrics))
        return self._finish(ended, stopping)

    def _proposed(self, most: int) -> list[Trial]:
        """Trials of schedules that were not seen before; fewer where none can be found now."""
        found: list[Trial] = []
        while len(found) < most:
            number = self._next + len(found)
            if self._lag is not None and not self._tell_until(number - self._lag):
                break
            trial = self._proposals.next(number)
            if trial is None:
                break
            found.append(trial)
        return found

    def _finish(self, trials: Sequence[Trial], stopping: Stopping) -> float:
        """Keeps trials that ended, then lets everybody learn of them; gives what they count as."""
        if not trials:
            return 0.0
        self._store.finish(trials)
        for trial in trials:
            gain = self._arrived(trial)
            # Ablations are not meant to add to the front, so that they say nothing about whether it still grows.
            if trial.proposer != ABLATION:
                stopping.ended(gain)
            if trial.state is not TrialState.FAILED:
                self._portfolio.statistics_of(trial.proposer).finished += 1
        self._store.note_statistics(self._portfolio.statistics)
        return sum(trial.evaluations for trial in trials)

    def _take_over(self) -> None:
        """Learns of the trials that ended in earlier runs as if they had ended now."""
        n = 0
        for known in self._store.known():
            n += 1
            self._proposals.see(self._space.grid_indices(known.schedule))
            self._next = max(self._next, known.number + 1)
            trial = self._judged_anew(known)
            if known.state is not TrialState.FAILED:
                self._runner.see_rungs(known)
            if self._lag is not None:
                # Trial number + 1 may have been proposed knowing no more than this.
                self._untold[trial.number] = trial
                self._tell_until(trial.number + 1 - self._lag)
            else:
                _growth(self._ended, trial)
        if self._lag is not None:
            return
        for place, known in enumerate(self._store.known()):
            trial = self._judged_anew(known)
            # Of a long history proposers learn the best and the latest; they would forget the rest anyway.
            if trial.values is None or place >= n - _LATEST or self._ended.holds(trial.values):
                self._tell(trial)

    def _judged_anew(self, trial: Trial) -> Trial:
        """A trial of an earlier run by what its metrics are worth now."""
        if trial.state is TrialState.FAILED or not trial.metrics:
            return replace(trial, state=TrialState.FAILED, values=None)
        return self._runner.judged(trial)

    def _arrived(self, trial: Trial) -> float:
        """Tells proposers of a trial that ended, now or when its turn comes; gives what it added to the front."""
        self._awaited.discard(trial.number)
        if self._lag is None:
            self._tell(trial)
        else:
            self._untold[trial.number] = trial
        return _growth(self._ended, trial)

    def _tell_until(self, last: int) -> bool:
        """Tells of all trials up to number `last` in order; False if one of them is still missing."""
        while self._told <= last:
            if self._told in self._untold:
                self._tell(self._untold.pop(self._told))
            elif self._told in self._awaited:
                return False
            self._told += 1
        return True

    def _tell(self, trial: Trial) -> None:
        self._portfolio.credit(trial.proposer, _growth(self._learned, trial), trial.seconds)
        if trial.state is not TrialState.FAILED:
            self._proposals.learn(trial)


def _growth(archive: ParetoArchive, trial: Trial) -> float:
    """Adds a trial to an archive, if it compares with others; gives what it added to the front."""
    return archive.add(trial.values or ()) if trial.is_comparable else 0.0


def _front(trials: Sequence[Trial]) -> list[Trial]:
    """The non-dominated trials; of equal ones all."""
    legal = [trial for trial in trials if trial.is_comparable]
    kept = non_dominated([trial.values or () for trial in legal], keep_equal=True)
    return [trial for trial, keep in zip(legal, kept, strict=True) if keep]
