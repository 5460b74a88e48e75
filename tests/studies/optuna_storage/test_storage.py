"""Optuna's own tests of a storage, on both databases, and what they do not ask."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import sqlalchemy as sa
from optuna.distributions import FloatDistribution
from optuna.study import StudyDirection
from optuna.testing.pytest_storages import StorageTestCase
from optuna.trial import TrialState, create_trial

from studies import StudyStorage


class TestAsOptunaTestsIt(StorageTestCase):
    @pytest.fixture
    def storage(self, database_url: str) -> Iterator[StudyStorage]:
        storage = StudyStorage(database_url)
        yield storage
        storage.close()


@pytest.fixture
def storage(database_url: str) -> Iterator[StudyStorage]:
    storage = StudyStorage(database_url)
    yield storage
    storage.close()


def test_a_trial_that_was_just_begun_shows_what_was_written_into_it(
    storage: StudyStorage, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    study_id = storage.create_new_study([StudyDirection.MINIMIZE])
    own, others = (storage.create_new_trial(study_id) for _ in range(2))
    storage.set_trial_user_attr(own, "key", 1)
    assert storage.get_trial(own).user_attrs == {"key": 1}
    elsewhere = StudyStorage(database_url)
    elsewhere.set_trial_user_attr(others, "key", 2)
    elsewhere.close()
    # As if what a trial is begun with were no longer taken for what it is.
    monkeypatch.setattr("studies.optuna_storage.running._HOLD_S", 0.0)
    assert storage.get_trial(others).user_attrs == {"key": 2}


def test_a_trial_runs_for_the_first_who_takes_it_from_the_queue(storage: StudyStorage, database_url: str) -> None:
    study_id = storage.create_new_study([StudyDirection.MINIMIZE])
    waiting = storage.create_new_trial(study_id, create_trial(state=TrialState.WAITING))
    elsewhere = StudyStorage(database_url)
    assert elsewhere.set_trial_state_values(waiting, TrialState.RUNNING)
    elsewhere.close()
    assert not storage.set_trial_state_values(waiting, TrialState.RUNNING)
    assert storage.get_all_trials(study_id, states=()) == []


def test_what_waits_is_found_by_its_own_index(tmp_path: Path) -> None:
    storage = StudyStorage(f"sqlite:///{tmp_path / 'studies.db'}")
    study_id = storage.create_new_study([StudyDirection.MINIMIZE])
    said: list[tuple[str, object]] = []
    engine = storage._database._engine
    sa.event.listen(engine, "before_cursor_execute", lambda *event: said.append((event[2], event[3])))
    storage.get_all_trials(study_id, states=(TrialState.WAITING,))
    [(statement, values)] = said
    with engine.connect() as connection:
        plan = connection.exec_driver_sql(f"EXPLAIN QUERY PLAN {statement}", values).all()
    assert any("ix_trial_unfinished" in step[-1] for step in plan)
    storage.close()


def test_a_study_that_is_gone_takes_no_trials(storage: StudyStorage) -> None:
    study_id = storage.create_new_study([StudyDirection.MINIMIZE])
    template = create_trial(params={"x": 0.5}, distributions={"x": FloatDistribution(0, 1)}, value=0.0)
    storage.create_new_trial(study_id, template)
    storage.create_new_trial(study_id, template)
    storage.delete_study(study_id)
    for given in (None, template):
        with pytest.raises(KeyError, match=f"no study with id {study_id}"):
            storage.create_new_trial(study_id, given)
