"""The best of a search are confirmed on items that it did not see, and what goes on is chosen by these, too."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from statistics import fmean
from typing import Any

import pytest
from rich.console import Console

from ftp_core.schedule import SparsitySchedule
from ftp_core.text.encoding import EncodedExample
from search.config.run_config import RunConfig
from search.evaluators import Evaluation, ItemKl, Task
from search.inputs.data import Workload, load_workload, search_set
from search.problem.objectives import OBJECTIVES
from search.progress.progress_view import ProgressView
from search.stages.candidates import candidates
from search.stages.confirm import SHARE, best_of, confirm, confirmation_is_due
from search.stages.fresh_items import fresh_batches
from search.stages.knee import choose_from_front, chosen_trial
from search.stages.open_study import OpenStudy, StoredRouter
from studies import StudyStore, Trial, front, knee
from studies.analysis.confirmation import confirmation_sentences
from studies.records.confirmed import CONFIRMED_KL, FRESH_ITEMS, FRESH_KL, as_confirmed
from studies.records.study_facts import Confirmation
from studies.records.target import Target
from tests.studies.records import trial

N_BLOCKS = 12
SMALL: dict[str, Any] = {
    **{"calibration_items": 104, "validation_items": 4, "test_items": 4, "search_items": 8, "workers": 1},
    **{"target_sparsity": 0.5, "cost": "flops"},
}


class NoisyEvaluator:
    """KL of fresh items: the schedule's own, by how hard the item is, by chance; the same whenever it is asked for."""

    capacity = 3

    def __init__(self, true: Callable[[SparsitySchedule], float], noise: float = 0.5) -> None:
        self.tasks: list[Task] = []
        self.fails: set[SparsitySchedule] = set()
        self._true, self._noise = true, noise
        self._waiting: list[Task] = []

    def submit(self, task: Task) -> None:
        assert task not in self._waiting
        self._waiting.append(task)

    def next_results(self, timeout_s: float | None = None) -> list[Evaluation]:
        # Out of order.
        return [self._evaluated(self._waiting.pop())] if self._waiting else []

    def close(self) -> None:
        self._waiting.clear()

    def _evaluated(self, task: Task) -> Evaluation:
        self.tasks.append(task)
        if task.schedule in self.fails:
            return Evaluation(task, error="broken")
        return Evaluation(task, items=tuple(self.items(task.schedule, task.part)))

    def items(self, schedule: SparsitySchedule, part: int, n: int = 16) -> Iterator[ItemKl]:
        """Items of a part; part 0 is the search set."""
        for item in range(n):
            of_item, of_both = random.Random(f"{part} {item}"), random.Random(f"{part} {item} {schedule!r}")
            kl = self._true(schedule) * of_item.lognormvariate(-0.32, 0.8)
            yield ItemKl(kl * of_both.lognormvariate(-(self._noise**2) / 2, self._noise), of_item.randint(1, 9))


@pytest.fixture(scope="module")
def workload() -> Workload:
    return load_workload("demo", "demo", 0, RunConfig.checked(**SMALL).sizes)


@pytest.fixture
def study_of(workload: Workload) -> Iterator[Callable[..., OpenStudy]]:
    """Makes an empty study."""
    with StudyStore("sqlite://") as store:
        leases = []

        def make(name: str = "one", **changes: Any) -> OpenStudy:
            config = RunConfig.checked(**{**SMALL, **changes})
            store.studies.create(name, config.model_dump(), OBJECTIVES)
            leases.append(store.runs.lease(name))
            return OpenStudy(store, name, leases[-1].__enter__(), config, workload, ProgressView(Console(quiet=True)))

        yield make
        for lease in leases:
            lease.__exit__(None, None, None)


def at_half(rng: random.Random) -> tuple[float, ...]:
    """A schedule of overall sparsity 0.5."""
    levels = [0.5] * N_BLOCKS
    for _ in range(20):
        one, other = rng.sample(range(N_BLOCKS), 2)
        if levels[one] <= 0.9 and levels[other] >= 0.05:
            levels[one], levels[other] = round(levels[one] + 0.05, 10), round(levels[other] - 0.05, 10)
    return tuple(levels)


def true_kl(schedule: Sequence[float]) -> float:
    return 0.1 + 0.1 * random.Random(repr(tuple(schedule))).random()


def searched(study: OpenStudy, evaluator: NoisyEvaluator, seed: int = 0, n: int = 60) -> list[Trial]:
    """What a search leaves that evaluated schedules on its few items."""
    rng = random.Random(seed)
    for number in range(n):
        schedule = at_half(rng)
        items = list(evaluator.items(SparsitySchedule(schedule), 0, study.config.search_items))
        kl = sum(item.kl * item.n_tokens for item in items) / sum(item.n_tokens for item in items)
        study.store.trials.append(study.name, trial(number, (kl, 10.0), schedule))
    return study.trials()


def confirmed(study: OpenStudy, evaluator: NoisyEvaluator, stops: Callable[[], bool] = lambda: False) -> Confirmation:
    confirm(study, 0, StoredRouter(), evaluator, stops)
    found = study.facts.confirmation_of(0)
    assert found is not None
    return found


def timeless(trials: Sequence[Trial]) -> list[tuple[int, dict[str, float]]]:
    return [(one.number, dict(one.metrics)) for one in trials]


def test_the_confirmed_choice_is_truly_better_than_the_search_s_own(study_of: Callable[..., OpenStudy]) -> None:
    by_search, by_both, best_raced, optimism = [], [], [], []
    for seed in range(12):
        study, evaluator = study_of(f"s{seed}"), NoisyEvaluator(true_kl)
        trials = searched(study, evaluator, seed)
        choose_from_front(study)
        by_search.append(true_kl(chosen_trial(study).schedule))
        found = confirmed(study, evaluator)
        choose_from_front(study)
        chosen = chosen_trial(study)
        assert chosen.number == found.best and found.best_before == min(trials, key=lambda one: one.values or ()).number
        by_both.append(true_kl(chosen.schedule))
        raced = [one for one in study.trials() if FRESH_KL in one.metrics]
        best_raced.append(min(true_kl(one.schedule) for one in raced))
        # The KL of the chosen one on fresh items is hardly biased; that of the search set is.
        optimism.append((found.optimism or 0.0, chosen.metrics[FRESH_KL] / true_kl(chosen.schedule)))
    assert fmean(best_raced) <= fmean(by_both) < fmean(by_search)
    assert fmean(by_search) - fmean(by_both) > 0.3 * (fmean(by_search) - fmean(best_raced))
    assert fmean(one for one, _ in optimism) > 0.1
    assert 0.7 < fmean(other for _, other in optimism) < 1.3


def test_a_race_takes_a_small_share_of_the_search_and_only_fresh_items(study_of: Callable[..., OpenStudy]) -> None:
    study, evaluator = study_of(), NoisyEvaluator(true_kl)
    trials = searched(study, evaluator, n=200)
    found = confirmed(study, evaluator)
    batches = fresh_batches(study.config, study.workload)
    assert found.trials == 8 and found.searched == 200
    assert found.evaluated == 16 * len(evaluator.tasks) <= SHARE * 200 * study.config.search_items
    # Parts behind the only one of the search set.
    assert {task.part for task in evaluator.tasks} <= set(range(1, 1 + len(batches)))
    fresh = [example for batch in batches for example in batch]
    assert not _prompts(fresh) & _prompts(search_set(study.config, study.workload)) and len(fresh) == 96
    assert {tuple(task.schedule) for task in evaluator.tasks} == {
        one.schedule for one in sorted(trials, key=lambda one: one.values or ())[:8]
    }
    # Metrics and facts agree, and nothing else of the trials changed.
    after = study.trials()
    raced = [one for one in after if FRESH_KL in one.metrics]
    assert len(raced) == 8 and max(one.metrics[FRESH_ITEMS] for one in raced) == found.items
    assert [replace(one, metrics={}) for one in after] == [replace(one, metrics={}) for one in trials]
    assert "8 trials were confirmed on up to" in " ".join(confirmation_sentences(study.facts))
    assert not confirmation_is_due(study, 0)
    study.store.trials.append(study.name, trial(200, (0.01, 10.0), at_half(random.Random(99))))
    assert confirmation_is_due(study, 0)


def _prompts(examples: Sequence[EncodedExample]) -> set[tuple[int, ...]]:
    return {tuple(one.prompt) for one in examples}


def test_a_clear_leader_ends_a_race_at_once(study_of: Callable[..., OpenStudy]) -> None:
    study, evaluator = study_of(), NoisyEvaluator(lambda schedule: true_kl(schedule) ** 8 * 1e6)
    searched(study, evaluator)
    best = min(study.trials(), key=lambda one: true_kl(one.schedule))
    clear = NoisyEvaluator(lambda schedule: 0.01 if tuple(schedule) == best.schedule else 0.5)
    found = confirmed(study, clear)
    assert found.best == best.number and found.told_apart == found.trials - 1
    assert len(clear.tasks) == found.trials and found.items == 16


def test_equal_ones_share_what_there_is(study_of: Callable[..., OpenStudy]) -> None:
    study, evaluator = study_of(confirm=3), NoisyEvaluator(lambda schedule: 0.1, noise=0.0)
    searched(study, evaluator, n=400)
    found = confirmed(study, evaluator)
    assert found.told_apart == 0 and found.items == 96 and found.evaluated == 3 * 96
    assert {one.metrics[FRESH_ITEMS] for one in study.trials() if FRESH_KL in one.metrics} == {96.0}
    assert abs(found.optimism or 0.0) < 0.5


def test_a_race_that_was_stopped_goes_on_where_it_was_and_finds_the_same(study_of: Callable[..., OpenStudy]) -> None:
    # Of equal trials none drops out.
    study, first, second = study_of("stopped"), NoisyEvaluator(_equal), NoisyEvaluator(_equal)
    searched(study, first, n=300)
    confirm(study, 0, StoredRouter(), first, lambda: len(first.tasks) >= 10)
    assert study.facts.confirmation_of(0) is None and confirmation_is_due(study, 0)
    assert not any(FRESH_KL in one.metrics for one in study.trials())
    # What was in flight has ended, and no more was begun.
    assert 10 <= len(first.tasks) <= 10 + first.capacity - 1
    found = confirmed(study, second)
    assert not set(first.tasks) & set(second.tasks)
    assert found.evaluated == 16 * (len(first.tasks) + len(second.tasks))
    # Another study of the same database knows all of it.
    again, third = study_of("again"), NoisyEvaluator(_equal)
    searched(again, third, n=300)
    assert confirmed(again, third) == found and not third.tasks
    assert timeless(again.trials()) == timeless(study.trials())
    # One that was not stopped finds the same, in a database of its own.
    with StudyStore("sqlite://") as store:
        store.studies.create("alone", study.config.model_dump(), OBJECTIVES)
        with store.runs.lease("alone") as lease:
            alone = OpenStudy(store, "alone", lease, study.config, study.workload, ProgressView(Console(quiet=True)))
            fourth = NoisyEvaluator(_equal)
            searched(alone, fourth, n=300)
            assert confirmed(alone, fourth) == found and len(fourth.tasks) == found.evaluated // 16
            assert timeless(alone.trials()) == timeless(study.trials())


def _equal(schedule: Sequence[float]) -> float:
    return 0.1


def test_evaluations_that_fail_leave_their_trial_unconfirmed(study_of: Callable[..., OpenStudy]) -> None:
    study, evaluator = study_of(), NoisyEvaluator(true_kl)
    best = min(searched(study, evaluator), key=lambda one: one.values or ())
    evaluator.fails = {SparsitySchedule(best.schedule)}
    found = confirmed(study, evaluator)
    assert sum(tuple(task.schedule) == best.schedule for task in evaluator.tasks) == 3
    assert FRESH_KL not in study.store.trials.get(study.name, best.number).metrics
    evaluator.fails = {SparsitySchedule(one.schedule) for one in study.trials()}
    other = study_of("other", search_items=7)
    searched(other, evaluator)
    assert "none could be evaluated" in confirmed(other, evaluator).said and found.said == ""


@pytest.mark.parametrize(
    ("changes", "n", "said"),
    [
        ({"search_items": 104}, 60, "the search set is the whole calibration set"),
        ({}, 9, "9 trials are too few to race"),
    ],
)
def test_where_nothing_can_be_confirmed_it_is_said_and_nothing_is_done(
    study_of: Callable[..., OpenStudy], changes: dict[str, Any], n: int, said: str
) -> None:
    study, evaluator = study_of(**changes), NoisyEvaluator(true_kl)
    before = searched(study, evaluator, n=n)
    assert said in confirmed(study, evaluator).said
    assert not evaluator.tasks and study.trials() == before
    [sentence] = confirmation_sentences(study.facts)
    assert said in sentence and not confirmation_is_due(study, 0)


def test_it_can_be_switched_off(study_of: Callable[..., OpenStudy]) -> None:
    study, evaluator = study_of(confirm=0), NoisyEvaluator(true_kl)
    searched(study, evaluator)
    assert not confirmation_is_due(study, 0) and not fresh_batches(study.config, study.workload)
    confirm(study, 0, StoredRouter(), evaluator, lambda: False)
    assert not evaluator.tasks and study.facts.confirmations == ()


def test_without_a_target_the_front_and_what_is_near_the_knee_race(study_of: Callable[..., OpenStudy]) -> None:
    study = study_of(target_sparsity=None)
    rng = random.Random(3)
    evaluator = NoisyEvaluator(lambda schedule: 0.5 * (sum(schedule) / N_BLOCKS) ** 2, noise=0.3)
    for number in range(150):
        schedule = (0.0,) * N_BLOCKS if number == 0 else tuple(round(rng.random() * 0.9, 2) for _ in range(N_BLOCKS))
        items = [item.kl for item in evaluator.items(SparsitySchedule(schedule), 0, 8)]
        cost = 100 * (1 - sum(schedule) / N_BLOCKS)
        study.store.trials.append(study.name, trial(number, (fmean(items), cost), schedule))
    trials = study.trials()
    best = best_of(trials, 8, None)
    points = [one for one in front(trials) if any(one.schedule)]
    assert len(best) == 8 and knee(points).number in {one.number for one in best}
    assert {one.number for one in best} & {one.number for one in points}
    assert all(any(one.schedule) for one in best)
    # At a target of cost all that are comparable keep it.
    lowest = sorted(trials[1:], key=lambda one: one.values or ())[:8]
    assert best_of(trials, 8, Target("target_flops_saved", 0.1)) == lowest
    found = confirmed(study, evaluator)
    assert (found.trials, found.best, found.best_before) == (8, None, None)
    choose_from_front(study)
    assert chosen_trial(study).number in {one.number for one in front(as_confirmed(study.trials()))}


def test_later_searches_are_measured_by_the_best_of_earlier_ones(study_of: Callable[..., OpenStudy]) -> None:
    study, evaluator = study_of(), NoisyEvaluator(true_kl, noise=0.0)
    searched(study, evaluator, n=300)
    confirmed(study, evaluator)
    rng = random.Random(7)
    for number in range(300, 340):
        schedule = at_half(rng)
        [*items] = evaluator.items(SparsitySchedule(schedule), 0, 8)
        kl = sum(one.kl * one.n_tokens for one in items) / sum(one.n_tokens for one in items)
        study.store.trials.append(study.name, replace(trial(number, (kl, 10.0), schedule), round=1))
    confirm(study, 1, StoredRouter(), evaluator, lambda: False)
    first, second = study.facts.confirmations
    # A shorter search has a shorter race, whose items are easier or harder.
    assert first.items >= second.items == 16 and second.round == 1
    fresh = {one.schedule: one.metrics[FRESH_KL] for one in study.trials() if FRESH_KL in one.metrics}
    ratios = [kl / true_kl(schedule) for schedule, kl in fresh.items()]
    assert max(ratios) == pytest.approx(min(ratios)) and len(ratios) == first.trials + second.trials


def test_choices_go_by_confirmed_kl_where_it_is_known(study_of: Callable[..., OpenStudy]) -> None:
    study = study_of(measured_points=3)
    kls = [0.10, 0.11, 0.12, 0.13, 0.14]
    rng = random.Random(1)
    for number, kl in enumerate(kls):
        study.store.trials.append(study.name, trial(number, (kl, 10.0), at_half(rng)))
    choose_from_front(study)
    assert chosen_trial(study).number == 0
    trials = study.trials()
    news = {0: 0.20, 1: 0.15, 2: 0.16}
    for number, kl in news.items():
        trials[number] = replace(trials[number], metrics={**trials[number].metrics, CONFIRMED_KL: kl})
    # Others are expected to be as much worse than the search has it as those are.
    raised = sum(news.values()) / sum(kls[number] for number in news)
    assert [(one.values or ())[0] for one in as_confirmed(trials)] == [
        pytest.approx(news.get(number, raised * kl)) for number, kl in enumerate(kls)
    ]
    study.store.revaluation.apply(study.name, [trials[number] for number in news], study.facts)
    choose_from_front(study)
    assert chosen_trial(study).number == 1
    assert [one.trial for one in candidates(study, chosen_trial(study))] == [1, 2, 0]


def test_trials_that_nobody_confirmed_are_as_they_were() -> None:
    trials = [trial(0, (0.1, 1.0)), trial(1, None)]
    assert as_confirmed(trials) == trials
    raised = replace(trials[0], metrics={CONFIRMED_KL: 0.2})
    assert as_confirmed([raised, trials[1]])[1] == trials[1]
    dense = replace(trial(0, (0.0, 1.0)), metrics={CONFIRMED_KL: 0.0})
    assert as_confirmed([dense]) == [dense]
