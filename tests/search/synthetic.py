"""Searches without a model: evaluators that compute a formula, and a trial store in memory."""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace

from ftp_core.schedule import SparsitySchedule
from search.engine.portfolio import Portfolio
from search.evaluators import Evaluation, Task
from search.problem.space import ScheduleSpace
from search.proposers.catalogue import make_proposers
from search.proposers.proposer_stats import ProposerStatistics
from studies import Trial


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
    """A trial store in memory; it can stop the search after some results, as a killed process would."""

    def __init__(self, dies_after: int | None = None) -> None:
        self.begun: dict[int, Trial] = {}
        self.ended: dict[int, Trial] = {}
        self.statistics: dict[str, ProposerStatistics] = {}
        self.elsewhere: dict[tuple[float, ...], Mapping[str, float]] = {}
        self.dies_after = dies_after

    def known(self) -> Iterator[Trial]:
        yield from self.trials()

    def queue(self) -> list[Trial]:
        return [trial for number, trial in self.begun.items() if number not in self.ended]

    def recall(self, trials: Sequence[Trial]) -> list[Mapping[str, float] | None]:
        return [self.elsewhere.get(trial.schedule) for trial in trials]

    def begin(self, trials: Sequence[Trial]) -> list[Trial]:
        begun = [replace(trial, number=number) for number, trial in enumerate(trials, start=len(self.begun))]
        self.begun |= {trial.number: trial for trial in begun}
        return begun

    def finish(self, trials: Sequence[Trial]) -> None:
        for trial in trials:
            if self.dies_after == 0:
                raise KeyboardInterrupt
            if self.dies_after is not None:
                self.dies_after -= 1
            assert trial.number not in self.ended and trial.finished_at is not None
            begun = Trial(trial.number, trial.schedule, trial.proposer, trial.parents)
            assert self.begun[trial.number] == begun
            self.ended[trial.number] = trial

    def note_statistics(self, statistics: Mapping[str, ProposerStatistics]) -> None:
        self.statistics = {name: replace(own) for name, own in statistics.items()}

    def trials(self) -> list[Trial]:
        """Trials that ended, by number."""
        return [trial for _, trial in sorted(self.ended.items())]


def timeless(trials: Iterable[Trial]) -> list[Trial]:
    """All that trials are, apart from the time that they took."""
    return [replace(trial, seconds=0.0, finished_at=None, work=()) for trial in trials]


def portfolio(space: ScheduleSpace, names: str = "deap,tpe", by_trial: bool = False) -> Portfolio:
    return Portfolio(make_proposers(names, space, 0), 0, by_trial=by_trial)
