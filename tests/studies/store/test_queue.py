"""Trials that were begun are never lost and never done twice, whoever dies."""

from __future__ import annotations

import multiprocessing
import os
import signal
import time
from collections.abc import Iterator
from dataclasses import replace
from multiprocessing.synchronize import Event

import pytest
import sqlalchemy as sa

from studies import StudyBusyError, StudyState, StudyStore
from studies.records.study_facts import StudyFacts
from studies.sql import schema
from studies.store.lease import DEAD_AFTER_S
from tests.studies.records import running, trial

SPAWN = multiprocessing.get_context("spawn")


@pytest.fixture
def store(database_url: str) -> Iterator[StudyStore]:
    with StudyStore(database_url) as store:
        store.studies.create("one", {}, ("kl", "latency_ms"))
        yield store


def test_a_trial_that_was_begun_ends_once(store: StudyStore) -> None:
    number = store.trials.begin("one", [running((0.0, 0.5), "deap")])[0].number
    assert (number, store.trials.of("one"), store.trials.n_ended("one")) == (0, [], 0)
    assert store.trials.finish("one", [trial(0, (1.0, 2.0))])
    assert not store.trials.finish("one", [trial(0, (3.0, 4.0))])
    assert store.trials.of("one") == [trial(0, (1.0, 2.0))]
    assert store.trials.begin("one", [running((0.1, 0.5), "deap")])[0].number == 1


def test_trials_of_a_dead_owner_return_to_the_queue_once(store: StudyStore) -> None:
    for level in (0.1, 0.2, 0.3):
        store.trials.begin("one", [running((level,), "tpe")])
    store.trials.finish("one", [replace(trial(1, (1.0, 2.0)), schedule=(0.2,))])
    assert store.trials.claim_waiting("one") == []
    with store.runs.lease("one"):
        queue = store.trials.claim_waiting("one")
        assert [(q.number, q.schedule, q.proposer) for q in queue] == [(0, (0.1,), "tpe"), (2, (0.3,), "tpe")]
        assert store.trials.claim_waiting("one") == []
        store.trials.finish("one", [replace(trial(2, (1.0, 2.0)), schedule=(0.3,))])
    with store.runs.lease("one"):
        assert [q.number for q in store.trials.claim_waiting("one")] == [0]


def test_a_study_that_is_worked_on_is_refused_with_who_does(store: StudyStore, database_url: str) -> None:
    with store.runs.lease("one"), StudyStore(database_url, create=False) as other:
        with pytest.raises(StudyBusyError, match=f"process {os.getpid()} on .*last seen 0 s ago"):
            other.runs.lease("one").__enter__()
        with pytest.raises(StudyBusyError):
            other.delete_study("one")
        other.studies.create("two", {}, ("kl",))
        with other.runs.lease("two"):
            pass
    with store.runs.lease("one"):
        pass


def _hold(url: str, holding: Event) -> None:
    with StudyStore(url) as store, store.runs.lease("one"):
        store.runs.set_state("one", StudyState.RUNNING)
        store.trials.begin("one", [running((0.5,), "deap")])
        holding.set()
        time.sleep(600)


def test_a_killed_process_is_noticed_at_once_on_its_machine(store: StudyStore, database_url: str) -> None:
    holding = SPAWN.Event()
    process = SPAWN.Process(target=_hold, args=(database_url, holding))
    process.start()
    assert holding.wait(60)
    assert store.studies.get("one").state is StudyState.RUNNING
    with pytest.raises(StudyBusyError, match=f"process {process.pid}"):
        store.runs.lease("one").__enter__()
    os.kill(process.pid or 0, signal.SIGKILL)
    process.join()
    assert store.studies.get("one").state is StudyState.STOPPED
    with store.runs.lease("one"):
        assert [q.schedule for q in store.trials.claim_waiting("one")] == [(0.5,)]


def test_a_silent_holder_elsewhere_loses_its_lease_and_is_told(store: StudyStore, database_url: str) -> None:
    lease = store.runs.lease("one")
    lease.__enter__()
    engine = sa.create_engine(database_url)
    table = schema.lease

    def silent_for(seconds: float) -> None:
        with engine.begin() as connection:
            elsewhere = {"host": "elsewhere/", "renewed_at": table.c.renewed_at - seconds}
            connection.execute(sa.update(table).values(**elsewhere))

    silent_for(DEAD_AFTER_S - 10)
    with pytest.raises(StudyBusyError, match="on elsewhere"):
        store.runs.lease("one").__enter__()
    silent_for(11)
    with store.runs.lease("one"):
        lease.check()
        lease.renew()
        with pytest.raises(Exception, match="taken over"):
            lease.check()
        lease.__exit__()
        with pytest.raises(StudyBusyError, match=f"process {os.getpid()}"):
            store.runs.lease("one").__enter__()
    engine.dispose()


def _begin(url: str, n: int) -> None:
    with StudyStore(url) as store:
        for _ in range(n):
            number = store.trials.begin("one", [running((0.5, 0.25), "deap")])[0].number
            store.trials.finish("one", [trial(number, (float(number), 1.0))])
            store.studies.update_facts("one", lambda known: StudyFacts(blocks_run=known.blocks_run + 1))


def test_eight_processes_number_trials_without_gaps_and_lose_no_update(store: StudyStore, database_url: str) -> None:
    workers = [SPAWN.Process(target=_begin, args=(database_url, 25)) for _ in range(8)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert [worker.exitcode for worker in workers] == [0] * 8
    trials = store.trials.of("one")
    assert [t.number for t in trials] == list(range(200))
    assert all(t.values == (float(t.number), 1.0) for t in trials)
    assert store.studies.get("one").facts.blocks_run == 200
