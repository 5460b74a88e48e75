"""The engine never repeats work, never exceeds its budget, and hands every result on."""

from __future__ import annotations

import random
from collections import Counter

from ftp_core.schedule import SparsitySchedule
from search.engine import Known, SearchEngine
from search.evaluators import Evaluation
from search.proposers.genetic import GeneticProposer
from search.proposers.sampled import SampledProposer
from search.space import ScheduleSpace


class ShufflingEvaluator:
    """Finishes schedules in random order, and fails those that a predicate picks."""

    def __init__(self, capacity: int, fails: int = 0) -> None:
        self.capacity = capacity
        self.most_in_flight = 0
        self.evaluated: list[SparsitySchedule] = []
        self._waiting: list[SparsitySchedule] = []
        self._fails = fails
        self._rng = random.Random(0)

    def submit(self, schedule: SparsitySchedule) -> None:
        self._waiting.append(schedule)
        self.most_in_flight = max(self.most_in_flight, len(self._waiting))

    def next_result(self) -> Evaluation:
        schedule = self._waiting.pop(self._rng.randrange(len(self._waiting)))
        self.evaluated.append(schedule)
        if self._fails and len(self.evaluated) % self._fails == 0:
            return Evaluation(schedule, error="broken")
        return Evaluation(schedule, {"kl": sum(s * s for s in schedule)})

    def close(self) -> None:
        self._waiting.clear()


def objectives(evaluation: Evaluation) -> tuple[float, ...]:
    return evaluation.metrics["kl"], -evaluation.schedule.overall


def engine(evaluator: ShufflingEvaluator, space: ScheduleSpace, known: tuple[Known, ...] = ()) -> SearchEngine:
    return SearchEngine(space, [GeneticProposer(space, 0), SampledProposer(space, 0)], evaluator, objectives, known)


def test_every_schedule_is_evaluated_once_and_both_proposers_take_part() -> None:
    evaluator, results = ShufflingEvaluator(capacity=4), []
    done = engine(evaluator, ScheduleSpace(6)).run(100, lambda *result: results.append(result))
    assert done == len(results) == len(set(evaluator.evaluated)) == 100
    assert evaluator.most_in_flight == 4
    shares = Counter(name for _, name, _ in results)
    assert shares["deap"] > 30 and shares["tpe"] > 30


def test_known_schedules_are_not_evaluated_again() -> None:
    space, known = ScheduleSpace(2), []
    first = ShufflingEvaluator(capacity=2)
    engine(first, space).run(200, lambda e, _, values: known.append(Known(e.schedule, values)))
    second = ShufflingEvaluator(capacity=2)
    engine(second, space, tuple(known)).run(150, lambda *_: None)
    assert not set(first.evaluated) & set(second.evaluated)


def test_an_exhausted_space_ends_the_search() -> None:
    evaluator = ShufflingEvaluator(capacity=3)
    assert engine(evaluator, ScheduleSpace(1)).run(1000, lambda *_: None) <= 20
    assert len(set(evaluator.evaluated)) == len(evaluator.evaluated)


def test_failures_are_handed_on_without_values_and_the_search_goes_on() -> None:
    results = []
    evaluator = ShufflingEvaluator(capacity=4, fails=3)
    engine(evaluator, ScheduleSpace(6)).run(60, lambda *result: results.append(result))
    failed = [(evaluation, values) for evaluation, _, values in results if evaluation.error]
    assert len(results) == 60 and len(failed) == 20
    assert all(values is None for _, values in failed)


def test_the_search_improves_on_its_first_proposals() -> None:
    results = []
    engine(ShufflingEvaluator(capacity=4), ScheduleSpace(8)).run(
        200, lambda e, _, values: results.append((e.schedule.overall, values[0]))
    )
    # At equal overall sparsity the sum of squares is least when it is spread evenly.
    early = [kl / max(overall, 0.05) ** 2 for overall, kl in results[8:40]]
    late = [kl / max(overall, 0.05) ** 2 for overall, kl in results[-32:]]
    assert sorted(late)[16] < sorted(early)[16]
