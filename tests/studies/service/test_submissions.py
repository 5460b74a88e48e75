"""Submitted studies wait in order, are claimed by one worker at a time, and outlive whoever worked on them."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
import sqlalchemy as sa

from studies import StudyBusyError, StudyExistsError, StudyNotFoundError, StudyState
from studies.service.run_events import MAX_EVENTS
from studies.service.service_store import ServiceStore
from studies.service.submissions import MAX_DEATHS, NotSubmittedError, RunState, SubmissionState, run_state
from studies.service.tokens import Role, TokenError
from tests.studies.postgres import PostgresServer
from tests.studies.records import trial

# Claims whatever waits until nothing does, and says what it claimed.
CLAIMING = """
import json, sys, time
from studies import StudyBusyError
from studies.service.service_store import ServiceStore

url, worker = sys.argv[1:]
claimed = []
with ServiceStore(url, create=False) as store:
    while names := store.waiting():
        for name in names:
            try:
                with store.lease(name):
                    if store.claim(name, worker) is None:
                        continue
                    claimed.append(name)
                    time.sleep(0.01)
                    store.end(name, worker)
            except StudyBusyError:
                continue
print(json.dumps(claimed))
"""
# Claims a study and dies over it.
DYING = """
import os, signal, sys
from studies.service.service_store import ServiceStore

store = ServiceStore(sys.argv[1], create=False)
with store.lease("one"):
    assert store.claim("one", "dying") is not None
    os.kill(os.getpid(), signal.SIGKILL)
"""
# Dies while a study that it has created is being handed to the workers.
DYING_BETWEEN = """
import os, signal, sys
import sqlalchemy as sa
from studies.service.service_store import ServiceStore

def die(connection, cursor, statement, *_):
    if statement.startswith("INSERT INTO submission"):
        os.kill(os.getpid(), signal.SIGKILL)

store = ServiceStore(sys.argv[1], create=False)
sa.event.listen(sa.engine.Engine, "before_cursor_execute", die)
store.create_submitted("one", {"trials": 3}, ("kl", "latency_ms"))
"""


@pytest.fixture
def store(database_url: str) -> Iterator[ServiceStore]:
    with ServiceStore(database_url) as store:
        yield store


def _create(store: ServiceStore, *names: str) -> None:
    for name in names:
        store.create_study(name, {"trials": 3}, ("kl", "latency_ms"))


def _state(store: ServiceStore, name: str) -> SubmissionState:
    submission = store.submission(name)
    assert submission is not None
    return submission.state


def test_studies_wait_in_the_order_in_which_they_were_submitted(store: ServiceStore) -> None:
    _create(store, "a", "b", "c")
    assert store.waiting() == [] and store.submission("a") is None
    for name in ("b", "c", "a"):
        store.submit(name, by="ada")
    assert store.waiting() == ["b", "c", "a"]
    with pytest.raises(StudyBusyError, match="waits for a worker already"):
        store.submit("b")
    submission = store.submission("b")
    assert submission is not None and submission.submitted_by == "ada" and submission.worker is None


def test_a_study_is_created_and_submitted_or_neither(store: ServiceStore, database_url: str) -> None:
    died = subprocess.run(
        [sys.executable, "-c", DYING_BETWEEN, database_url], check=False, cwd=Path(__file__).parents[3]
    )
    assert died.returncode == -signal.SIGKILL
    assert store.summaries() == [] and store.waiting() == []
    # So the name is free for whoever tries again.
    store.create_submitted("one", {"trials": 3}, ("kl", "latency_ms"), by="ada")
    submission = store.submission("one")
    assert submission is not None and submission.submitted_by == "ada" and store.waiting() == ["one"]
    assert store.study("one").config == {"trials": 3}
    with pytest.raises(StudyExistsError):
        store.create_submitted("one", {"trials": 4}, ("kl", "latency_ms"))
    with store.lease("one"):
        assert store.claim("one", "w1") is not None


def test_who_holds_the_lease_claims_and_ends(store: ServiceStore) -> None:
    _create(store, "one")
    store.submit("one", {"trials": 9})
    with store.lease("one"):
        claimed = store.claim("one", "w1")
        assert claimed is not None and claimed.changes == {"trials": 9}
        assert store.waiting() == []
        with pytest.raises(StudyBusyError, match="being worked on"):
            store.submit("one")
        store.note_changed("one")
        # Another one's word does not count.
        store.end("one", "w2")
        assert _state(store, "one") is SubmissionState.CLAIMED
        store.end("one", "w1")
        assert store.claim("one", "w1") is None
    assert _state(store, "one") is SubmissionState.ENDED
    store.submit("one")
    assert store.waiting() == ["one"]


def test_a_worker_that_leaves_returns_its_study_to_the_queue(store: ServiceStore) -> None:
    _create(store, "one")
    store.submit("one", {"trials": 9})
    with store.lease("one"):
        store.claim("one", "w1")
        store.release("one", "w1")
    assert store.waiting() == ["one"]
    with store.lease("one"):
        again = store.claim("one", "w2")
        assert again is not None and again.worker == "w2" and again.changes == {"trials": 9}


@pytest.mark.parametrize("leave", ["end", "release"])
def test_who_leaves_a_study_lets_go_of_it_in_the_same_moment(store: ServiceStore, leave: str) -> None:
    _create(store, "one")
    store.submit("one")
    theirs = store.lease("one")
    with store.lease("one") as ours:
        store.claim("one", "w1", ours)
        # Another one's word does not count.
        store.end("one", "w2", lease=ours)
        store.release("one", "w2", lease=ours)
        assert ours.renew()
        if leave == "end":
            store.end("one", "w1", lease=ours)
            store.submit("one")
        else:
            store.release("one", "w1", lease=ours)
        submission = store.submission("one")
        assert submission is not None and submission.is_waiting and submission.holder is None
        theirs.__enter__()
        assert store.claim("one", "w2", theirs) is not None
        # It neither takes the study back nor, at its end, away from whoever has it now.
        assert not ours.renew()
    with pytest.raises(StudyBusyError, match="being worked on"):
        store.submit("one")
    assert theirs.renew()
    theirs.__exit__()


def test_a_study_that_ends_as_it_is_claimed_is_let_go(store: ServiceStore) -> None:
    _create(store, "stopped", "kills")
    store.submit("stopped")
    with store.lease("stopped") as lease:
        store.request_stop("stopped")
        assert store.claim("stopped", "w1", lease) is None
        store.delete_study("stopped")
    store.submit("kills")
    for number in range(MAX_DEATHS):
        with store.lease("kills"):
            store.claim("kills", f"w{number}")
    with store.lease("kills") as lease:
        assert store.claim("kills", "last", lease) is None
        store.delete_study("kills")


def test_a_lease_of_a_study_that_was_deleted_meanwhile_finds_none(store: ServiceStore) -> None:
    _create(store, "one")
    for is_begun_again in (False, True):
        lease = store.lease("one")
        store.delete_study("one")
        if is_begun_again:
            _create(store, "one")
        with pytest.raises(StudyNotFoundError, match="'one' was deleted"), lease:
            pytest.fail("there is nothing to work on")
        if not is_begun_again:
            _create(store, "one")


def test_a_study_that_is_deleted_while_it_is_submitted_is_not_found(postgres_server: PostgresServer) -> None:
    with ServiceStore(postgres_server.new_database()) as store:
        _create(store, "one")

        times = []

        def delete(connection: object, cursor: object, statement: str, *_: object) -> None:
            if statement.rstrip().endswith("FOR UPDATE") and not times:
                times.append(1)
                store.delete_study("one")

        sa.event.listen(sa.engine.Engine, "before_cursor_execute", delete)
        try:
            with pytest.raises(StudyNotFoundError):
                store.submit("one")
        finally:
            sa.event.remove(sa.engine.Engine, "before_cursor_execute", delete)


def test_a_study_that_was_read_just_before_its_run_failed_is_not_shown_at_rest(store: ServiceStore) -> None:
    _create(store, "one")
    store.submit("one")
    before = store.study("one").state
    with store.lease("one") as lease:
        store.claim("one", "w1", lease)
        store.end("one", "w1", "There is no such model.", lease)
    assert run_state(before, store.submission("one")) is RunState.RUNNING
    assert run_state(store.study("one").state, store.submission("one")) is RunState.FAILED


def test_configurations_include_changes_that_are_yet_to_be_made(store: ServiceStore) -> None:
    _create(store, "alone", "changed")
    store.submit("changed", {"out": "there"})
    assert store.configurations() == {"alone": {"trials": 3}, "changed": {"trials": 3, "out": "there"}}
    store.request_stop("changed")
    assert store.configurations()["changed"] == {"trials": 3}


def test_a_study_that_waits_is_stopped_at_once_and_one_that_runs_by_its_worker(store: ServiceStore) -> None:
    _create(store, "waits", "runs")
    with pytest.raises(NotSubmittedError, match="nothing to stop"):
        store.request_stop("waits")
    store.submit("waits")
    store.request_stop("waits")
    assert _state(store, "waits") is SubmissionState.ENDED and store.study("waits").state is StudyState.STOPPED
    store.submit("runs")
    with store.lease("runs"):
        store.claim("runs", "w1")
        assert not store.stop_requested("runs", "w1")
        store.request_stop("runs")
        assert store.stop_requested("runs", "w1") and not store.stop_requested("runs", "w2")
        # Whether it stops because it was told to, or because its worker leaves: it does not go on by itself.
        store.release("runs", "w1")
    assert _state(store, "runs") is SubmissionState.ENDED and store.waiting() == []


def test_a_study_that_somebody_else_runs_is_not_stopped_from_here(store: ServiceStore) -> None:
    _create(store, "one")
    with store.lease("one"), pytest.raises(NotSubmittedError, match="no worker of the service"):
        store.request_stop("one")


def test_a_failure_is_kept_until_the_study_is_submitted_again(store: ServiceStore) -> None:
    _create(store, "one")
    store.submit("one")
    with store.lease("one"):
        store.claim("one", "w1")
        store.end("one", "w1", "There is no such model.")
    submission = store.submission("one")
    assert submission is not None and submission.error == "There is no such model."
    assert store.study("one").state is StudyState.FAILED
    store.submit("one")
    submission = store.submission("one")
    assert submission is not None and submission.error is None


def test_a_study_whose_worker_was_killed_is_claimed_again(store: ServiceStore, database_url: str) -> None:
    _create(store, "one")
    store.submit("one")
    subprocess.run([sys.executable, "-c", DYING, database_url], check=False, cwd=Path(__file__).parents[3])
    assert _state(store, "one") is SubmissionState.CLAIMED and store.waiting() == ["one"]
    with store.lease("one"):
        again = store.claim("one", "w2")
        assert again is not None and again.worker == "w2"


def test_a_study_that_kills_every_worker_fails_in_the_end_unless_it_gets_on(store: ServiceStore) -> None:
    _create(store, "kills", "other")
    store.submit("kills")
    store.submit("other")
    for deaths in range(MAX_DEATHS):
        with store.lease("kills"):
            assert store.claim("kills", f"w{deaths}") is not None
        # Who died over it left the lease, but not the queue. Others are not kept waiting by it.
        assert store.waiting() == (["kills", "other"] if deaths == 0 else ["other", "kills"])
    # One more trial, and it counts from the beginning.
    store.append_trial("kills", trial(0, (0.1, 5.0)))
    for deaths in range(MAX_DEATHS):
        with store.lease("kills"):
            assert store.claim("kills", f"v{deaths}") is not None
    with store.lease("kills"):
        assert store.claim("kills", "last") is None
    submission = store.submission("kills")
    assert submission is not None and submission.error is not None and "10 workers in a row" in submission.error
    assert store.study("kills").state is StudyState.FAILED and store.waiting() == ["other"]


def test_four_workers_never_claim_one_study_twice(store: ServiceStore, database_url: str) -> None:
    names = [f"study {number}" for number in range(24)]
    _create(store, *names)
    for name in names:
        store.submit(name)
    workers = [
        subprocess.Popen(
            [sys.executable, "-c", CLAIMING, database_url, f"w{number}"],
            stdout=subprocess.PIPE,
            text=True,
            cwd=Path(__file__).parents[3],
        )
        for number in range(4)
    ]
    claimed = [name for worker in workers for name in json.loads(worker.communicate(timeout=120)[0])]
    assert Counter(claimed) == Counter(names)
    assert all(_state(store, name) is SubmissionState.ENDED for name in names)


def test_events_are_numbered_without_gaps_and_old_ones_forgotten(store: ServiceStore) -> None:
    _create(store, "one", "never submitted")
    store.submit("one")
    store.add_events("never submitted", [("log", {"text": "lost"})])
    assert store.events("never submitted") == []
    store.add_events("one", [("log", {"text": "a"}), ("figures", {"kl": float("nan"), "deep": [float("inf"), 1.5]})])
    store.add_events("one", [("log", {"text": "b"})])
    assert [(one.number, one.kind) for one in store.events("one")] == [(1, "log"), (2, "figures"), (3, "log")]
    assert store.events("one", after=1, limit=1)[0].content == {"kl": None, "deep": [None, 1.5]}
    assert [one.content["text"] for one in store.events("one", kinds=("log",))] == ["a", "b"]
    store.add_events("one", [("log", {"text": str(number)}) for number in range(MAX_EVENTS + 10)])
    kept = store.events("one", limit=MAX_EVENTS + 100)
    assert len(kept) == MAX_EVENTS and kept[-1].number == MAX_EVENTS + 13


def test_deleting_a_study_takes_its_place_in_the_queue_along(store: ServiceStore) -> None:
    _create(store, "one")
    store.submit("one")
    store.add_events("one", [("log", {"text": "a"})])
    origin = store.events_of("one")
    store.delete_study("one")
    assert store.waiting() == [] and store.submissions() == {}
    with pytest.raises(StudyNotFoundError):
        store.submission("one")
    _create(store, "one")
    assert store.submission("one") is None and store.events_of("one") != origin


def test_a_study_that_another_process_deleted_and_began_again_is_found(store: ServiceStore, database_url: str) -> None:
    _create(store, "one")
    assert store.n_trials("one") == 0
    with ServiceStore(database_url) as other:
        other.delete_study("one")
        with pytest.raises(StudyNotFoundError):
            store.study("one")
        _create(other, "one")
    assert store.study("one").config == {"trials": 3}


def test_workers_show_what_they_run_until_they_leave(store: ServiceStore) -> None:
    _create(store, "one")
    store.beat("w1", None)
    store.beat("w2", None)
    store.beat("w1", "one")
    assert [(worker.id, worker.study, worker.is_alive) for worker in store.workers()] == [
        ("w1", "one", True),
        ("w2", None, True),
    ]
    store.forget_worker("w2")
    store.delete_study("one")
    assert [(worker.id, worker.study) for worker in store.workers()] == [("w1", None)]


def test_of_tokens_only_hashes_are_kept(tmp_path: Path) -> None:
    with ServiceStore(f"sqlite:///{tmp_path / 's.db'}") as store:
        secret = store.add_token("ada", Role.EDITOR)
        begun = store.begin_session(secret)
        assert begun is not None
    content = b"".join(path.read_bytes() for path in tmp_path.glob("s.db*"))
    assert b"ada" in content and begun[1].csrf.encode() in content
    assert secret.encode() not in content and begun[0].encode() not in content


def test_tokens_are_found_by_their_secret_alone(store: ServiceStore) -> None:
    assert not store.has_tokens()
    reader, editor = store.add_token("bob", Role.READER), store.add_token("ada", Role.EDITOR)
    assert len(reader) >= 43 and store.has_tokens()
    found = store.token(editor)
    assert found is not None and (found.name, found.role) == ("ada", Role.EDITOR)
    assert store.token("") is None and store.token(reader[:-1]) is None and store.token("ada") is None
    assert [token.name for token in store.tokens()] == ["bob", "ada"]
    with pytest.raises(TokenError, match="already"):
        store.add_token("ada", Role.READER)
    for name in ("", "\n", "x" * 101):
        with pytest.raises(TokenError, match="expected"):
            store.add_token(name, Role.READER)
    store.remove_token("ada")
    assert store.token(editor) is None
    with pytest.raises(TokenError, match="'bob'"):
        store.remove_token("ada")


def test_a_session_ends_when_it_is_ended_or_its_token_is_removed(store: ServiceStore) -> None:
    secret = store.add_token("ada", Role.EDITOR)
    assert store.begin_session("wrong") is None
    first, second = store.begin_session(secret), store.begin_session(secret)
    assert first is not None and second is not None and first[0] != second[0] and first[1].csrf != second[1].csrf
    assert store.session(first[0]) == first[1]
    store.end_session(first[0])
    assert store.session(first[0]) is None and store.session(second[0]) == second[1]
    store.remove_token("ada")
    assert store.session(second[0]) is None
