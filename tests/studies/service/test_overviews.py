"""The list of studies says of each what reading it alone would say, and asks as often for many studies as for one."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sized
from contextlib import contextmanager

import pytest
import sqlalchemy as sa

from studies import StudyState
from studies.service.service_store import ServiceStore
from tests.studies.records import trial


@pytest.fixture
def store(database_url: str) -> Iterator[ServiceStore]:
    with ServiceStore(database_url) as store:
        yield store


@contextmanager
def statements() -> Iterator[list[str]]:
    """What this thread asks databases meanwhile: leases are renewed beside it, of other tests' studies, too."""
    said: list[str] = []
    here = threading.get_ident()

    def note(connection: object, cursor: object, statement: str, *_: object) -> None:
        if threading.get_ident() == here:
            said.append(statement)

    sa.event.listen(sa.engine.Engine, "before_cursor_execute", note)
    try:
        yield said
    finally:
        sa.event.remove(sa.engine.Engine, "before_cursor_execute", note)


def _add(store: ServiceStore, name: str) -> None:
    store.create_submitted(name, {"trials": 3, "model": "demo"}, ("kl", "latency_ms"), by="ada")
    store.events.add(name, [("figures", {"figures": {"trials_per_s": 1.5}}), ("log", {"text": "on it"})])
    store.trials.append(name, trial(0, (0.5, 20.0)))
    store.studies.choose_trial(name, 0)


@pytest.mark.parametrize(
    "read", [lambda store: store.studies.summaries(), lambda store: store.queue.all(), ServiceStore.overviews]
)
def test_many_studies_are_asked_for_as_often_as_one(store: ServiceStore, read: Callable[[ServiceStore], Sized]) -> None:
    _add(store, "0")
    with statements() as for_one:
        assert len(read(store)) == 1
    for number in range(1, 8):
        _add(store, str(number))
    with store.runs.lease("3"), statements() as for_eight:
        assert len(read(store)) == 8
    assert len(for_eight) == len(for_one)


def test_the_list_says_what_each_study_says(store: ServiceStore) -> None:
    _add(store, "waits")
    _add(store, "runs")
    store.studies.create("alone", {}, ("kl",))
    store.trials.append("waits", trial(1, (0.25, 30.0)))
    store.events.add("waits", [("figures", {"figures": {"trials_per_s": 9.5}})])
    for name in ("waits", "runs"):
        store.runs.begin_stage(name, "search")
    with store.runs.lease("runs"):
        assert store.queue.claim("runs", "w") is not None
        store.runs.set_state("runs", StudyState.RUNNING)
        waits, runs, alone = store.overviews()
        for one in (waits, runs, alone):
            name = one.summary.name
            assert (one.config, one.objectives) == (store.studies.get(name).config, store.studies.get(name).objectives)
            assert one.summary.n_trials == store.trials.n_ended(name)
        assert [one.summary for one in (waits, runs, alone)] == store.studies.summaries()
        assert runs.summary.state is StudyState.RUNNING and runs.stage == "search"
    # Nobody is there who could be at a stage.
    assert waits.stage is None and waits.figures == {"trials_per_s": 9.5}
    assert waits.chosen_values == store.trials.get("waits", 0).values
    assert (alone.stage, dict(alone.figures), alone.chosen_values) == (None, {}, None)
