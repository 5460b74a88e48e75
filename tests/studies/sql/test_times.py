"""Times mean the same moment wherever they were written and are read, and Optuna's users see what its storages give."""

from __future__ import annotations

import os
import subprocess
import sys
import uuid
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import optuna
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from optuna.storages import RDBStorage
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, create_trial

from studies import LoadedStudy, StudyStorage, StudyStore
from studies.records.trial import WorkSpan
from studies.service.service_store import ServiceStore
from studies.service.tokens import Role
from studies.sql.times import local_text
from studies.store.lease import holder
from tests.conftest import ROOT
from tests.studies.records import trial
from tests.studies.zones import in_zone

optuna.logging.set_verbosity(optuna.logging.ERROR)
TOKYO, NEW_YORK, LORD_HOWE = "Asia/Tokyo", "America/New_York", "Australia/Lord_Howe"
ZONES = st.sampled_from([TOKYO, NEW_YORK, LORD_HOWE, "UTC"])
# New York's clocks go forward on 8 March, and back on 1 November; Lord Howe's by half an hour on 5 April.
CHANGES = (datetime(2026, 3, 8, 7), datetime(2026, 11, 1, 6), datetime(2026, 4, 4, 15))

# A moment within three hours of a change, in UTC.
near_changes = st.builds(
    lambda change, minutes, micros: change.replace(tzinfo=UTC) + timedelta(minutes=minutes, microseconds=micros),
    st.sampled_from(CHANGES),
    st.integers(-180, 180),
    st.integers(0, 10**6),
)


def run(zone: str, url: str, code: str) -> None:
    """Run code in a process of another zone; it finds the database's address as `url`."""
    header = (
        "import sys; from datetime import UTC, datetime; from dataclasses import replace\n"
        "import optuna; from studies import StudyStore, Trial; from tests.studies.records import trial\n"
        "optuna.logging.set_verbosity(optuna.logging.ERROR); url = sys.argv[1]\n"
    )
    subprocess.run([sys.executable, "-c", header + code, url], check=True, cwd=ROOT, env={**os.environ, "TZ": zone})


BEGIN = """
with StudyStore(url) as store:
    store.studies.create("s", {}, ("kl", "latency_ms"))
    store.trials.begin("s", [Trial(0, (0.0, 0.5), "deap")] * 2)
    study = optuna.load_study(study_name="s", storage=store.storage)
    study.ask({f"block_{index}": optuna.distributions.FloatDistribution(0, 1) for index in range(2)})
    study.enqueue_trial({"block_0": 0.5, "block_1": 0.5})
"""
END = """
with StudyStore(url, create=False) as store:
    store.trials.finish("s", [replace(trial(number, (0.5, 1.0)), finished_at=datetime.now(UTC)) for number in (1, 0)])
    study = optuna.load_study(study_name="s", storage=store.storage)
    study.tell(2, [0.5, 1.0])
    queued = study.ask({f"block_{index}": optuna.distributions.FloatDistribution(0, 1) for index in range(2)})
    study.tell(queued, [0.5, 1.0])
"""


@pytest.mark.parametrize(("first", "second"), [(TOKYO, NEW_YORK), (NEW_YORK, TOKYO)])
def test_workers_of_several_zones_write_one_study(database_url: str, first: str, second: str) -> None:
    before = datetime.now(UTC)
    run(first, database_url, BEGIN)
    between = datetime.now(UTC)
    run(second, database_url, END)
    after = datetime.now(UTC)
    for zone in (TOKYO, NEW_YORK, "UTC"):
        with in_zone(zone), ServiceStore(database_url) as store:
            trials = optuna.load_study(study_name="s", storage=store.storage).trials
            assert len(trials) == 4
            for one in trials:
                assert one.datetime_start is not None and one.datetime_complete is not None
                begun, ended = one.datetime_start.astimezone(UTC), one.datetime_complete.astimezone(UTC)
                # The one that waited was begun where it was taken from the queue.
                assert before <= begun <= between if one.number < 3 else between <= begun <= ended
                assert between <= ended <= after
                assert one.duration == ended - begun
            by_end = [1, 0, 2, 3]
            assert sorted(range(4), key=lambda number: trials[number].datetime_complete or before) == by_end
            # Those of the search; the others are left aside.
            own = [one.datetime_complete.astimezone(UTC) for one in trials[:2] if one.datetime_complete]
            assert [one.finished_at for one in store.trials.of("s")] == own
            assert store.columns.of("s").finished_at.argsort().tolist() == by_end[:2]
            assert LoadedStudy(store, "s").trials().finished_at.sort_values().index.tolist() == by_end[:2]


def moments(study: optuna.Study) -> list[tuple[datetime | None, datetime | None, timedelta | None]]:
    return [(one.datetime_start, one.datetime_complete, one.duration) for one in study.trials]


def given_times(started: datetime, completed: datetime) -> FrozenTrial:
    made = create_trial(values=[1.0, 2.0])
    made.datetime_start, made.datetime_complete = started, completed
    return made


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    started=near_changes,
    seconds=st.integers(0, 7200),
    aware=st.booleans(),
    written=ZONES,
    read=ZONES,
)
@example(CHANGES[1].replace(tzinfo=UTC) - timedelta(minutes=5), 600, False, NEW_YORK, NEW_YORK)
def test_trials_that_are_told_have_the_times_that_optuna_gives(
    database_url: str,
    tmp_path: Path,
    started: datetime,
    seconds: int,
    aware: bool,
    written: str,
    read: str,
) -> None:
    urls = (f"sqlite:///{tmp_path / 'theirs.db'}", database_url)
    name = uuid.uuid4().hex
    with in_zone(written):
        ends = [moment.astimezone() for moment in (started, started + timedelta(seconds=seconds))]
        # As Optuna has them: of an hour that comes twice, nobody can say which one it is.
        told = given_times(*(moment if aware else moment.replace(tzinfo=None) for moment in ends))
        for storage in (RDBStorage(urls[0]), StudyStorage(urls[1])):
            storage.create_new_study([StudyDirection.MINIMIZE] * 2, name)
            optuna.load_study(study_name=name, storage=storage).add_trial(told)
    with in_zone(read):
        theirs = moments(optuna.load_study(study_name=name, storage=RDBStorage(urls[0])))
        ours = moments(optuna.load_study(study_name=name, storage=StudyStorage(urls[1])))
        assert ours == theirs
        assert all(moment is not None and moment.tzinfo is None for times in ours for moment in times[:2])


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(finished_at=near_changes, written=ZONES, read=ZONES)
@example(CHANGES[1].replace(tzinfo=UTC) + timedelta(minutes=30), NEW_YORK, NEW_YORK)
def test_results_have_the_moment_at_which_they_came(
    database_url: str, finished_at: datetime, written: str, read: str
) -> None:
    name = uuid.uuid4().hex
    work = (WorkSpan("0", finished_at.replace(microsecond=0), 0.5),)
    with in_zone(written), StudyStore(database_url) as store:
        store.studies.create(name, {}, ("kl", "latency_ms"))
        local = finished_at.astimezone()
        store.trials.append(name, replace(trial(0, (0.5, 1.0)), finished_at=local, work=work))
        store.trials.append(
            name, replace(trial(1, (0.5, 1.0)), finished_at=local.replace(tzinfo=None, fold=local.fold))
        )
    with in_zone(read), ServiceStore(database_url) as store:
        record, plain = store.trials.of(name)
        assert record.finished_at == finished_at and record.finished_at.tzinfo is UTC and record.work == work
        assert plain.finished_at.tzinfo is UTC
        assert store.columns.of(name).finished_at[0] == pytest.approx(finished_at.timestamp(), abs=1e-6)
        assert next(store.trials.each(name)).finished_at == finished_at


@pytest.mark.parametrize(("here", "there"), [(TOKYO, NEW_YORK), (NEW_YORK, TOKYO)])
def test_who_is_alive_is_told_by_the_databases_clock(database_url: str, here: str, there: str) -> None:
    before = datetime.now(UTC) - timedelta(seconds=1)
    with in_zone(here), ServiceStore(database_url) as store:
        store.studies.create("s", {}, ("kl", "latency_ms"))
        store.queue.submit("s")
        store.events.add("s", [("log", {"text": "a"})])
        secret = store.tokens.add("ada", Role.READER)
        begun = store.tokens.begin_session(secret)
        assert begun is not None
        with store.runs.lease("s"):
            store.runners.beat("w", "s")
            with in_zone(there), ServiceStore(database_url) as other:
                after = datetime.now(UTC) + timedelta(seconds=1)
                study_id = other.storage.get_study_id_from_name("s")
                held = other.storage._database.read(lambda connection: holder(connection, study_id))
                assert held is not None and held.alive and -1 < held.age_s < 60 and -1 < held.silent_s < 60
                [runner], [event] = other.runners.all(), other.events.of("s")
                assert runner.is_alive and -1 < runner.silent_s < 60
                submission = other.queue.get("s")
                assert submission is not None
                [token] = other.tokens.all()
                moments = (runner.began_at, event.at, submission.submitted_at, token.created_at)
                for moment in (*moments, other.studies.get("s").created_at):
                    assert before <= moment <= after and moment.utcoffset() == timedelta(0)
                assert other.tokens.session(begun[0]) is not None


@pytest.mark.parametrize(
    ("zone", "text"),
    [
        ("UTC", "2026-11-01 05:30 UTC"),
        (TOKYO, "2026-11-01 14:30 UTC+09:00"),
        ("America/St_Johns", "2026-11-01 02:00 UTC-03:30"),
        (NEW_YORK, "2026-11-01 01:30 UTC-04:00"),
    ],
)
def test_moments_are_shown_on_the_local_clock_with_its_zone(zone: str, text: str) -> None:
    with in_zone(zone):
        moment = datetime(2026, 11, 1, 5, 30, tzinfo=UTC)
        assert local_text(moment) == text
        if zone == NEW_YORK:
            # The same time again, an hour later.
            assert local_text(moment + timedelta(hours=1)) == "2026-11-01 01:30 UTC-05:00"
