"""The engine never repeats work, never exceeds its budget, and hands every result on."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any

import moocore
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ftp_core.schedule import SparsitySchedule
from search.engine.engine import SearchEngine
from search.engine.portfolio import Portfolio
from search.engine.termination import Stopping
from search.engine.trial_runner import MAX_ATTEMPTS
from search.evaluators import Evaluation, Task
from search.problem.initial_design import ablations, initial_design, uniform_design
from search.problem.space import ScheduleSpace
from search.problem.trial import Proposal
from search.proposers.catalogue import make_proposers
from studies import Trial, TrialState
from studies.records.trial import ABLATION, INITIAL_DESIGN
from tests.search.synthetic import Notebook, ShufflingEvaluator, judge, metrics_of, portfolio, timeless

FIDELITIES = (0.25, 0.5, 1.0)


def search(evaluator: ShufflingEvaluator, space: ScheduleSpace, book: Notebook, n: int, **options: Any) -> int:
    deterministic = options.get("deterministic", False)
    proposers = Portfolio(
        make_proposers(options.pop("names", "deap,tpe"), space, 0), 0, book.statistics, by_trial=deterministic
    )
    return SearchEngine(space, proposers, evaluator, judge, book, **options).run(Stopping(n))


def warm_trials(space: ScheduleSpace, indices: Sequence[tuple[int, ...]]) -> list[Trial]:
    """Trials that ended elsewhere, numbered from 1000 on."""
    schedules = [space.schedule(one) for one in indices]
    return [
        Trial(1000 + n, one, "deap", state=TrialState.FINISHED, values=judge(one, metrics_of(one))[0])
        for n, one in enumerate(schedules)
    ]


def test_every_schedule_is_evaluated_once_and_all_proposers_take_part() -> None:
    evaluator, book = ShufflingEvaluator(capacity=4), Notebook()
    # Otherwise a proposer's share depends on the time that it took.
    done = search(evaluator, ScheduleSpace(6), book, 100, deterministic=True)
    assert done == len(book.ended) == len({task.schedule for task in evaluator.evaluated}) == 100
    assert evaluator.most_in_flight == 4
    shares = Counter(result.proposer for result in book.ended.values())
    assert shares["deap"] > 10 and shares["tpe"] > 10


def test_a_search_begins_with_dense_and_uniform_schedules() -> None:
    space, book = ScheduleSpace(6), Notebook()
    search(ShufflingEvaluator(capacity=4), space, book, 20)
    firsts = [space.grid_indices(begun.schedule) for begun in book.begun.values() if begun.proposer == INITIAL_DESIGN]
    assert firsts == initial_design(space)
    assert firsts[:8] == uniform_design(space) and firsts[0] == (0,) * 6


def test_what_proposers_do_is_counted_and_counting_goes_on_after_an_interruption() -> None:
    book, space = Notebook(), ScheduleSpace(6)
    search(ShufflingEvaluator(capacity=4, fails=2), space, book, 50)
    first = book.statistics
    search(ShufflingEvaluator(capacity=4), space, book, 50)
    finished = Counter(result.proposer for result in book.ended.values() if result.values is not None)
    for name in ("deap", "tpe"):
        own = book.statistics[name]
        assert own.finished == finished[name]
        assert own.asked - own.repeated == sum(begun.proposer == name for begun in book.begun.values())
        assert own.asked > first[name].asked and own.seconds > first[name].seconds > 0
        assert 0 < own.share < 1
    assert sum(own.gain for own in book.statistics.values()) > 0


def test_proposals_that_repeat_are_counted() -> None:
    book = Notebook()
    search(ShufflingEvaluator(capacity=1), ScheduleSpace(1), book, 1000)
    assert book.statistics["tpe"].repeated > 0 and book.statistics["sample"].repeated > 0


def test_known_schedules_are_not_evaluated_again() -> None:
    space, book = ScheduleSpace(2), Notebook()
    first, second = ShufflingEvaluator(capacity=2), ShufflingEvaluator(capacity=2)
    search(first, space, book, 120)
    search(second, space, book, 90)
    assert not set(first.evaluated) & set(second.evaluated)


def test_what_another_study_found_out_is_not_evaluated() -> None:
    space, book = ScheduleSpace(3), Notebook()
    known = [SparsitySchedule((0.0,) * 3), SparsitySchedule((0.35, 0.35, 0.35))]
    initial = [space.schedule(indices) for indices in initial_design(space)]
    book.elsewhere = {schedule: metrics_of(schedule) for schedule in [*known, *initial]}
    evaluator = ShufflingEvaluator(capacity=3)
    assert search(evaluator, space, book, 30) == len(book.ended) == 30
    assert not {task.schedule for task in evaluator.evaluated} & set(initial)
    assert all(book.ended[number].values is not None for number in range(len(initial)))


def test_a_search_of_which_everything_is_known_ends_without_an_evaluation() -> None:
    space, book = ScheduleSpace(2), Notebook()
    grid = [space.schedule((a, b)) for a in range(space.top + 1) for b in range(space.top + 1)]
    book.elsewhere = {schedule: metrics_of(schedule) for schedule in grid}
    evaluator = ShufflingEvaluator(capacity=4)
    assert search(evaluator, space, book, 50) == 50
    assert evaluator.evaluated == []


def test_proposers_learn_from_the_outcomes_of_another_study_and_its_front_comes_first() -> None:
    space, book = ScheduleSpace(4), Notebook()
    indices = [(0, 0, 0, n) for n in range(1, 12)]
    warm = warm_trials(space, indices)
    search(ShufflingEvaluator(capacity=1), space, book, 40, warm=warm)
    assert {space.grid_indices(begun.schedule) for begun in book.begun.values()} >= set(indices)


def test_what_blocks_harm_by_themselves_is_known_before_proposers_have_their_say() -> None:
    space, book = ScheduleSpace(6, 0.5), Notebook()
    search(ShufflingEvaluator(1), space, book, 60, ablations=ablations(space), names="deap,evopress,additive,tpe,cmaes")
    early = [(space.grid_indices(book.begun[n].schedule), book.begun[n].proposer) for n in range(7)]
    assert early == [
        (initial_design(space)[0], INITIAL_DESIGN),
        *((indices, ABLATION) for indices in ablations(space)),
    ]
    outcomes = book.trials()
    assert [one.constraint_violation for one in outcomes[1:7]] == pytest.approx([0.5 - 0.6 / 6] * 6)
    assert all(
        one.constraint_violation == 0 and space.contains(space.grid_indices(one.schedule))
        for one in [outcomes[0], *outcomes[7:]]
    )
    others = initial_design(space)[1:]
    assert [space.grid_indices(book.begun[n].schedule) for n in range(7, 7 + len(others))] == others
    assert [book.begun[n].proposer for n in range(7 + len(others), 15 + len(others))] == ["additive"] * 8
    assert len({begun.proposer for begun in book.begun.values()}) > 5
    # Nobody breeds from what is outside the space.
    assert not any(set(range(1, 7)) & set(one.parents) for one in book.begun.values())


def test_ablations_inside_the_space_are_trials_like_others() -> None:
    space, book = ScheduleSpace(4), Notebook()
    search(ShufflingEvaluator(1), space, book, 60, ablations=ablations(space))
    outcomes = [one for one in book.ended.values() if one.proposer == ABLATION]
    assert [space.grid_indices(one.schedule) for one in outcomes] == ablations(space) and not any(
        one.constraint_violation for one in outcomes
    )


def test_ablations_are_neither_repeated_nor_taken_for_a_plateau() -> None:
    space, book, evaluator = ScheduleSpace(6, 0.5), Notebook(dies_after=4), ShufflingEvaluator(1)
    engine = SearchEngine(space, portfolio(space), evaluator, judge, book, ablations=ablations(space))
    with pytest.raises(KeyboardInterrupt):
        engine.run(Stopping(50))
    book.dies_after = None
    engine = SearchEngine(space, portfolio(space), evaluator, judge, book, ablations=ablations(space))
    stopping = Stopping(50, plateau=3)
    engine.run(stopping)
    assert Counter(one.proposer for one in book.begun.values())[ABLATION] == 6
    assert len(book.ended) > 7 and stopping.reason is not None


def test_an_exhausted_space_ends_the_search() -> None:
    evaluator = ShufflingEvaluator(capacity=3)
    assert search(evaluator, ScheduleSpace(1), Notebook(), 1000) == 20
    assert len(set(evaluator.evaluated)) == len(evaluator.evaluated)


class HauntedEvaluator(ShufflingEvaluator):
    """Fails one schedule always, and another one twice."""

    cursed = SparsitySchedule((0.0,) * 4)
    shy = SparsitySchedule((0.1,) * 4)

    def _evaluate(self, task: Task) -> Evaluation:
        evaluation = super()._evaluate(task)
        tries = sum(one.schedule == task.schedule for one in self.evaluated)
        if task.schedule == self.cursed or (task.schedule == self.shy and tries < MAX_ATTEMPTS):
            return Evaluation(task, error=f"worker died ({tries})")
        return evaluation


def test_a_schedule_that_fails_three_times_is_recorded_and_the_search_goes_on() -> None:
    book, evaluator = Notebook(), HauntedEvaluator(capacity=4)
    assert search(evaluator, ScheduleSpace(4), book, 40) == 40
    [failed] = [result for result in book.ended.values() if result.values is None]
    assert failed.schedule == evaluator.cursed
    assert failed.error == "failed 3 times, at last with: worker died (3)"
    counts = Counter(task.schedule for task in evaluator.evaluated)
    assert counts[evaluator.cursed] == counts[evaluator.shy] == MAX_ATTEMPTS


def test_the_search_improves_on_its_first_proposals() -> None:
    book = Notebook()
    search(ShufflingEvaluator(capacity=4), ScheduleSpace(8), book, 200)

    values = [book.ended[n].values for n in range(200)]  # type: ignore[union-attr]
    first = moocore.hypervolume(values[:20], ref=[10.0, 1.0])
    assert moocore.hypervolume(values, ref=[10.0, 1.0]) > 1.02 * first


@settings(max_examples=5, deadline=None)
@given(
    capacity=st.integers(1, 9),
    deaths=st.lists(st.integers(1, 30), max_size=3),
    fidelities=st.sampled_from([(1.0,), FIDELITIES]),
    seed=st.integers(0, 3),
    target=st.sampled_from([None, 0.4]),
)
def test_a_deterministic_search_is_the_same_for_any_workers_and_interruptions(
    capacity: int, deaths: list[int], fidelities: tuple[float, ...], seed: int, target: float | None
) -> None:
    space = ScheduleSpace(5, target)
    whole = Notebook()
    options: dict[str, Any] = {"deterministic": True, "fidelities": fidelities, "names": "deap,evopress,additive,tpe"}
    options["ablations"] = ablations(space) if space.target_sparsity is not None else ()
    search(ShufflingEvaluator(1), space, whole, 90, **options)
    pieces = Notebook()
    for life in [*deaths, None]:
        pieces.dies_after = life
        with suppress(KeyboardInterrupt):
            search(ShufflingEvaluator(capacity, seed=seed), space, pieces, 90 - len(pieces.ended), **options)
    assert timeless(pieces.trials()) == timeless(whole.trials())


@pytest.mark.parametrize("deterministic", [False, True])
def test_a_trial_knows_its_parents_which_had_ended_when_it_was_proposed(deterministic: bool) -> None:
    class Watched(Notebook):
        def begin(self, trials: Sequence[Trial]) -> list[Trial]:
            assert all(set(one.parents) <= set(self.ended) for one in trials)
            return super().begin(trials)

    space, book = ScheduleSpace(5), Watched()
    names = "deap,evopress,nsga2,tpe"
    search(ShufflingEvaluator(4), space, book, 150, names=names, deterministic=deterministic)
    by = {name: [one.parents for one in book.begun.values() if one.proposer == name] for name in names.split(",")}
    assert sum(map(bool, by["deap"])) > 10 and sum(map(bool, by["evopress"])) > 10 and not any(by["tpe"])
    assert {len(parents) for parents in by["evopress"]} <= {0, 1} and max(map(len, by["deap"])) == 2
    assert [trial.parents for trial in book.trials()] == [one.parents for one in book.begun.values()]


@pytest.mark.parametrize("own", [False, True])
def test_parents_of_earlier_searches_have_numbers_if_they_are_of_this_study(own: bool) -> None:
    space = ScheduleSpace(4)
    warm = warm_trials(space, [(0, 0, 0, n) for n in range(1, 20)])
    numbers = {one.schedule: one.number for one in warm}
    book = Notebook()
    search(ShufflingEvaluator(1), space, book, 90, warm=warm, warm_is_own=own, names="deap")
    # What was found before is tried again first, made from itself.
    tried = [one for one in book.begun.values() if one.schedule in numbers and one.proposer == INITIAL_DESIGN]
    assert tried and all(one.parents == ((numbers[one.schedule],) if own else ()) for one in tried)
    bred = {parent for one in book.begun.values() if one.proposer == "deap" for parent in one.parents}
    assert bred and bred <= set(book.ended) | (set(numbers.values()) if own else set())


def test_all_times_that_workers_were_at_a_trial_are_handed_on() -> None:
    class Clocked(HauntedEvaluator):
        """Says as the time how many evaluations there were."""

        def _evaluate(self, task: Task) -> Evaluation:
            return replace(super()._evaluate(task), worker="0", began_at=float(len(self.evaluated)))

    book, evaluator = Notebook(), Clocked(capacity=4)
    search(evaluator, ScheduleSpace(4), book, 40, fidelities=FIDELITIES)
    shy = next(one for one in book.ended.values() if one.schedule == HauntedEvaluator.shy)
    assert len(shy.work) >= MAX_ATTEMPTS
    for trial in book.ended.values():
        assert [span.began_at.timestamp() for span in trial.work] == [
            1.0 + n for n, task in enumerate(evaluator.evaluated) if task.schedule == trial.schedule
        ]


def test_without_a_generation_barrier_a_slow_evaluation_delays_nobody() -> None:
    class OneSlow(ShufflingEvaluator):
        def next_results(self, timeout_s: float | None = None) -> list[Evaluation]:
            return [self._evaluate(self._waiting.pop(1 if len(self._waiting) > 1 else 0))]

    for generation, expected in ((None, 49), (10, 9)):
        book, evaluator = Notebook(), OneSlow(capacity=10)
        slow = ScheduleSpace(5).schedule(initial_design(ScheduleSpace(5))[0])
        search(evaluator, ScheduleSpace(5), book, 50, generation=generation)
        assert [task.schedule for task in evaluator.evaluated].index(slow) == expected


@pytest.mark.parametrize("deterministic", [False, True])
def test_halving_stops_bad_schedules_early_and_never_compares_across_fidelities(deterministic: bool) -> None:
    book, evaluator = Notebook(), ShufflingEvaluator(capacity=4)
    search(evaluator, ScheduleSpace(6), book, 200, fidelities=FIDELITIES, deterministic=deterministic)
    fidelities = Counter(result.fidelity for result in book.ended.values() if result.values)
    assert set(fidelities) == set(FIDELITIES) and fidelities[1.0] < 160
    parts = Counter(task.part for task in evaluator.evaluated)
    assert parts[0] == 200 and parts[2] == fidelities[1.0]
    for result in book.ended.values():
        assert result.values is not None
        schedule = result.schedule
        n_parts = FIDELITIES.index(result.fidelity) + 1
        means = [metrics_of(schedule, part)["kl"] for part in range(n_parts)]
        assert result.values[0] == pytest.approx(sum(means) / n_parts)
        assert (result.total_violation == 0) == (result.fidelity == 1.0)
    # What goes on is dominated by fewer than what does not, compared where both were.
    there = {
        number: (result.metrics.get("kl@0.25", result.metrics["kl"]), 1 - result.overall_sparsity)
        for number, result in book.ended.items()
    }

    def dominators(number: int) -> int:
        return sum(all(a < b for a, b in zip(other, there[number], strict=True)) for other in there.values())

    stopped = [n for n, result in book.ended.items() if result.values and result.fidelity == 0.25]
    whole = [n for n, result in book.ended.items() if result.values and result.fidelity == 1.0]
    assert sum(map(dominators, whole)) / len(whole) < 0.5 * sum(map(dominators, stopped)) / len(stopped)


def test_the_budget_counts_trials_whatever_their_fidelity_and_conditions_end_a_search() -> None:
    book = Notebook()
    engine = SearchEngine(ScheduleSpace(5), portfolio(ScheduleSpace(5)), ShufflingEvaluator(3), judge, book)
    assert engine.run(Stopping(10)) == 10
    ticks = iter(range(1000))
    assert engine.run(Stopping(1000, seconds=30.0, clock=lambda: float(next(ticks)))) < 200
    n = len(book.ended)
    assert engine.run(Stopping(5000, plateau=60)) < 5000
    assert len(book.ended) > n + 59


def test_being_asked_to_stop_lets_what_is_in_flight_end() -> None:
    book, evaluator = Notebook(), ShufflingEvaluator(capacity=7)
    asked = iter([False] * 5 + [True] * 1000)
    engine = SearchEngine(ScheduleSpace(5), portfolio(ScheduleSpace(5)), evaluator, judge, book)
    done = engine.run(Stopping(1000), lambda: next(asked))
    assert done == len(book.ended) == len(book.begun) < 60


def test_of_a_long_history_proposers_learn_the_front_and_the_latest(monkeypatch: pytest.MonkeyPatch) -> None:
    from search.engine import engine as module

    monkeypatch.setattr(module, "_LATEST", 10)
    space, book = ScheduleSpace(4), Notebook()
    search(ShufflingEvaluator(capacity=1), space, book, 120)

    class Listener:
        name = "listener"
        leads = False

        def __init__(self) -> None:
            self.told: list[Trial] = []

        def ask(self, number: int) -> Proposal:
            return Proposal(space.sample(random.Random(number)))

        def tell(self, trial: Trial) -> None:
            self.told.append(trial)

    listener = Listener()
    SearchEngine(space, Portfolio([listener], 0), ShufflingEvaluator(1), judge, book)
    outcomes = [trial for trial in book.trials() if trial.values is not None]
    best = [
        one
        for one in outcomes
        if not any(
            all(a <= b for a, b in zip(other.values, one.values, strict=True)) and other.values != one.values
            for other in outcomes
        )
    ]
    assert {space.grid_indices(one.schedule) for one in listener.told} >= {
        space.grid_indices(one.schedule) for one in [*best, *outcomes[-10:]]
    }
    assert len(listener.told) < 100


def test_numbers_that_others_gave_away_are_not_waited_for() -> None:
    book = Notebook()
    # An Optuna tool added a trial without a schedule: it has a number, and never an outcome.
    book.begun = {0: Trial(0, (0.9,) * 4, "theirs")}
    first = book.queue
    book.queue = lambda: []  # type: ignore[method-assign]
    assert search(ShufflingEvaluator(2), ScheduleSpace(4), book, 60, deterministic=True) == 60
    assert [one.number for one in first()] == [0]


def test_a_trial_that_was_left_running_is_evaluated_first_under_its_number_with_its_parents() -> None:
    book = Notebook()
    left = SparsitySchedule((0.5, 0.0, 0.2, 0.1))
    book.begun = {0: Trial(0, left, "deap", (7, 9))}
    evaluator = ShufflingEvaluator(1)
    search(evaluator, ScheduleSpace(4), book, 5)
    assert evaluator.evaluated[0].schedule == left
    assert (book.ended[0].proposer, book.ended[0].parents) == ("deap", (7, 9))
    assert book.ended[0].schedule == left
