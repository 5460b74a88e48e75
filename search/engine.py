"""The search loop: ask proposers, keep evaluators busy, hand every result on as it arrives."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Protocol

from ftp_core.schedule import SparsitySchedule
from search.evaluators import Evaluation, Evaluator
from search.proposers import Proposer
from search.proposers.tally import ProposerTally
from search.space import ScheduleSpace

_PATIENCE = 20
# How many results a deterministic search lags behind: enough to keep eight workers with two schedules each busy.
DETERMINISTIC_LAG = 16

Levels = tuple[int, ...]
Values = tuple[float, ...]


@dataclass(frozen=True)
class Known:
    """A schedule that the study has proposed before.

    Attributes:
        number: Of its trial.
        schedule: What was proposed.
        values: Its objective values; None if it failed.
    """

    number: int
    schedule: SparsitySchedule
    values: Values | None


@dataclass(frozen=True)
class Queued:
    """A schedule whose evaluation was begun by a process that died.

    Attributes:
        number: Of its trial.
        schedule: What was proposed.
        proposer: By whom.
    """

    number: int
    schedule: SparsitySchedule
    proposer: str


class Ledger(Protocol):
    """Where the engine writes down what it does, before it goes on."""

    def begin(self, schedule: SparsitySchedule, proposer: str) -> int:
        """Note that a schedule will be evaluated; gives its trial's number."""

    def finish(self, number: int, evaluation: Evaluation, proposer: str, values: Values | None) -> None:
        """Keep a result: its objective values, or None if it failed."""

    def tally(self, tallies: Mapping[str, ProposerTally]) -> None:
        """Note what each proposer, by name, has done so far; called after each result."""


@dataclass(frozen=True)
class _Flight:
    number: int
    levels: Levels
    proposer: str


class SearchEngine:
    """Asynchronous ask and tell: no generation barrier, no schedule evaluated twice.

    What is proposed for trial n depends on the seed, on n, and on the results that proposers were told before. They are
    told each as it arrives; or, in a deterministic search, those of trials 0 to n - `DETERMINISTIC_LAG` in order, so
    that neither the number of workers nor an interruption changes any proposal.

    Args:
        space: Where schedules come from.
        proposers: They take turns; each learns from every result.
        evaluator: Where schedules are evaluated.
        objectives: Turns an evaluation into objective values, lower is better.
        ledger: Where trials are written down.
        known: What the study has evaluated already, by number.
        queue: What it has begun to evaluate; this comes first.
        seed: Of the draws that stand in for proposals that repeat.
        deterministic: Whether proposals must not depend on timing.
        tallies: What proposers, by name, have done in the study before: counting goes on from there.
    """

    def __init__(
        self,
        space: ScheduleSpace,
        proposers: Sequence[Proposer],
        evaluator: Evaluator,
        objectives: Callable[[Evaluation], Values],
        ledger: Ledger,
        known: Sequence[Known] = (),
        queue: Sequence[Queued] = (),
        seed: int = 0,
        deterministic: bool = False,
        tallies: Mapping[str, ProposerTally] | None = None,
    ) -> None:
        self._space = space
        self._proposers = proposers
        self._evaluator = evaluator
        self._objectives = objectives
        self._ledger = ledger
        self._seed = seed
        self._lag = DETERMINISTIC_LAG if deterministic else None
        self._tallies = {proposer.name: ProposerTally() for proposer in proposers}
        self._tallies |= {name: replace(tally) for name, tally in (tallies or {}).items()}
        self._seen: set[Levels] = set()
        self._queue = list(queue)
        numbers = [trial.number for trial in known] + [trial.number for trial in queue]
        self._next = 1 + max(numbers, default=-1)
        # Results that proposers have not been told, by number, and the number of the next one to tell in order.
        self._untold: dict[int, tuple[Levels, Values | None]] = {}
        self._told = 0
        for trial in known:
            self._arrived(trial.number, space.levels(trial.schedule), trial.values)
        self._seen.update(space.levels(trial.schedule) for trial in queue)

    def run(self, budget: int) -> int:
        """Evaluate up to `budget` schedules.

        Args:
            budget: How many.

        Returns:
            How many were evaluated: fewer than the budget only if the space is exhausted.
        """
        in_flight: dict[Levels, _Flight] = {}
        done = 0
        while done < budget:
            while len(in_flight) < min(self._evaluator.capacity, budget - done):
                flight = self._take()
                if flight is None:
                    break
                in_flight[flight.levels] = flight
                self._evaluator.submit(self._space.schedule(flight.levels))
            if not in_flight:
                break
            evaluation = self._evaluator.next_result()
            flight = in_flight.pop(self._space.levels(evaluation.schedule))
            values = None if evaluation.error else self._objectives(evaluation)
            self._ledger.finish(flight.number, evaluation, flight.proposer, values)
            self._arrived(flight.number, flight.levels, values)
            if values is not None:
                self._tally(flight.proposer).finished += 1
            self._ledger.tally(self._tallies)
            done += 1
        return done

    def _take(self) -> _Flight | None:
        """What to evaluate next; None if nothing can be proposed now."""
        if self._queue:
            queued = self._queue.pop(0)
            return _Flight(queued.number, self._space.levels(queued.schedule), queued.proposer)
        if self._lag is not None and not self._tell_until(self._next - self._lag):
            return None
        proposal = self._propose(self._next)
        if proposal is None:
            return None
        levels, proposer = proposal
        self._seen.add(levels)
        number = self._ledger.begin(self._space.schedule(levels), proposer)
        self._next = number + 1
        return _Flight(number, levels, proposer)

    def _propose(self, number: int) -> tuple[Levels, str] | None:
        """A schedule nobody has seen, and whose it is; None when none can be found."""
        for turn in range(len(self._proposers)):
            proposer = self._proposers[(number + turn) % len(self._proposers)]
            for _ in range(_PATIENCE):
                levels = self._ask(proposer.name, partial(proposer.ask, number))
                if levels is not None:
                    return levels, proposer.name
        rng = random.Random(f"{self._seed}/{number}")
        for _ in range(50 * _PATIENCE):
            levels = self._ask("random", lambda: self._space.sample(rng))
            if levels is not None:
                return levels, "random"
        return None

    def _ask(self, name: str, propose: Callable[[], Levels]) -> Levels | None:
        """One proposal, counted; None if it repeats."""
        tally = self._tally(name)
        began = time.perf_counter()
        levels = propose()
        tally.seconds += time.perf_counter() - began
        tally.asked += 1
        if levels in self._seen:
            tally.repeated += 1
            return None
        return levels

    def _tally(self, name: str) -> ProposerTally:
        return self._tallies.setdefault(name, ProposerTally())

    def _arrived(self, number: int, levels: Levels, values: Values | None) -> None:
        self._seen.add(levels)
        if self._lag is None:
            self._tell(levels, values)
        else:
            self._untold[number] = (levels, values)

    def _tell_until(self, last: int) -> bool:
        """Tell the results of all trials up to number `last` in order; False if one of them is still missing."""
        while self._told <= last:
            if self._told not in self._untold:
                return False
            self._tell(*self._untold.pop(self._told))
            self._told += 1
        return True

    def _tell(self, levels: Levels, values: Values | None) -> None:
        if values is not None:
            for proposer in self._proposers:
                proposer.tell(levels, values)
