"""Submitted studies wait in order, are claimed by one runner at a time, and outlive whoever worked on them."""

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
from studies.records.compared import Compared
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

url, runner = sys.argv[1:]
claimed = []
with ServiceStore(url, create=False) as store:
    while names := store.queue.waiting():
        for name in names:
            try:
                with store.runs.lease(name):
                    if store.queue.claim(name, runner) is None:
                        continue
                    claimed.append(name)
                    time.sleep(0.01)
                    store.queue.end(name, runner)
            except StudyBusyError:
                continue
print(json.dumps(claimed))
"""
# Claims a study and dies over it.
DYING = """
import os, signal, sys
from studies.service.service_store import ServiceStore

store = ServiceStore(sys.argv[1], create=False)
with store.runs.lease("one"):
    assert store.queue.claim("one", "dying") is not None
    os.kill(os.getpid(), signal.SIGKILL)
"""
# Dies while a study that it has created is being handed to the runners.
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
        store.studies.create(name, {"trials": 3}, ("kl", "latency_ms"))


def _state(store: ServiceStore, name: str) -> SubmissionState:
    submission = store.queue.get(name)
    assert submission is not None
    return submission.state


def test_studies_wait_in_the_order_in_which_they_were_submitted(store: ServiceStore) -> None:
    _create(store, "a", "b", "c")
    assert store.queue.waiting() == [] and store.queue.get("a") is None
    for name in ("b", "c", "a"):
        store.queue.submit(name, by="ada")
    assert store.queue.waiting() == ["b", "c", "a"]
    with pytest.raises(StudyBusyError, match="waits for a runner already"):
        store.queue.submit("b")
    submission = store.queue.get("b")
    assert submission is not None and submission.submitted_by == "ada" and submission.runner is None


def test_a_study_is_created_and_submitted_or_neither(store: ServiceStore, database_url: str) -> None:
    died = subprocess.run(
        [sys.executable, "-c", DYING_BETWEEN, database_url], check=False, cwd=Path(__file__).parents[3]
    )
    assert died.returncode == -signal.SIGKILL
    assert store.studies.summaries() == [] and store.queue.waiting() == []
    # So the name is free for whoever tries again.
    store.create_submitted("one", {"trials": 3}, ("kl", "latency_ms"), by="ada")
    submission = store.queue.get("one")
    assert submission is not None and submission.submitted_by == "ada" and store.queue.waiting() == ["one"]
    assert store.studies.get("one").config == {"trials": 3}
    with pytest.raises(StudyExistsError):
        store.create_submitted("one", {"trials": 4}, ("kl", "latency_ms"))
    with store.runs.lease("one"):
        assert store.queue.claim("one", "w1") is not None


def test_who_holds_the_lease_claims_and_ends(store: ServiceStore) -> None:
    _create(store, "one")
    store.queue.submit("one", {"trials": 9})
    with store.runs.lease("one"):
        claimed = store.queue.claim("one", "w1")
        assert claimed is not None and claimed.changes == {"trials": 9}
        assert store.queue.waiting() == []
        with pytest.raises(StudyBusyError, match="being worked on"):
            store.queue.submit("one")
        store.queue.note_changed("one")
        # Another one's word does not count.
        store.queue.end("one", "w2")
        assert _state(store, "one") is SubmissionState.CLAIMED
        store.queue.end("one", "w1")
        assert store.queue.claim("one", "w1") is None
    assert _state(store, "one") is SubmissionState.ENDED
    store.queue.submit("one")
    assert store.queue.waiting() == ["one"]


def test_a_runner_that_leaves_returns_its_study_to_the_queue(store: ServiceStore) -> None:
    _create(store, "one")
    store.queue.submit("one", {"trials": 9})
    with store.runs.lease("one"):
        store.queue.claim("one", "w1")
        store.queue.release("one", "w1")
    assert store.queue.waiting() == ["one"]
    with store.runs.lease("one"):
        again = store.queue.claim("one", "w2")
        assert again is not None and again.runner == "w2" and again.changes == {"trials": 9}


@pytest.mark.parametrize("leave", ["end", "release"])
def test_who_leaves_a_study_lets_go_of_it_in_the_same_moment(store: ServiceStore, leave: str) -> None:
    _create(store, "one")
    store.queue.submit("one")
    theirs = store.runs.lease("one")
    with store.runs.lease("one") as ours:
        store.queue.claim("one", "w1", ours)
        # Another one's word does not count.
        store.queue.end("one", "w2", lease=ours)
        store.queue.release("one", "w2", lease=ours)
        assert ours.renew()
        if leave == "end":
            store.queue.end("one", "w1", lease=ours)
            store.queue.submit("one")
        else:
            store.queue.release("one", "w1", lease=ours)
        submission = store.queue.get("one")
        assert submission is not None and submission.is_waiting and submission.holder is None
        theirs.__enter__()
        assert store.queue.claim("one", "w2", theirs) is not None
        # It neither takes the study back nor, at its end, away from whoever has it now.
        assert not ours.renew()
    with pytest.raises(StudyBusyError, match="being worked on"):
        store.queue.submit("one")
    assert theirs.renew()
    theirs.__exit__()


def test_a_study_that_ends_as_it_is_claimed_is_let_go(store: ServiceStore) -> None:
    _create(store, "stopped", "kills")
    store.queue.submit("stopped")
    with store.runs.lease("stopped") as lease:
        store.queue.request_stop("stopped")
        assert store.queue.claim("stopped", "w1", lease) is None
        store.delete_study("stopped")
    store.queue.submit("kills")
    for number in range(MAX_DEATHS):
        with store.runs.lease("kills"):
            store.queue.claim("kills", f"w{number}")
    with store.runs.lease("kills") as lease:
        assert store.queue.claim("kills", "last", lease) is None
        store.delete_study("kills")


def test_a_lease_of_a_study_that_was_deleted_meanwhile_finds_none(store: ServiceStore) -> None:
    _create(store, "one")
    for is_begun_again in (False, True):
        lease = store.runs.lease("one")
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
                store.queue.submit("one")
        finally:
            sa.event.remove(sa.engine.Engine, "before_cursor_execute", delete)


def test_a_study_that_was_read_just_before_its_run_failed_is_not_shown_at_rest(store: ServiceStore) -> None:
    _create(store, "one")
    store.queue.submit("one")
    before = store.studies.get("one").state
    with store.runs.lease("one") as lease:
        store.queue.claim("one", "w1", lease)
        store.queue.end("one", "w1", "There is no such model.", lease)
    assert run_state(before, store.queue.get("one")) is RunState.RUNNING
    assert run_state(store.studies.get("one").state, store.queue.get("one")) is RunState.FAILED


def test_configurations_include_changes_that_are_yet_to_be_made(store: ServiceStore) -> None:
    _create(store, "alone", "changed")
    store.queue.submit("changed", {"out": "there"})
    assert store.queue.configurations() == {"alone": {"trials": 3}, "changed": {"trials": 3, "out": "there"}}
    store.queue.request_stop("changed")
    assert store.queue.configurations()["changed"] == {"trials": 3}


def test_a_study_that_waits_is_stopped_at_once_and_one_that_runs_by_its_runner(store: ServiceStore) -> None:
    _create(store, "waits", "runs")
    with pytest.raises(NotSubmittedError, match="nothing to stop"):
        store.queue.request_stop("waits")
    store.queue.submit("waits")
    store.queue.request_stop("waits")
    assert _state(store, "waits") is SubmissionState.ENDED and store.studies.get("waits").state is StudyState.STOPPED
    store.queue.submit("runs")
    with store.runs.lease("runs"):
        store.queue.claim("runs", "w1")
        assert not store.queue.stop_requested("runs", "w1")
        store.queue.request_stop("runs")
        assert store.queue.stop_requested("runs", "w1") and not store.queue.stop_requested("runs", "w2")
        # Whether it stops because it was told to, or because its runner leaves: it does not go on by itself.
        store.queue.release("runs", "w1")
    assert _state(store, "runs") is SubmissionState.ENDED and store.queue.waiting() == []


def test_a_study_that_somebody_else_runs_is_not_stopped_from_here(store: ServiceStore) -> None:
    _create(store, "one")
    with store.runs.lease("one"), pytest.raises(NotSubmittedError, match="no runner of the service"):
        store.queue.request_stop("one")


def test_a_failure_is_kept_until_the_study_is_submitted_again(store: ServiceStore) -> None:
    _create(store, "one")
    store.queue.submit("one")
    with store.runs.lease("one"):
        store.queue.claim("one", "w1")
        store.queue.end("one", "w1", "There is no such model.")
    submission = store.queue.get("one")
    assert submission is not None and submission.error == "There is no such model."
    assert store.studies.get("one").state is StudyState.FAILED
    store.queue.submit("one")
    submission = store.queue.get("one")
    assert submission is not None and submission.error is None


def test_a_study_whose_runner_was_killed_is_claimed_again(store: ServiceStore, database_url: str) -> None:
    _create(store, "one")
    store.queue.submit("one")
    subprocess.run([sys.executable, "-c", DYING, database_url], check=False, cwd=Path(__file__).parents[3])
    assert _state(store, "one") is SubmissionState.CLAIMED and store.queue.waiting() == ["one"]
    with store.runs.lease("one"):
        again = store.queue.claim("one", "w2")
        assert again is not None and again.runner == "w2"


def test_a_study_that_kills_every_runner_fails_in_the_end_unless_it_gets_on(store: ServiceStore) -> None:
    _create(store, "kills", "other")
    store.queue.submit("kills")
    store.queue.submit("other")
    for deaths in range(MAX_DEATHS):
        with store.runs.lease("kills"):
            assert store.queue.claim("kills", f"w{deaths}") is not None
        # Who died over it left the lease, but not the queue. Others are not kept waiting by it.
        assert store.queue.waiting() == (["kills", "other"] if deaths == 0 else ["other", "kills"])
    # One more trial, and it counts from the beginning.
    store.trials.append("kills", trial(0, (0.1, 5.0)))
    for deaths in range(MAX_DEATHS):
        with store.runs.lease("kills"):
            assert store.queue.claim("kills", f"v{deaths}") is not None
    with store.runs.lease("kills"):
        assert store.queue.claim("kills", "last") is None
    submission = store.queue.get("kills")
    assert submission is not None and submission.error is not None and "10 runners in a row" in submission.error
    assert store.studies.get("kills").state is StudyState.FAILED and store.queue.waiting() == ["other"]


def test_a_comparison_is_kept_until_it_is_done_and_leaves_the_study_as_it_stands(store: ServiceStore) -> None:
    _create(store, "one")
    store.runs.set_state("one", StudyState.FINISHED)
    plan = {"methods": ["a"], "targets": [0.25], "match": "latency", "seeds": 1}

    def claimed(runner: str) -> object:
        # Who died over it left the lease, but not the queue.
        with store.runs.lease("one"):
            submission = store.queue.claim("one", runner)
            return None if submission is None else submission.comparison

    store.queue.submit("one", comparison=plan)
    for deaths in range(MAX_DEATHS):
        assert claimed(f"w{deaths}") == plan
    # One more row, and it counts from the beginning.
    store.comparisons.keep("one", Compared("a", "", "latency", 0.25, 0, "c", None, "why"))
    for deaths in range(MAX_DEATHS):
        assert claimed(f"v{deaths}") == plan
    assert claimed("last") is None
    submission = store.queue.get("one")
    assert submission is not None and "10 runners in a row" in (submission.error or "")
    assert store.studies.get("one").state is StudyState.FINISHED
    for leave in (lambda: store.queue.end("one", "w", "broken"), lambda: store.queue.request_stop("one")):
        store.queue.submit("one", comparison=plan)
        assert claimed("w") == plan
        leave()
        assert store.studies.get("one").state is StudyState.FINISHED and not store.queue.waiting()
    store.queue.submit("one", {"trials": 9})
    assert claimed("w") is None and store.queue.waiting() == ["one"]


def test_four_runners_never_claim_one_study_twice(store: ServiceStore, database_url: str) -> None:
    names = [f"study {number}" for number in range(24)]
    _create(store, *names)
    for name in names:
        store.queue.submit(name)
    runners = [
        subprocess.Popen(
            [sys.executable, "-c", CLAIMING, database_url, f"w{number}"],
            stdout=subprocess.PIPE,
            text=True,
            cwd=Path(__file__).parents[3],
        )
        for number in range(4)
    ]
    claimed = [name for runner in runners for name in json.loads(runner.communicate(timeout=120)[0])]
    assert Counter(claimed) == Counter(names)
    assert all(_state(store, name) is SubmissionState.ENDED for name in names)


def test_events_are_numbered_without_gaps_and_old_ones_forgotten(store: ServiceStore) -> None:
    _create(store, "one", "never submitted")
    store.queue.submit("one")
    store.events.add("never submitted", [("log", {"text": "lost"})])
    assert store.events.of("never submitted") == []
    store.events.add("one", [("log", {"text": "a"}), ("figures", {"kl": float("nan"), "deep": [float("inf"), 1.5]})])
    store.events.add("one", [("log", {"text": "b"})])
    assert [(one.number, one.kind) for one in store.events.of("one")] == [(1, "log"), (2, "figures"), (3, "log")]
    assert store.events.of("one", after=1, limit=1)[0].content == {"kl": None, "deep": [None, 1.5]}
    assert [one.content["text"] for one in store.events.of("one", kinds=("log",))] == ["a", "b"]
    store.events.add("one", [("log", {"text": str(number)}) for number in range(MAX_EVENTS + 10)])
    kept = store.events.of("one", limit=MAX_EVENTS + 100)
    assert len(kept) == MAX_EVENTS and kept[-1].number == MAX_EVENTS + 13


def test_deleting_a_study_takes_its_place_in_the_queue_along(store: ServiceStore) -> None:
    _create(store, "one")
    store.queue.submit("one")
    store.events.add("one", [("log", {"text": "a"})])
    origin = store.events.generation("one")
    store.delete_study("one")
    assert store.queue.waiting() == [] and store.queue.all() == {}
    with pytest.raises(StudyNotFoundError):
        store.queue.get("one")
    _create(store, "one")
    assert store.queue.get("one") is None and store.events.generation("one") != origin


def test_a_study_that_another_process_deleted_and_began_again_is_found(store: ServiceStore, database_url: str) -> None:
    _create(store, "one")
    assert store.trials.n_ended("one") == 0
    with ServiceStore(database_url) as other:
        other.delete_study("one")
        with pytest.raises(StudyNotFoundError):
            store.studies.get("one")
        _create(other, "one")
    assert store.studies.get("one").config == {"trials": 3}


def test_runners_show_what_they_run_until_they_leave(store: ServiceStore) -> None:
    _create(store, "one")
    store.runners.beat("w1", None)
    store.runners.beat("w2", None)
    store.runners.beat("w1", "one")
    assert [(runner.id, runner.study, runner.is_alive) for runner in store.runners.all()] == [
        ("w1", "one", True),
        ("w2", None, True),
    ]
    store.runners.forget("w2")
    store.delete_study("one")
    assert [(runner.id, runner.study) for runner in store.runners.all()] == [("w1", None)]


def test_of_tokens_only_hashes_are_kept(tmp_path: Path) -> None:
    with ServiceStore(f"sqlite:///{tmp_path / 's.db'}") as store:
        secret = store.tokens.add("ada", Role.EDITOR)
        begun = store.tokens.begin_session(secret)
        assert begun is not None
    content = b"".join(path.read_bytes() for path in tmp_path.glob("s.db*"))
    assert b"ada" in content and begun[1].csrf.encode() in content
    assert secret.encode() not in content and begun[0].encode() not in content


def test_tokens_are_found_by_their_secret_alone(store: ServiceStore) -> None:
    assert not store.tokens.exist()
    reader, editor = store.tokens.add("bob", Role.READER), store.tokens.add("ada", Role.EDITOR)
    assert len(reader) >= 43 and store.tokens.exist()
    found = store.tokens.find(editor)
    assert found is not None and (found.name, found.role) == ("ada", Role.EDITOR)
    assert store.tokens.find("") is None and store.tokens.find(reader[:-1]) is None and store.tokens.find("ada") is None
    assert [token.name for token in store.tokens.all()] == ["bob", "ada"]
    with pytest.raises(TokenError, match="already"):
        store.tokens.add("ada", Role.READER)
    for name in ("", "\n", "x" * 101):
        with pytest.raises(TokenError, match="expected"):
            store.tokens.add(name, Role.READER)
    store.tokens.remove("ada")
    assert store.tokens.find(editor) is None
    with pytest.raises(TokenError, match="'bob'"):
        store.tokens.remove("ada")


def test_a_session_ends_when_it_is_ended_or_its_token_is_removed(store: ServiceStore) -> None:
    secret = store.tokens.add("ada", Role.EDITOR)
    assert store.tokens.begin_session("wrong") is None
    first, second = store.tokens.begin_session(secret), store.tokens.begin_session(secret)
    assert first is not None and second is not None and first[0] != second[0] and first[1].csrf != second[1].csrf
    assert store.tokens.session(first[0]) == first[1]
    store.tokens.end_session(first[0])
    assert store.tokens.session(first[0]) is None and store.tokens.session(second[0]) == second[1]
    store.tokens.remove("ada")
    assert store.tokens.session(second[0]) is None
