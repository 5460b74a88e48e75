"""The search loop: ask proposers, keep evaluators busy, hand every result on as it arrives."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from ftp_core.schedule import SparsitySchedule
from search.engine.portfolio import Portfolio
from search.engine.pruning import ParetoHalving, Pruner
from search.engine.termination import Stopping
from search.engine.trial_store import Begun, Known, Ledger, Result
from search.evaluators import Evaluation, Evaluator, Task
from search.problem.space import ScheduleSpace
from search.problem.trial import Levels, Outcome, Proposal, Values
from search.proposers import Proposer
from studies import ANCHOR, KNOCK_OUT, finite_values
from studies.pareto import ParetoArchive, non_dominated

_PATIENCE = 20
# How many results a deterministic search lags behind: enough to keep eight workers with two schedules each busy.
DETERMINISTIC_LAG = 16
# Evaluations of a schedule that fail or kill their worker before the trial counts as failed.
MAX_ATTEMPTS = 3
# How long the engine is deaf to a request to stop.
_POLL_S = 0.25
# How many of the latest trials of a resumed study proposers learn again.
_LATEST = 2000
# Who "proposes" what stands in where proposers only repeat themselves.
SAMPLE = "sample"

# Objective values, lower is better, and by how much the constraints are broken.
Judge = Callable[[SparsitySchedule, Mapping[str, float]], tuple[Values, float]]


@dataclass
class _Flight:
    number: int
    levels: Levels
    proposer: str
    parents: tuple[int, ...] = ()
    part: int = 0
    failures: int = 0
    evaluation: Evaluation | None = None
    attempts: list[Evaluation] = field(default_factory=list)
    rungs: dict[str, float] = field(default_factory=dict)


class SearchEngine:
    """Asynchronous ask and tell: no generation barrier, no schedule evaluated twice.

    What is proposed for trial n depends on the seed, on n, and on the outcomes that proposers were told before. They
    are told each as it arrives; or, in a deterministic search, those of trials 0 to n - `DETERMINISTIC_LAG` in order,
    so that neither the number of workers nor an interruption changes any proposal.

    A trial's parents are those trials of the study from which proposers learned the schedules that it was made from; of
    schedules that were evaluated elsewhere there is none.

    Memory holds what is in flight, the front, and of every schedule that was seen its hash and its trial's number: two
    integers.

    Args:
        space: Where schedules come from.
        portfolio: Who proposes.
        evaluator: Where schedules are evaluated.
        judge: Turns metrics into objective values.
        ledger: Where trials are written down.
        seed: Of the draws that stand in for proposals that repeat.
        deterministic: Whether proposals must not depend on timing.
        fidelities: Shares of the search set after which it is decided whether a trial goes on; the last is 1.
        pruner: Decides that; None for `ParetoHalving`.
        warm: Outcomes of another study, or of this one's searches with another router, which proposers learn from;
            those of their front are the first to be tried here.
        generation: Evaluate so many, wait for all of them, and only then ask for more; None for no such barrier.
        first: Number of the first trial that is proposed here, if the ledger knows none with a higher one.
        ablations: Schedules that are evaluated early for what proposers learn from them, also where they are outside
            the space: then they break the constraints.
    """

    def __init__(
        self,
        space: ScheduleSpace,
        portfolio: Portfolio,
        evaluator: Evaluator,
        judge: Judge,
        ledger: Ledger,
        *,
        seed: int = 0,
        deterministic: bool = False,
        fidelities: Sequence[float] = (1.0,),
        pruner: Pruner | None = None,
        warm: Sequence[Outcome] = (),
        generation: int | None = None,
        first: int = 0,
        ablations: Sequence[Levels] = (),
    ) -> None:
        self._space = space
        self._portfolio = portfolio
        self._evaluator = evaluator
        self._judge = judge
        self._ledger = ledger
        self._seed = seed
        self._lag = DETERMINISTIC_LAG if deterministic else None
        self._fidelities = tuple(fidelities)
        self._pruner = pruner or ParetoHalving(lag=self._lag)
        self._generation = generation
        self._in_flight: dict[Levels, _Flight] = {}
        # By hash of the levels: the trial that proposers learned them from, if they did by now.
        self._seen: dict[int, int | None] = {}
        self._warm: dict[int, int] = {}
        self._next = first
        self._is_dry = False
        # The front of what has ended, and, for credit, of what proposers have been told: in a deterministic search
        # these are not the same.
        self._ended, self._learned = ParetoArchive(), ParetoArchive()
        # What proposers have not been told, by number, and the number of the next one to tell in order.
        self._untold: dict[int, tuple[str, Outcome | None, float]] = {}
        self._told = 0
        self._firsts = [Proposal(levels) for levels in space.anchors()]
        self._firsts += [Proposal(levels, (levels,)) for levels in _front(warm)]
        self._ablations = list(ablations)
        for outcome in warm:
            if outcome.is_finite:
                self._learn(outcome)
        self._queue = list(ledger.queue())
        for queued in self._queue:
            self._see(space.levels(queued.schedule))
            self._next = max(self._next, queued.number + 1)
        # Other numbers have no outcome to wait for: Optuna's tools may have added trials that are none of ours.
        self._awaited = {queued.number for queued in self._queue}
        self._take_over()

    def run(self, stopping: Stopping, is_asked_to_stop: Callable[[], bool] = lambda: False) -> int:
        """Evaluate schedules until a condition ends it.

        Args:
            stopping: The conditions.
            is_asked_to_stop: Asked all the time: what is in flight then ends, and nothing more begins.

        Returns:
            How many trials ended: fewer than `stopping.trials` if another condition was met first, or if the space is
            exhausted.
        """
        done, in_flight = 0, self._in_flight
        while True:
            ends = stopping.reason is not None or is_asked_to_stop()
            if not ends and not (self._generation and in_flight):
                done += self._fill(stopping, done)
            if not in_flight:
                if ends or done >= stopping.trials or self._is_dry:
                    self._ledger.tally(self._portfolio.tallies)
                    return done
                continue
            results = []
            for evaluation in self._evaluator.next_results(_POLL_S):
                flight = in_flight[self._space.levels(evaluation.schedule)]
                result = self._advance(flight, evaluation)
                if result is not None:
                    del in_flight[flight.levels]
                    results.append(result)
            done += self._finish(results, stopping)

    def _fill(self, stopping: Stopping, done: int) -> int:
        """Begin as many trials as the evaluator takes; gives how many ended at once, since they were known."""
        wanted = min(self._generation or self._evaluator.capacity, stopping.trials - done) - len(self._in_flight)
        if wanted <= 0:
            return 0
        queued, self._queue = self._queue[:wanted], self._queue[wanted:]
        flights = [_Flight(one.number, self._space.levels(one.schedule), one.proposer, one.parents) for one in queued]
        proposals = self._proposals(wanted - len(flights))
        self._is_dry = not flights and not proposals
        known: list[Evaluation | None] = [None] * len(flights)
        if proposals:
            begun = [Begun(self._space.schedule(one.levels), one.proposer, one.parents) for one in proposals]
            known += self._ledger.recall([one.schedule for one in begun])
            numbers = self._ledger.begin(begun)
            self._next = max(self._next, numbers[-1] + 1)
            self._awaited.update(numbers)
            for flight, number in zip(proposals, numbers, strict=True):
                flight.number = number
            flights += proposals
        results = []
        for flight, evaluation in zip(flights, known, strict=True):
            if evaluation is None:
                self._in_flight[flight.levels] = flight
                self._evaluator.submit(Task(self._space.schedule(flight.levels)))
            else:
                results.append(self._result(flight, evaluation, 1.0))
        return self._finish(results, stopping)

    def _proposals(self, most: int) -> list[_Flight]:
        """Schedules that nobody has seen, under the numbers that they should get; fewer where none can be found now."""
        found: list[_Flight] = []
        while len(found) < most:
            number = self._next + len(found)
            if self._lag is not None and not self._tell_until(number - self._lag):
                break
            proposal = self._propose(number)
            if proposal is None:
                break
            self._see(proposal.levels)
            found.append(proposal)
        return found

    def _propose(self, number: int) -> _Flight | None:
        while self._firsts:
            first = self._firsts.pop(0)
            if not self._has_seen(first.levels) and self._space.contains(first.levels):
                return _Flight(number, first.levels, ANCHOR, self._numbers(first.parents))
        while self._ablations:
            ablation = self._ablations.pop(0)
            if not self._has_seen(ablation):
                return _Flight(number, ablation, KNOCK_OUT)
        for proposer in self._portfolio.in_turn(number):
            for _ in range(_PATIENCE):
                proposal = self._ask(proposer, number)
                if not self._has_seen(proposal.levels):
                    return _Flight(number, proposal.levels, proposer.name, self._numbers(proposal.parents))
                self._portfolio.tally(proposer.name).repeated += 1
        rng, tally = random.Random(f"{self._seed}/{number}"), self._portfolio.tally(SAMPLE)
        for _ in range(50 * _PATIENCE):
            levels = self._space.sample(rng)
            tally.asked += 1
            if not self._has_seen(levels):
                return _Flight(number, levels, SAMPLE)
            tally.repeated += 1
        return None

    def _ask(self, proposer: Proposer, number: int) -> Proposal:
        tally = self._portfolio.tally(proposer.name)
        began = time.perf_counter()
        proposal = proposer.ask(number)
        tally.seconds += time.perf_counter() - began
        tally.asked += 1
        return proposal

    def _advance(self, flight: _Flight, evaluation: Evaluation) -> Result | None:
        """What an evaluation makes of its trial: tried again, taken further (None), or ended."""
        flight.attempts.append(evaluation)
        if evaluation.error is not None:
            flight.failures += 1
            if flight.failures < MAX_ATTEMPTS:
                self._evaluator.submit(evaluation.task)
                return None
            error = f"failed {flight.failures} times, at last with: {evaluation.error}"
            return _result_of(flight, replace(evaluation, metrics={}, error=error), None)
        whole = evaluation if flight.evaluation is None else flight.evaluation.joined(evaluation)
        fidelity = self._fidelities[flight.part]
        if fidelity < 1.0:
            values, _ = self._judge(evaluation.schedule, whole.metrics)
            if not finite_values(values):
                return self._result(flight, whole, fidelity)
            flight.rungs |= {_at(name, fidelity): figure for name, figure in whole.metrics.items()}
            if self._pruner.goes_on(flight.number, flight.part, values):
                flight.part, flight.evaluation, flight.failures = flight.part + 1, whole, 0
                self._evaluator.submit(Task(evaluation.schedule, flight.part))
                return None
        return self._result(flight, whole, fidelity)

    def _result(self, flight: _Flight, evaluation: Evaluation, fidelity: float) -> Result:
        evaluation = replace(evaluation, metrics={**evaluation.metrics, **flight.rungs})
        outcome = self._judged(flight.levels, evaluation.metrics, fidelity, flight.number)
        if outcome.is_finite:
            return _result_of(flight, evaluation, outcome)
        # It compares with nothing, so it is kept as one that failed.
        figures = ", ".join(f"{value:g}" for value in (*outcome.values, outcome.violation))
        error = f"not finite: objective values and violation are {figures}"
        return _result_of(flight, replace(evaluation, error=error), None)

    def _judged(self, levels: Levels, metrics: Mapping[str, float], fidelity: float, number: int) -> Outcome:
        values, violation = self._judge(self._space.schedule(levels), metrics)
        return Outcome(levels, values, violation + self._space.violation(levels), fidelity, number)

    def _finish(self, results: Sequence[Result], stopping: Stopping) -> int:
        """Keep results, then let everybody learn of them."""
        if not results:
            return 0
        self._ledger.finish(results)
        for result in results:
            outcome = result.outcome
            gain = self._arrived(result.number, result.proposer, outcome, result.evaluation.seconds)
            # Ablations are not meant to add to the front, so that they say nothing about whether it still grows.
            if result.proposer != KNOCK_OUT:
                stopping.ended(gain)
            if outcome is not None:
                self._portfolio.tally(result.proposer).finished += 1
        self._ledger.tally(self._portfolio.tallies)
        return len(results)

    def _take_over(self) -> None:
        """Learn of the trials that ended in earlier runs as if they had ended now."""
        n = 0
        for trial in self._ledger.known():
            n += 1
            self._see(self._space.levels(trial.schedule))
            self._next = max(self._next, trial.number + 1)
            self._see_rungs(trial)
            outcome = self._known_outcome(trial)
            if self._lag is not None:
                # Trial number + 1 may have been proposed knowing no more than this.
                self._untold[trial.number] = (trial.proposer, outcome, trial.seconds)
                self._tell_until(trial.number + 1 - self._lag)
            elif outcome is not None and outcome.is_comparable:
                self._ended.add(outcome.values)
        if self._lag is not None:
            return
        for place, trial in enumerate(self._ledger.known()):
            outcome = self._known_outcome(trial)
            # Of a long history proposers learn the best and the latest; they would forget the rest anyway.
            if outcome is None or place >= n - _LATEST or self._ended.holds(outcome.values):
                self._tell(trial.proposer, outcome, trial.seconds)

    def _known_outcome(self, trial: Known) -> Outcome | None:
        if trial.metrics is None:
            return None
        outcome = self._judged(self._space.levels(trial.schedule), trial.metrics, trial.fidelity, trial.number)
        return outcome if outcome.is_finite else None

    def _see_rungs(self, trial: Known) -> None:
        """Let the pruner know what a trial was worth at lower fidelities."""
        for rung, fidelity in enumerate(self._fidelities[:-1]):
            figures = {name: (trial.metrics or {}).get(_at(name, fidelity)) for name in trial.metrics or {}}
            there = {name: figure for name, figure in figures.items() if figure is not None}
            if there and finite_values(values := self._judge(trial.schedule, there)[0]):
                self._pruner.saw(trial.number, rung, values)

    def _arrived(self, number: int, proposer: str, outcome: Outcome | None, seconds: float) -> float:
        """Tell proposers of a trial that ended, now or when its turn comes; gives what it added to the front."""
        self._awaited.discard(number)
        gain = 0.0
        if outcome is not None and outcome.is_comparable:
            gain = self._ended.add(outcome.values)
        if self._lag is None:
            self._tell(proposer, outcome, seconds)
        else:
            self._untold[number] = (proposer, outcome, seconds)
        return gain

    def _tell_until(self, last: int) -> bool:
        """Tell the outcomes of all trials up to number `last` in order; False if one of them is still missing."""
        while self._told <= last:
            if self._told in self._untold:
                self._tell(*self._untold.pop(self._told))
            elif self._told in self._awaited:
                return False
            self._told += 1
        return True

    def _tell(self, proposer: str, outcome: Outcome | None, seconds: float) -> None:
        gain = 0.0
        if outcome is not None and outcome.is_comparable:
            gain = self._learned.add(outcome.values)
        self._portfolio.credit(proposer, gain, seconds)
        if outcome is not None:
            self._learn(outcome)

    def _learn(self, outcome: Outcome) -> None:
        """Tell every proposer, and remember the trial for those that are made from it."""
        self._portfolio.learn(outcome)
        if outcome.number is not None:
            key = hash(outcome.levels)
            if key in self._seen:
                self._seen[key] = outcome.number
            else:
                self._warm[key] = outcome.number

    def _numbers(self, parents: Sequence[Levels]) -> tuple[int, ...]:
        """The trials that proposers learned parents from; those from elsewhere have none in this study."""
        found = map(self._number, parents)
        return tuple(number for number in found if number is not None)

    def _number(self, levels: Levels) -> int | None:
        number = self._seen.get(hash(levels))
        # Before the trial here has ended, it is the one that was known before.
        return self._warm.get(hash(levels)) if number is None else number

    def _see(self, levels: Levels) -> None:
        self._seen.setdefault(hash(levels))

    def _has_seen(self, levels: Levels) -> bool:
        return hash(levels) in self._seen


def _result_of(flight: _Flight, evaluation: Evaluation, outcome: Outcome | None) -> Result:
    return Result(flight.number, flight.proposer, evaluation, outcome, flight.parents, tuple(flight.attempts))


def _front(outcomes: Sequence[Outcome]) -> list[Levels]:
    """The levels of the non-dominated outcomes; of equal ones all."""
    legal = [outcome for outcome in outcomes if outcome.is_comparable]
    kept = non_dominated([outcome.values for outcome in legal], keep_equal=True)
    return [outcome.levels for outcome, keep in zip(legal, kept, strict=True) if keep]


def _at(name: str, fidelity: float) -> str:
    """Under which name a figure of a lower fidelity is kept beside that of the highest."""
    return f"{name}@{fidelity:g}"
