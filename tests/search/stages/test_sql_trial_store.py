"""A study as a trial store keeps every result in one transaction with its trial, and knows what other studies found."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import pytest

from ftp_core.schedule import SparsitySchedule
from search.engine.engine import SearchEngine
from search.engine.termination import Stopping
from search.problem.space import ScheduleSpace
from search.proposers.proposer_stats import ProposerStatistics
from search.stages import sql_trial_store as module
from search.stages.sql_trial_store import SqlTrialStore
from studies import StudyStore, Trial, TrialState, front
from studies.pareto import ParetoArchive
from studies.store.lease import Lease
from tests.search.synthetic import Notebook, ShufflingEvaluator, judge, portfolio, timeless
from tests.studies.records import trial

DONE = ProposerStatistics(asked=5, repeated=1, finished=2, seconds=0.5)


def ended(begun: Trial, values: tuple[float, ...] | None, **how: Any) -> Trial:
    known = {
        "state": TrialState.FINISHED,
        "values": values,
        "metrics": {"kl": 0.1 if values is None else values[0]},
        "seconds": 2.0,
    }
    return replace(begun, finished_at=datetime.now(UTC), **(known | how))


@pytest.fixture
def store() -> Iterator[StudyStore]:
    with StudyStore("sqlite://") as store:
        for name in ("one", "other"):
            store.studies.create(name, {}, ("kl", "latency_ms"))
        yield store


@pytest.fixture
def lease(store: StudyStore) -> Iterator[Lease]:
    with store.runs.lease("one") as lease:
        yield lease


def test_statistics_are_written_once_a_second_and_when_that_is_asked_for(
    store: StudyStore, lease: Lease, monkeypatch: pytest.MonkeyPatch
) -> None:
    trials = SqlTrialStore(store, "one", lease, "context")
    trials.note_statistics({"deap": DONE})
    assert store.runs.proposer_states("one") == []
    trials.write_statistics()
    assert [state.state["asked"] for state in store.runs.proposer_states("one")] == [5]
    trials.note_statistics({"deap": replace(DONE, asked=6)})
    assert [state.state["asked"] for state in store.runs.proposer_states("one")] == [5]
    monkeypatch.setattr(module, "_SECONDS_BETWEEN_STATISTICS", 0.0)
    trials.note_statistics({"deap": replace(DONE, asked=7)})
    assert [state.state["asked"] for state in store.runs.proposer_states("one")] == [7]


def test_finished_trials_are_counted_anew_after_a_kill(store: StudyStore, lease: Lease) -> None:
    store.runs.keep_proposer_states(
        "one", {"deap": {"asked": 5, "finished": 1, "gain": 0.5, "of a newer program": True}}
    )
    for record in (trial(0, (1.0, 2.0)), trial(1, (1.0, 2.0)), trial(2, None)):
        store.trials.append("one", record)
    statistics = SqlTrialStore(store, "one", lease, "context").statistics()
    assert statistics == {"deap": ProposerStatistics(asked=5, finished=2)}


def test_a_refinement_remembers_what_was_gained_with_other_routers(store: StudyStore, lease: Lease) -> None:
    values = [(4.0, 4.0), (1.0, 2.0), (0.5, 3.0), (0.1, 1.0)]
    for number, (proposer, one) in enumerate(zip(("initial design", "deap", "tpe", "tpe"), values, strict=True)):
        # The last one breaks a constraint.
        store.trials.append(
            "one", replace(trial(number, one), proposer=proposer, constraint_violation=float(number == 3))
        )
    archive = ParetoArchive()
    gained = [archive.add(one) for one in values[:3]]
    refined = SqlTrialStore(store, "one", lease, "context", round=1, router=0).statistics()
    assert {name: own.gain for name, own in refined.items()} == {
        "initial design": 0.0,
        "deap": gained[1],
        "tpe": gained[2],
    }
    # Those with its own router the engine learns again.
    assert not any(own.gain for own in SqlTrialStore(store, "one", lease, "context", round=1).statistics().values())


def test_the_engine_finds_the_same_in_a_study_as_in_memory_and_goes_on_after_a_stop(
    store: StudyStore, lease: Lease
) -> None:
    space, book = ScheduleSpace(4), Notebook()
    options = {"deterministic": True, "fidelities": (0.25, 1.0)}
    SearchEngine(space, portfolio(space, by_trial=True), ShufflingEvaluator(3, fails=1000), judge, book, **options).run(
        Stopping(80)
    )
    for _ in range(2):
        trials = SqlTrialStore(store, "one", lease, "context")
        engine = SearchEngine(space, portfolio(space, by_trial=True), ShufflingEvaluator(5), judge, trials, **options)
        assert engine.run(Stopping(40)) == 40
    kept = store.trials.of("one")
    assert timeless(kept) == timeless(book.trials())
    assert sum(len(t.parents) for t in kept) > 20
    assert {t.state for t in kept} == {TrialState.FINISHED, TrialState.PRUNED}
    assert trials.front == front(kept) and trials.n_trials == 80


def test_an_evaluation_is_known_to_every_study_of_its_context_unless_it_was_partial(
    store: StudyStore, lease: Lease
) -> None:
    trials = SqlTrialStore(store, "one", lease, "context")
    schedules = [SparsitySchedule((level, 0.1)) for level in (0.0, 0.3, 0.5)]
    begun = trials.begin([Trial(9, schedule, "deap") for schedule in schedules])
    assert [one.number for one in begun] == [0, 1, 2] and [one.number for one in trials.queue()] == []
    whole, pruned, failed = begun
    trials.finish(
        [
            ended(whole, (0.1, 3.0)),
            ended(pruned, (0.1, 3.0), state=TrialState.PRUNED, fidelity=0.25),
            ended(failed, None, state=TrialState.FAILED),
        ]
    )
    with store.runs.lease("other") as others:
        known = SqlTrialStore(store, "other", others, "context").recall(begun)
        assert known == [{"kl": 0.1}, None, None]
        assert SqlTrialStore(store, "other", others, "another").recall(begun) == [None] * 3


def test_trials_that_break_a_constraint_are_kept_and_are_no_part_of_the_front(store: StudyStore, lease: Lease) -> None:
    trials = SqlTrialStore(store, "one", lease, "context")
    schedules = [SparsitySchedule((level, 0.1)) for level in (0.0, 0.3)]
    first, second = trials.begin([Trial(9, schedule, "deap") for schedule in schedules])
    trials.finish([ended(first, (0.1, 3.0), constraint_violation=0.05), ended(second, (0.2, 3.0))])
    kept = store.trials.of("one")
    assert [record.constraint_violation for record in kept] == [0.05, 0.0]
    assert [point.number for point in front(kept)] == [point.number for point in trials.front] == [1]
    frozen = store.storage.get_all_trials(store.storage.get_study_id_from_name("one"))
    assert [list(one.constraints.values()) for one in frozen] == [[0.05], []]


def test_a_refinement_knows_only_trials_with_its_router_and_counts_its_own(store: StudyStore, lease: Lease) -> None:
    store.trials.append("one", trial(0, (1.0, 2.0), (0.0, 0.5)))
    store.trials.append("one", replace(trial(1, (0.5, 3.0), (0.0, 0.25)), round=1, router=0))
    first = SqlTrialStore(store, "one", lease, "first")
    assert [known.number for known in first.known()] == [0] and first.n_trials == 1
    again = SqlTrialStore(store, "one", lease, "again", round=2)
    assert [known.number for known in again.known()] == [0] and again.n_trials == 0
    refined = SqlTrialStore(store, "one", lease, "refined", round=1, router=0)
    assert [known.number for known in refined.known()] == [1] and refined.n_trials == 1
    # The front is that of the study, whichever router decided.
    assert [point.number for point in refined.front] == [1, 0]
    begun = refined.begin([Trial(9, (0.5, 0.5), "deap")])
    refined.finish([ended(one, (0.1, 1.0)) for one in begun])
    assert [(t.number, t.round, t.router) for t in store.trials.of("one")][-1] == (2, 1, 0)
    assert refined.n_trials == 2
