"""Searches without a model: evaluators that compute a formula, and a ledger in memory."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

from ftp_core.schedule import SparsitySchedule
from search.engine.portfolio import Portfolio
from search.engine.trial_store import Begun, Known, Queued, Result
from search.evaluators import Evaluation, Task
from search.problem.space import ScheduleSpace
from search.proposers.catalogue import make_proposers
from search.proposers.proposer_stats import ProposerTally


def metrics_of(schedule: SparsitySchedule, part: int = 0) -> dict[str, float]:
    """Skipping in early blocks harms more; parts of the search set differ a little."""
    harm = sum(s * s * (1.0 + 1.0 / (1 + block)) for block, s in enumerate(schedule))
    return {"kl": harm * (1.0 + 0.05 * part), "perplexity": 1.0 + harm}


def judge(schedule: SparsitySchedule, metrics: Mapping[str, float]) -> tuple[tuple[float, ...], float]:
    return (metrics["kl"], 1.0 - schedule.overall), 0.0


class ShufflingEvaluator:
    """Finishes tasks in random order, several at a time, and fails some evaluations."""

    def __init__(self, capacity: int, fails: int = 0, seed: int = 0) -> None:
        self.capacity = capacity
        self.most_in_flight = 0
        self.evaluated: list[Task] = []
        self._waiting: list[Task] = []
        self._fails = fails
        self._rng = random.Random(seed)

    def submit(self, task: Task) -> None:
        assert task not in self._waiting
        self._waiting.append(task)
        self.most_in_flight = max(self.most_in_flight, len(self._waiting))

    def next_results(self, timeout_s: float | None = None) -> list[Evaluation]:
        n = self._rng.randint(1, len(self._waiting))
        return [self._evaluate(self._waiting.pop(self._rng.randrange(len(self._waiting)))) for _ in range(n)]

    def _evaluate(self, task: Task) -> Evaluation:
        self.evaluated.append(task)
        if self._fails and len(self.evaluated) % self._fails == 0:
            return Evaluation(task, error="broken")
        return Evaluation(task, metrics_of(task.schedule, task.part), n_tokens=10, seconds=0.01)

    def close(self) -> None:
        self._waiting.clear()


class Notebook:
    """A ledger in memory; it can stop the search after some results, as a killed process would."""

    def __init__(self, dies_after: int | None = None) -> None:
        self.begun: dict[int, Begun] = {}
        self.ended: dict[int, Result] = {}
        self.tallies: dict[str, ProposerTally] = {}
        self.elsewhere: dict[SparsitySchedule, Mapping[str, float]] = {}
        self.dies_after = dies_after

    def known(self) -> Iterator[Known]:
        for number, result in sorted(self.ended.items()):
            evaluation, outcome = result.evaluation, result.outcome
            metrics = None if outcome is None else evaluation.metrics
            fidelity = 1.0 if outcome is None else outcome.fidelity
            yield Known(number, evaluation.schedule, result.proposer, metrics, fidelity, evaluation.seconds)

    def queue(self) -> list[Queued]:
        waiting = {number: begun for number, begun in self.begun.items() if number not in self.ended}
        return [Queued(number, one.schedule, one.proposer, one.parents) for number, one in waiting.items()]

    def recall(self, schedules: Sequence[SparsitySchedule]) -> list[Evaluation | None]:
        return [Evaluation(Task(s), self.elsewhere[s]) if s in self.elsewhere else None for s in schedules]

    def begin(self, begun: Sequence[Begun]) -> list[int]:
        numbers = list(range(len(self.begun), len(self.begun) + len(begun)))
        self.begun |= dict(zip(numbers, begun, strict=True))
        return numbers

    def finish(self, results: Sequence[Result]) -> None:
        for result in results:
            if self.dies_after == 0:
                raise KeyboardInterrupt
            if self.dies_after is not None:
                self.dies_after -= 1
            assert result.number not in self.ended
            begun = Begun(result.evaluation.schedule, result.proposer, result.parents)
            assert self.begun[result.number] == begun
            self.ended[result.number] = result

    def tally(self, tallies: Mapping[str, ProposerTally]) -> None:
        self.tallies = {name: replace(tally) for name, tally in tallies.items()}

    def trials(self) -> list[tuple[object, ...]]:
        """All that a trial is, apart from the time that it took."""
        return [
            (number, self.begun[number], result.outcome, result.evaluation.metrics)
            for number, result in sorted(self.ended.items())
        ]


def portfolio(space: ScheduleSpace, names: str = "deap,tpe", by_trial: bool = False) -> Portfolio:
    return Portfolio(make_proposers(names, space, 0), 0, by_trial=by_trial)
