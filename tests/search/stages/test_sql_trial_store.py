"""A study as a ledger keeps every result in one transaction with its trial, and knows what other studies found."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pytest

from ftp_core.schedule import SparsitySchedule
from search.engine.engine import SearchEngine
from search.engine.termination import Stopping
from search.engine.trial_store import Begun, Result
from search.evaluators import Evaluation, Task
from search.problem.space import ScheduleSpace
from search.problem.trial import Outcome
from search.proposers.proposer_stats import ProposerTally
from search.stages import sql_trial_store as module
from search.stages.sql_trial_store import StudyLedger
from studies import Lease, StudyStore, TrialState, front
from studies.pareto import ParetoArchive
from tests.search.synthetic import Notebook, ShufflingEvaluator, judge, portfolio
from tests.studies.records import trial

TALLY = ProposerTally(asked=5, repeated=1, finished=2, seconds=0.5)


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


def test_tallies_are_written_once_a_second_and_when_that_is_asked_for(
    store: StudyStore, lease: Lease, monkeypatch: pytest.MonkeyPatch
) -> None:
    ledger = StudyLedger(store, "one", lease, "context")
    ledger.tally({"deap": TALLY})
    assert store.runs.proposer_states("one") == []
    ledger.keep_tallies()
    assert [state.state["asked"] for state in store.runs.proposer_states("one")] == [5]
    ledger.tally({"deap": replace(TALLY, asked=6)})
    assert [state.state["asked"] for state in store.runs.proposer_states("one")] == [5]
    monkeypatch.setattr(module, "_SECONDS_BETWEEN_TALLIES", 0.0)
    ledger.tally({"deap": replace(TALLY, asked=7)})
    assert [state.state["asked"] for state in store.runs.proposer_states("one")] == [7]


def test_finished_trials_are_counted_anew_after_a_kill(store: StudyStore, lease: Lease) -> None:
    store.runs.keep_proposer_states(
        "one", {"deap": {"asked": 5, "finished": 1, "gain": 0.5, "of a newer program": True}}
    )
    for record in (trial(0, (1.0, 2.0)), trial(1, (1.0, 2.0)), trial(2, None)):
        store.trials.append("one", record)
    tallies = StudyLedger(store, "one", lease, "context").tallies()
    assert tallies == {"deap": ProposerTally(asked=5, finished=2)}


def test_a_refinement_remembers_what_was_gained_with_other_routers(store: StudyStore, lease: Lease) -> None:
    values = [(4.0, 4.0), (1.0, 2.0), (0.5, 3.0), (0.1, 1.0)]
    for number, (proposer, one) in enumerate(zip(("anchor", "deap", "tpe", "tpe"), values, strict=True)):
        # The last one breaks a constraint.
        store.trials.append("one", replace(trial(number, one), proposer=proposer, violation=float(number == 3)))
    archive = ParetoArchive()
    gained = [archive.add(one) for one in values[:3]]
    refined = StudyLedger(store, "one", lease, "context", round=1, router=0).tallies()
    assert {name: tally.gain for name, tally in refined.items()} == {"anchor": 0.0, "deap": gained[1], "tpe": gained[2]}
    # Those with its own router the engine learns again.
    assert not any(tally.gain for tally in StudyLedger(store, "one", lease, "context", round=1).tallies().values())


def test_the_engine_finds_the_same_in_a_study_as_in_memory_and_goes_on_after_a_stop(
    store: StudyStore, lease: Lease
) -> None:
    space, book = ScheduleSpace(4), Notebook()
    options = {"deterministic": True, "fidelities": (0.25, 1.0)}
    SearchEngine(space, portfolio(space, by_trial=True), ShufflingEvaluator(3, fails=1000), judge, book, **options).run(
        Stopping(80)
    )
    for _ in range(2):
        ledger = StudyLedger(store, "one", lease, "context")
        engine = SearchEngine(space, portfolio(space, by_trial=True), ShufflingEvaluator(5), judge, ledger, **options)
        assert engine.run(Stopping(40)) == 40
    kept = store.trials.of("one")
    assert [
        (t.number, Begun(SparsitySchedule(t.schedule), t.proposer, t.parents), t.values, t.fidelity, t.metrics)
        for t in kept
    ] == [
        (number, begun, outcome.values, outcome.fidelity, metrics) for number, begun, outcome, metrics in book.trials()
    ]
    assert sum(len(t.parents) for t in kept) > 20
    assert {t.state for t in kept} == {TrialState.FINISHED, TrialState.PRUNED}
    assert ledger.front == front(kept) and ledger.n_trials == 80


def test_an_evaluation_is_known_to_every_study_of_its_context_unless_it_was_partial(
    store: StudyStore, lease: Lease
) -> None:
    ledger = StudyLedger(store, "one", lease, "context")
    schedules = [SparsitySchedule((level, 0.1)) for level in (0.0, 0.3, 0.5)]
    numbers = ledger.begin([Begun(schedule, "deap") for schedule in schedules])
    assert numbers == [0, 1, 2] and [queued.number for queued in ledger.queue()] == []
    results = []
    for number, schedule, fidelity in zip(numbers, schedules, (1.0, 0.25, 1.0), strict=True):
        evaluation = Evaluation(Task(schedule), {"kl": 0.1}, seconds=2.0)
        outcome = Outcome((0, 2), (0.1, 3.0), fidelity=fidelity) if number < 2 else None
        results.append(Result(number, "deap", evaluation, outcome))
    ledger.finish(results)
    with store.runs.lease("other") as others:
        known = StudyLedger(store, "other", others, "context").recall(schedules)
        assert [None if one is None else (dict(one.metrics), one.seconds) for one in known] == [
            ({"kl": 0.1}, 0.0),
            None,
            None,
        ]
        assert StudyLedger(store, "other", others, "another").recall(schedules) == [None] * 3


def test_trials_that_break_a_constraint_are_kept_and_are_no_part_of_the_front(store: StudyStore, lease: Lease) -> None:
    ledger = StudyLedger(store, "one", lease, "context")
    schedules = [SparsitySchedule((level, 0.1)) for level in (0.0, 0.3)]
    numbers = ledger.begin([Begun(schedule, "deap") for schedule in schedules])
    ledger.finish(
        [
            Result(number, "deap", Evaluation(Task(schedule), {"kl": kl}), Outcome((0, 2), (kl, 3.0), violation))
            for number, schedule, kl, violation in zip(numbers, schedules, (0.1, 0.2), (0.05, 0.0), strict=True)
        ]
    )
    kept = store.trials.of("one")
    assert [record.violation for record in kept] == [0.05, 0.0]
    assert [point.number for point in front(kept)] == [point.number for point in ledger.front] == [1]
    frozen = store.storage.get_all_trials(store.storage.get_study_id_from_name("one"))
    assert [list(one.constraints.values()) for one in frozen] == [[0.05], []]


def test_a_refinement_knows_only_trials_with_its_router_and_counts_its_own(store: StudyStore, lease: Lease) -> None:
    store.trials.append("one", trial(0, (1.0, 2.0), (0.0, 0.5)))
    store.trials.append("one", replace(trial(1, (0.5, 3.0), (0.0, 0.25)), round=1, router=0))
    first = StudyLedger(store, "one", lease, "first")
    assert [known.number for known in first.known()] == [0] and first.n_trials == 1
    again = StudyLedger(store, "one", lease, "again", round=2)
    assert [known.number for known in again.known()] == [0] and again.n_trials == 0
    refined = StudyLedger(store, "one", lease, "refined", round=1, router=0)
    assert [known.number for known in refined.known()] == [1] and refined.n_trials == 1
    # The front is that of the study, whichever router decided.
    assert [point.number for point in refined.front] == [1, 0]
    [number] = refined.begin([Begun(SparsitySchedule((0.5, 0.5)), "deap")])
    evaluation = Evaluation(Task(SparsitySchedule((0.5, 0.5))), {"kl": 0.1})
    refined.finish([Result(number, "deap", evaluation, Outcome((10, 10), (0.1, 1.0)))])
    assert [(t.number, t.round, t.router) for t in store.trials.of("one")][-1] == (2, 1, 0)
    assert refined.n_trials == 2
