"""Whatever happens to the database, what it confirmed is there afterwards, and the error says what to do."""

from __future__ import annotations

import logging
import sqlite3
import threading
import time
from contextlib import suppress
from pathlib import Path

import pytest
import sqlalchemy as sa

from studies import StorageError, StudyState, StudyStore
from tests.studies.postgres import PostgresServer
from tests.studies.records import running, trial


@pytest.mark.parametrize("pause_s", [0.0, pytest.param(2.0, marks=pytest.mark.slow)])
def test_a_search_outlives_a_restart_of_its_database(
    postgres_server: PostgresServer, pause_s: float, caplog: pytest.LogCaptureFixture
) -> None:
    url = postgres_server.new_database()
    confirmed: list[int] = []
    under_way, restarted = threading.Event(), threading.Event()

    def search() -> None:
        with StudyStore(url) as store, store.runs.lease("one"):
            n = 0
            # However long the restart takes on a busy machine, trials go on before it and after it.
            while n < 200 or not restarted.is_set():
                number = store.trials.begin("one", [running((0.5, n / 1000), "deap")])[0].number
                store.trials.finish("one", [trial(number, (float(n), 1.0))])
                confirmed.append(number)
                n += 1
                if n == 100:
                    under_way.set()

    with StudyStore(url) as store:
        store.studies.create("one", {}, ("kl", "latency_ms"))
        worker = threading.Thread(target=search)
        with caplog.at_level(logging.WARNING, "studies"):
            worker.start()
            assert under_way.wait(60)
            postgres_server.stop()
            time.sleep(pause_s)
            postgres_server.start()
            restarted.set()
            worker.join(100)
        assert not worker.is_alive()
        ended = store.trials.of("one")
        assert len(confirmed) == len(set(confirmed)) >= 200
        assert [t.number for t in ended] == sorted(confirmed)
        # One whose confirmation was cut off may have been begun twice: it waits in the queue, and is in no result.
        with store.runs.lease("one"):
            assert len(store.trials.claim_waiting("one")) <= 1
    assert "does not answer" in caplog.text and "trying again in" in caplog.text
    assert "secret" not in caplog.text


def test_a_database_that_stays_away_is_given_up_with_what_to_do(postgres_server: PostgresServer) -> None:
    url = postgres_server.new_database()
    with StudyStore(url, patience_s=1.0) as store:
        store.studies.create("one", {}, ("kl", "latency_ms"))
        postgres_server.stop()
        try:
            with pytest.raises(StorageError, match="has not answered for 1 s.*then resume") as error:
                store.trials.begin("one", [running((0.5, 0.5), "deap")])
            assert "secret" not in str(error.value) and "\n" not in str(error.value)
            with pytest.raises(StorageError, match="Is its server running"):
                StudyStore(url)
        finally:
            postgres_server.start()


def test_who_leaves_while_the_database_is_away_is_not_kept(postgres_server: PostgresServer) -> None:
    url = postgres_server.new_database()
    with StudyStore(url) as store:
        store.studies.create("one", {}, ("kl", "latency_ms"))
        lease = store.runs.lease("one")
        lease.__enter__()

        def renew() -> None:
            with suppress(StorageError):
                lease.renew()

        postgres_server.stop()
        try:
            # A thread that waits for the database with all its patience does not keep it either.
            waiting = threading.Thread(target=renew)
            waiting.start()
            time.sleep(0.5)
            began = time.monotonic()
            with store.hurried(), pytest.raises(StorageError, match="has not answered"):
                store.runs.set_state("one", StudyState.STOPPED)
            lease.__exit__(KeyboardInterrupt)
            waiting.join(10)
            assert not waiting.is_alive() and time.monotonic() - began < 10
        finally:
            postgres_server.start()
        assert store.studies.get("one").name == "one"


def _limit(store: StudyStore, pragma: str) -> None:
    """Put SQLite itself into the state that a full disk or a read-only file puts it into."""
    engine = store.storage._database._engine
    engine.dispose()
    sa.event.listen(engine, "connect", lambda connection, _: connection.execute(pragma))


def _append_many(store: StudyStore) -> None:
    for number in range(1, 2000):
        store.trials.append("one", trial(number, (1.0, 2.0), (0.5,) * 32))


@pytest.mark.parametrize(
    ("pragma", "words"),
    [("PRAGMA max_page_count = 1", "database or disk is full"), ("PRAGMA query_only = ON", "readonly database")],
    ids=["full", "read-only"],
)
def test_a_full_disk_and_a_read_only_file_are_clear_errors_and_lose_nothing(
    tmp_path: Path, pragma: str, words: str
) -> None:
    url = f"sqlite:///{tmp_path / 'studies.db'}"
    with StudyStore(url) as store:
        store.studies.create("one", {}, ("kl", "latency_ms"))
        store.trials.append("one", trial(0, (1.0, 2.0)))
        _limit(store, pragma)
        with pytest.raises(StorageError, match=words) as error:
            _append_many(store)
        kept = store.trials.n_ended("one")
        assert "its disk has space" in str(error.value)
    with sqlite3.connect(tmp_path / "studies.db") as raw:
        assert raw.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    with StudyStore(url) as store:
        assert [t.number for t in store.trials.of("one")] == list(range(kept))
        store.trials.append("one", trial(kept, (1.0, 2.0)))


def test_a_password_is_nowhere(postgres_server: PostgresServer) -> None:
    url = postgres_server.new_database()
    with StudyStore(url) as store:
        store.studies.create("one", {"storage": str(store)}, ("kl",))
        shown = [repr(store), repr(store.storage), repr(store.storage._database), str(store.studies.get("one"))]
    with pytest.raises(StorageError) as error:
        StudyStore(url.replace("studies_", "none_"))
    assert all("secret" not in text for text in (*shown, str(error.value)))
