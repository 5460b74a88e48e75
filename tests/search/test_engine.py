"""The engine never repeats work, never exceeds its budget, and hands every result on."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ftp_core.schedule import SparsitySchedule
from search.engine import Known, Queued, SearchEngine
from search.evaluators import Evaluation
from search.proposers.genetic import GeneticProposer
from search.proposers.sampled import SampledProposer
from search.proposers.tally import ProposerTally
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


class Notebook:
    """A ledger in memory; it can stop the search after some results, as a killed process would."""

    def __init__(self, dies_after: int | None = None) -> None:
        self.begun: dict[int, tuple[SparsitySchedule, str]] = {}
        self.ended: dict[int, tuple[Evaluation, str, tuple[float, ...] | None]] = {}
        self.tallies: dict[str, ProposerTally] = {}
        self.dies_after = dies_after

    def begin(self, schedule: SparsitySchedule, proposer: str) -> int:
        number = len(self.begun)
        self.begun[number] = (schedule, proposer)
        return number

    def finish(self, number: int, evaluation: Evaluation, proposer: str, values: tuple[float, ...] | None) -> None:
        if self.dies_after == 0:
            raise KeyboardInterrupt
        if self.dies_after is not None:
            self.dies_after -= 1
        assert number not in self.ended and self.begun[number] == (evaluation.schedule, proposer)
        self.ended[number] = (evaluation, proposer, values)

    def tally(self, tallies: Mapping[str, ProposerTally]) -> None:
        self.tallies = {name: replace(tally) for name, tally in tallies.items()}

    def known(self) -> list[Known]:
        return [Known(n, e.schedule, values) for n, (e, _, values) in sorted(self.ended.items())]

    def queue(self) -> list[Queued]:
        return [Queued(n, *begun) for n, begun in self.begun.items() if n not in self.ended]


def engine(
    evaluator: ShufflingEvaluator, space: ScheduleSpace, book: Notebook, deterministic: bool = False
) -> SearchEngine:
    proposers = [GeneticProposer(space, 0), SampledProposer(space, 0)]
    return SearchEngine(
        space,
        proposers,
        evaluator,
        objectives,
        book,
        book.known(),
        book.queue(),
        deterministic=deterministic,
        tallies=book.tallies,
    )


def test_every_schedule_is_evaluated_once_and_both_proposers_take_part() -> None:
    evaluator, book = ShufflingEvaluator(capacity=4), Notebook()
    done = engine(evaluator, ScheduleSpace(6), book).run(100)
    assert done == len(book.ended) == len(set(evaluator.evaluated)) == 100
    assert evaluator.most_in_flight == 4
    shares = Counter(name for _, name, _ in book.ended.values())
    assert shares["deap"] > 30 and shares["tpe"] > 30


def test_what_proposers_do_is_counted_and_counting_goes_on_after_an_interruption() -> None:
    book, space = Notebook(), ScheduleSpace(6)
    engine(ShufflingEvaluator(capacity=4, fails=10), space, book).run(50)
    first = book.tallies
    engine(ShufflingEvaluator(capacity=4), space, book).run(50)
    finished = Counter(name for _, name, values in book.ended.values() if values is not None)
    for name in ("deap", "tpe"):
        tally = book.tallies[name]
        assert tally.finished == finished[name]
        proposed = sum(own == name for _, own in book.begun.values())
        assert tally.asked - tally.repeated == proposed
        assert tally.asked > first[name].asked and tally.seconds > first[name].seconds > 0
    assert sum(tally.finished for tally in book.tallies.values()) == 95


def test_proposals_that_repeat_are_counted() -> None:
    book = Notebook()
    engine(ShufflingEvaluator(capacity=1), ScheduleSpace(1), book).run(1000)
    assert book.tallies["tpe"].repeated > 0 and book.tallies["random"].repeated > 0


def test_known_schedules_are_not_evaluated_again() -> None:
    space, book = ScheduleSpace(2), Notebook()
    first = ShufflingEvaluator(capacity=2)
    engine(first, space, book).run(200)
    second = ShufflingEvaluator(capacity=2)
    engine(second, space, book).run(150)
    assert not set(first.evaluated) & set(second.evaluated)


def test_an_exhausted_space_ends_the_search() -> None:
    evaluator = ShufflingEvaluator(capacity=3)
    assert engine(evaluator, ScheduleSpace(1), Notebook()).run(1000) <= 20
    assert len(set(evaluator.evaluated)) == len(evaluator.evaluated)


def test_failures_are_handed_on_without_values_and_the_search_goes_on() -> None:
    book = Notebook()
    evaluator = ShufflingEvaluator(capacity=4, fails=3)
    engine(evaluator, ScheduleSpace(6), book).run(60)
    failed = [values for evaluation, _, values in book.ended.values() if evaluation.error]
    assert len(book.ended) == 60 and failed == [None] * 20


def test_the_search_improves_on_its_first_proposals() -> None:
    book = Notebook()
    engine(ShufflingEvaluator(capacity=4), ScheduleSpace(8), book).run(200)
    results = [(evaluation.schedule.overall, values[0]) for evaluation, _, values in book.ended.values() if values]
    # At equal overall sparsity the sum of squares is least when it is spread evenly.
    early = [kl / max(overall, 0.05) ** 2 for overall, kl in results[8:40]]
    late = [kl / max(overall, 0.05) ** 2 for overall, kl in results[-32:]]
    assert sorted(late)[16] < sorted(early)[16]


def test_what_a_dead_process_had_begun_is_evaluated_first_and_once() -> None:
    book, space = Notebook(dies_after=30), ScheduleSpace(6)
    with pytest.raises(KeyboardInterrupt):
        engine(ShufflingEvaluator(capacity=4), space, book).run(100)
    left = [trial.schedule for trial in book.queue()]
    assert len(left) == 4
    book.dies_after = None
    evaluator = ShufflingEvaluator(capacity=1)
    engine(evaluator, space, book).run(70)
    assert evaluator.evaluated[:4] == left
    assert len(book.ended) == len({e.schedule for e, _, _ in book.ended.values()}) == 100


@given(capacity=st.integers(1, 20), deaths=st.lists(st.integers(0, 60), max_size=4))
@settings(max_examples=10)
def test_a_deterministic_search_depends_neither_on_workers_nor_on_interruptions(
    capacity: int, deaths: list[int]
) -> None:
    space, expected, book = ScheduleSpace(5), Notebook(), Notebook()
    engine(ShufflingEvaluator(capacity=1), space, expected, deterministic=True).run(80)
    for dies_after in deaths:
        book.dies_after = dies_after
        with suppress(KeyboardInterrupt):
            engine(ShufflingEvaluator(capacity), space, book, deterministic=True).run(80 - len(book.ended))
    book.dies_after = None
    engine(ShufflingEvaluator(capacity), space, book, deterministic=True).run(80 - len(book.ended))
    assert book.begun == expected.begun
    assert book.known() == expected.known()
