"""A study keeps what its proposers have done, without a transaction for every trial."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pytest

from search import ledger as module
from search.ledger import StudyLedger
from search.proposers.tally import ProposerTally
from studies import StudyStore
from tests.studies.records import trial

TALLY = ProposerTally(asked=5, repeated=1, finished=2, seconds=0.5)


@pytest.fixture
def store() -> Iterator[StudyStore]:
    with StudyStore("sqlite://") as store:
        store.create_study("one", {}, ("kl", "latency_ms"))
        yield store


def test_tallies_are_written_once_a_second_and_when_that_is_asked_for(
    store: StudyStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    with store.lease("one") as lease:
        ledger = StudyLedger(store, "one", lease, [])
        ledger.tally({"deap": TALLY})
        assert store.proposer_states("one") == []
        ledger.keep_tallies()
        assert [state.state["asked"] for state in store.proposer_states("one")] == [5]
        ledger.tally({"deap": replace(TALLY, asked=6)})
        assert [state.state["asked"] for state in store.proposer_states("one")] == [5]
        monkeypatch.setattr(module, "_SECONDS_BETWEEN_TALLIES", 0.0)
        ledger.tally({"deap": replace(TALLY, asked=7)})
        assert [state.state["asked"] for state in store.proposer_states("one")] == [7]


def test_finished_trials_are_counted_anew_after_a_kill(store: StudyStore) -> None:
    store.keep_proposer_states("one", {"deap": {"asked": 5, "finished": 1, "of a newer program": True}})
    trials = [trial(0, (1.0, 2.0)), trial(1, (1.0, 2.0)), trial(2, None)]
    with store.lease("one") as lease:
        tallies = StudyLedger(store, "one", lease, trials).tallies()
    assert tallies == {"deap": ProposerTally(asked=5, finished=2)}
