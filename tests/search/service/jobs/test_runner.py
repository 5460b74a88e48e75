"""Runners: which files they open, how they leave, and that two of them share what waits."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from ftp_core.baselines import baseline
from ftp_core.schedule import SparsitySchedule
from search.comparison.plan import ComparisonPlan
from search.config.run_config import RunConfig
from search.errors import ConfigError
from search.service.jobs.runner import Runner
from search.service.rules.roots import Reach, check_reach
from studies import StudyState
from studies.records.study_facts import StudyFacts
from studies.service.service_store import ServiceStore
from studies.service.submissions import Queue, RunState, SubmissionState, run_state
from studies.store.lease import Lease
from studies.store.runs import Runs
from tests.dashboards.report.test_methods import MODEL
from tests.search.service.running import REPOSITORY, TINY, serving, until, working
from tests.studies.postgres import PostgresServer
from tests.studies.records import trial

OBJECTIVES = ("kl", "flops")

# A runner that is told to leave while it claims a study.
LEAVING = """
import os, signal, sys
import sqlalchemy as sa
from search.service.jobs.runner import Runner

def leave(connection, cursor, statement, *_):
    if statement.startswith("UPDATE submission"):
        sa.event.remove(sa.engine.Engine, "before_cursor_execute", leave)
        os.kill(os.getpid(), signal.SIGTERM)

runner = Runner(sys.argv[1], lambda *_: [])
sa.event.listen(sa.engine.Engine, "before_cursor_execute", leave)
try:
    runner.run()
except KeyboardInterrupt:
    sys.exit(130)
"""

# A runner that is told to leave while code runs that swallows whatever is raised.
SWALLOWING = """
import gc, os, signal, sys
from pathlib import Path
from search.service.rules.roots import Reach
from search.service.jobs.runner import Runner

def swallow():
    try:
        os.kill(os.getpid(), signal.SIGTERM)
    except KeyboardInterrupt:
        pass

gc.collect = swallow
try:
    Runner(sys.argv[1], lambda *_: [], reach=Reach((), Path("/nowhere"))).run()
except KeyboardInterrupt:
    sys.exit(130)
"""


@pytest.fixture
def reach(tmp_path: Path) -> Reach:
    (tmp_path / "root").mkdir()
    (tmp_path / "elsewhere").mkdir()
    return Reach(roots=((tmp_path / "root").resolve(),), out=(tmp_path / "out").resolve())


@pytest.fixture
def postgres_url(require_system_dep: Callable[[str], Path]) -> Iterator[str]:
    server = PostgresServer(require_system_dep("initdb").parent)
    yield server.new_database()
    server.remove()


def _config(**changes: Any) -> dict[str, Any]:
    return RunConfig.checked(**{**TINY, **changes}).model_dump()


def _submit(store: ServiceStore, name: str, folder: Path, **changes: Any) -> None:
    store.create_submitted(name, _config(out=str(folder / name), **changes), OBJECTIVES)


def test_files_below_the_roots_and_results_below_out_are_within_reach(reach: Reach) -> None:
    root = reach.roots[0]
    check_reach(RunConfig(out=str(reach.out / "one")), "one", reach)
    check_reach(RunConfig(model=str(root / "m"), data=str(root / "d.jsonl"), out=str(root / "o")), "one", reach)
    hub = RunConfig(model="org/model", out=str(root / "o"))
    check_reach(hub, "one", Reach(reach.roots, reach.out, hub=True))
    with pytest.raises(ConfigError, match="model is 'org/model'"):
        check_reach(hub, "one", reach)


def test_a_relative_path_begins_where_the_runner_does(reach: Reach, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(reach.roots[0])
    check_reach(RunConfig(data="d.jsonl"), "one", reach)
    # It is a model of the Hub wherever there is no such folder.
    with pytest.raises(ConfigError, match="model is 'org/model'"):
        check_reach(RunConfig(model="org/model"), "one", reach)
    monkeypatch.chdir("..")
    with pytest.raises(ConfigError, match="out is 'ftp-out/one'"):
        check_reach(RunConfig(), "one", reach)


@pytest.mark.parametrize("field", ["model", "data", "out"])
@pytest.mark.parametrize("place", ["elsewhere/x", "root/../elsewhere", "root/link", "root-and-more"])
def test_a_study_that_names_a_path_elsewhere_fails_before_it_is_opened(
    store: ServiceStore, reach: Reach, tmp_path: Path, field: str, place: str
) -> None:
    (reach.roots[0] / "link").symlink_to(tmp_path / "elsewhere")
    _submit(store, "one", reach.out, **{} if field == "out" else {field: str(tmp_path / place)})
    if field == "out":
        store.studies.set_config("one", _config(out=str(tmp_path / place)))
    runner = Runner(store.url, lambda *_: pytest.fail("a report was written"), reach=reach)
    assert runner.run_next()
    submission = store.queue.get("one")
    assert submission is not None and submission.state is SubmissionState.ENDED and submission.error is not None
    assert f"{field} is {str(tmp_path / place)!r}" in submission.error and str(reach.roots[0]) in submission.error
    assert store.studies.get("one").state is StudyState.FAILED
    # What a model or data leave behind once they are read.
    assert store.runs.stages("one") == [] and store.studies.get("one").facts == StudyFacts()
    assert list((tmp_path / "elsewhere").iterdir()) == [] and not reach.out.exists()


def test_a_changed_path_is_looked_at_too(store: ServiceStore, reach: Reach, tmp_path: Path) -> None:
    _submit(store, "one", reach.out)
    store.queue.request_stop("one")
    store.queue.submit("one", {"out": str(tmp_path / "elsewhere")})
    assert Runner(store.url, lambda *_: pytest.fail("a report was written"), reach=reach).run_next()
    submission = store.queue.get("one")
    assert submission is not None and submission.error is not None and "out is" in submission.error
    assert store.studies.get("one").config["out"] == str(reach.out / "one")


def test_runners_of_a_service_have_its_roots(tmp_path: Path) -> None:
    (tmp_path / "root").mkdir()
    (tmp_path / "data.jsonl").write_text(json.dumps({"prompt": "?", "completion": "!"}))
    with (
        serving(tmp_path, "--root", tmp_path / "root", "--out", tmp_path / "results") as (_, client),
        ServiceStore(f"sqlite:///{tmp_path / 'ftp-studies.db'}") as store,
    ):
        # Not over HTTP, where it would be refused.
        _submit(store, "one", tmp_path / "results", data=str(tmp_path / "data.jsonl"))
        _submit(store, "two", tmp_path, data="demo")
        for name, named in (("one", "data.jsonl"), ("two", "results")):
            found = client.wait(name, 240)
            assert found["state"] == "failed" and str(tmp_path / "root") in found["run"]["error"]
            assert named in found["run"]["error"]


def test_a_runner_that_is_told_to_leave_while_it_claims_a_study_does_not_keep_it(
    store: ServiceStore, tmp_path: Path
) -> None:
    _submit(store, "one", tmp_path)
    left = subprocess.run([sys.executable, "-c", LEAVING, store.url], check=False, cwd=REPOSITORY, timeout=120)
    assert left.returncode == 130
    submission = store.queue.get("one")
    assert submission is not None and submission.state is SubmissionState.QUEUED and submission.holder is None
    assert store.queue.waiting() == ["one"] and store.runs.stages("one") == [] and store.runners.all() == []


def test_a_runner_leaves_though_the_word_to_leave_was_swallowed(store: ServiceStore, tmp_path: Path) -> None:
    _submit(store, "one", tmp_path)
    # It is reminded after 30 s, when the service has killed it already.
    left = subprocess.run([sys.executable, "-c", SWALLOWING, store.url], check=False, cwd=REPOSITORY, timeout=25)
    assert left.returncode == 130 and store.runners.all() == []


def test_a_study_that_is_deleted_as_a_runner_takes_it_keeps_the_runner_from_nothing(
    store: ServiceStore, reach: Reach, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _submit(store, "gone", tmp_path / "elsewhere")
    _submit(store, "next", tmp_path / "elsewhere")
    taken = Runs.lease

    def lease(self: Runs, name: str) -> Lease:
        found = taken(self, name)
        if name == "gone" and self is not store.runs:
            store.delete_study(name)
        return found

    monkeypatch.setattr(Runs, "lease", lease)
    assert Runner(store.url, lambda *_: [], reach=reach).run_next()
    assert store.queue.waiting() == [] and list(store.queue.all()) == ["next"]


def test_a_comparison_goes_on_where_a_runner_left_it_and_the_study_stays_finished(
    store: ServiceStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.studies.create("one", _config(out=str(tmp_path / "one"), device="cpu", latency_length=(48,)), OBJECTIVES)
    store.trials.append("one", trial(0, (0.3, 5.0), SparsitySchedule([0.0] * 6 + [0.7] * 6)))
    store.studies.choose_trial("one", 0)
    store.runs.begin_stage("one", "report")
    store.runs.end_stage("one", "report", StudyState.FINISHED)
    store.runs.set_state("one", StudyState.FINISHED)
    store.queue.submit("one", comparison=asdict(ComparisonPlan(("last_k",), (0.3,), "flops")))
    last_k, reported = type(baseline("last_k")), []

    def fit(*_: object) -> None:
        # One that has taken it, and is told to leave.
        assert run_state(store.studies.get("one").state, store.queue.get("one")) is RunState.RUNNING
        raise KeyboardInterrupt

    def report(_: object, name: str, folder: Path) -> list[Path]:
        reported.append((name, folder, len(store.comparisons.of(name))))
        return []

    # What measuring comes to is not the question here.
    monkeypatch.setattr("search.comparison.compare._Comparing._measured", lambda *_: MODEL)
    with monkeypatch.context() as patched:
        patched.setattr(last_k, "fit", fit)
        with pytest.raises(KeyboardInterrupt):
            Runner(store.url, report).run_next()
    assert [one.method for one in store.comparisons.of("one")] == ["ours"] and store.queue.waiting() == ["one"]
    assert store.studies.get("one").state is StudyState.FINISHED and not reported
    # What is known is not done again.
    monkeypatch.setattr("search.comparison.compare.OwnSchedules.fit", fit)
    assert Runner(store.url, report).run_next()
    rows = store.comparisons.of("one")
    assert [(one.method, one.model is None) for one in rows] == [("ours", False), ("last_k", False)]
    submission = store.queue.get("one")
    assert submission is not None and submission.error is None
    assert run_state(store.studies.get("one").state, submission) is RunState.FINISHED
    assert reported == [("one", tmp_path / "one", 2)]
    said = [(one.kind, one.content) for one in store.events.of("one")]
    assert ("began", {"stages": ["compare"]}) in said and said[-1] == ("ended", {"state": "finished"})
    assert ("stage", {"stage": "compare", "state": "stopped"}) in said
    assert ("figures", {"stage": "compare", "step": 2, "figures": {"rows": 2}}) in said
    assert [one.name for one in store.runs.stages("one")] == ["report", "compare"]


def test_a_study_that_is_shown_at_rest_can_be_touched_at_once(
    store: ServiceStore, reach: Reach, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _submit(store, "one", tmp_path / "elsewhere")
    end = Queue.end
    seen = []

    def touch(self: Queue, name: str, *rest: Any) -> None:
        end(self, name, *rest)
        seen.append(run_state(store.studies.get(name).state, store.queue.get(name)))
        store.queue.submit(name)
        store.queue.request_stop(name)
        store.delete_study(name)

    monkeypatch.setattr(Queue, "end", touch)
    runner = Runner(store.url, lambda *_: [], reach=reach)
    assert runner.run_next()
    assert seen == [RunState.FAILED] and store.studies.summaries() == []


def test_a_study_that_a_leaving_runner_returns_can_be_taken_at_once(
    store: ServiceStore, reach: Reach, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _submit(store, "one", tmp_path / "elsewhere")
    release = Queue.release
    taken = []

    def take(self: Queue, name: str, *rest: Any) -> None:
        release(self, name, *rest)
        with store.runs.lease(name):
            taken.append(store.queue.claim(name, "another"))

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Queue, "release", take)
    monkeypatch.setattr("search.service.jobs.runner.check_reach", interrupt)
    with pytest.raises(KeyboardInterrupt):
        Runner(store.url, lambda *_: [], reach=reach).run_next()
    assert len(taken) == 1 and taken[0] is not None and taken[0].runner == "another"


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_a_runner_that_is_told_to_leave_hands_its_study_on_at_once(tmp_path: Path) -> None:
    storage = f"sqlite:///{tmp_path / 'ftp-studies.db'}"
    with ServiceStore(storage) as store:
        _submit(store, "one", tmp_path, trials=120)
        with working(tmp_path, storage) as (process, said):
            until(lambda: store.trials.n_ended("one") > 5)
            process.send_signal(signal.SIGTERM)
            # A hasty scheduler says it twice.
            process.send_signal(signal.SIGTERM)
            assert process.wait(60) == 130, said.read_text()
        submission = store.queue.get("one")
        # It does not only seem to be free because its holder is known to be dead.
        assert submission is not None and submission.state is SubmissionState.QUEUED and submission.holder is None
        assert run_state(store.studies.get("one").state, submission) is RunState.QUEUED
        assert store.runners.all() == [] and 5 < store.trials.n_ended("one") < 120
        with working(tmp_path, storage, "--until-idle") as (process, said):
            assert process.wait(600) == 0, said.read_text()
        assert store.studies.get("one").state is StudyState.FINISHED
        trials = store.trials.of("one")
        assert [trial.number for trial in trials] == list(range(120))
        assert len({trial.schedule for trial in trials}) == 120


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_two_runners_on_postgresql_share_the_studies_and_run_each_once(tmp_path: Path, postgres_url: str) -> None:
    names = ("one", "two")
    with ServiceStore(postgres_url) as store, ExitStack() as stack:
        logs = [stack.enter_context(working(tmp_path, postgres_url))[1] for _ in names]
        until(lambda: sum(runner.is_alive for runner in store.runners.all()) == 2)
        # Whoever has the first one is busy until it is stopped, so that the other runner has the second.
        _submit(store, "one", tmp_path, trials=100_000)
        until(lambda: store.trials.n_ended("one") > 0)
        _submit(store, "two", tmp_path, trials=8)
        until(lambda: store.studies.get("two").state in (StudyState.FINISHED, StudyState.FAILED), 600)
        store.queue.request_stop("one")
        ended = lambda name: store.queue.get(name).state is SubmissionState.ENDED  # noqa: E731
        until(lambda: all(ended(name) for name in names) and store.queue.waiting() == [])
        texts = [log.read_text() for log in logs]
        states = [store.studies.get(name).state for name in names]
        assert states == [StudyState.STOPPED, StudyState.FINISHED], texts
        # Each has had one of them.
        begun = sorted(
            (name, place) for name in names for place, text in enumerate(texts) if f"{name!r} begins" in text
        )
        assert [name for name, _ in begun] == [*names] and {place for _, place in begun} == {0, 1}
        for name in names:
            numbers = [trial.number for trial in store.trials.of(name)]
            assert numbers == list(range(len(numbers) if name == "one" else 8))
            began = store.events.of(name, kinds=("began", "ended"))
            assert [event.kind for event in began] == ["began", "ended"]


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_runner_runs_studies_on_a_cluster_and_one_without_it_goes_on_with_them(tmp_path: Path) -> None:
    from ray.cluster_utils import Cluster

    storage = f"sqlite:///{tmp_path / 'ftp-studies.db'}"
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
    with ServiceStore(storage) as store:

        def work(*arguments: str) -> None:
            with working(tmp_path, storage, "--until-idle", *arguments) as (process, said):
                assert process.wait(240) == 0, said.read_text()

        try:
            cluster.add_node(num_cpus=1)
            for seed, name in enumerate(("one", "two")):
                _submit(store, name, tmp_path, trials=12, workers=2, deterministic=False, seed=seed)
                # It leaves the cluster running, for itself and for others.
                work("--ray-address", cluster.address)
                assert store.studies.get(name).state is StudyState.FINISHED
                trials = store.trials.of(name)
                assert [trial.number for trial in trials] == list(range(12))
                # One of them may have started when the other had done all.
                here = socket.gethostname()
                assert {trial.worker for trial in trials} <= {f"0 on {here}", f"1 on {here}"}
        finally:
            cluster.shutdown()
        store.queue.submit("one", {"trials": 16})
        work()
        assert [trial.number for trial in store.trials.of("one")] == list(range(16))
        assert store.studies.get("one").state is StudyState.FINISHED
