"""A study that goes to an Optuna database and comes back is what it was."""

from __future__ import annotations

import hashlib
from datetime import UTC, datetime
from pathlib import Path

import optuna
import pytest

from search.config.run_config import RunConfig
from studies import RouterRun, StorageError, StudyState, StudyStorage, StudyStore, copy_study, open_optuna
from studies.records.labels import Labels
from studies.records.study_facts import StudyFacts
from tests.studies.records import trial

# 128 KiB: more than some databases of Optuna's keep in one attribute.
WEIGHTS = bytes(range(256)) * 512


def router(number: int) -> RouterRun:
    return RouterRun(
        **{"trial": 1, "schedule": (0.25,) * 12, "config": {"stage": f"distill-{number}", "kind": "dynamic"}},
        **{"curves": {"step": [0.0, 1.0], "held_out_kl": [0.5, 0.25]}, "seconds": 1.5},
        **{"sha256": hashlib.sha256(WEIGHTS).hexdigest(), "created_at": datetime(2026, 1, 2, tzinfo=UTC)},
    )


def filled(url: str, config: RunConfig) -> None:
    with StudyStore(url) as store:
        labels = Labels(("müller", "a b"), "seems good\n100 %", "grid")
        store.studies.create("mine", config.model_dump(), ("kl", "flops"), labels=labels)
        for number in range(2):
            store.trials.append("mine", trial(number, (float(number), 10.0 - number), (number / 4,) * 12))
        store.routers.add("mine", router(1), WEIGHTS)
        store.studies.update_facts("mine", StudyFacts(n_blocks=12, rounds=()))
        store.studies.choose_trial("mine", 1)
        store.runs.begin_stage("mine", "search")
        store.runs.end_stage("mine", "search", StudyState.FINISHED)
        store.runs.keep_proposer_states("mine", {"deap": {"asked": 4}})
        store.runs.set_state("mine", StudyState.STOPPED)


def test_what_was_exported_is_imported_as_it_was(database_url: str, tmp_path: Path) -> None:
    filled(database_url, RunConfig(cost="flops", workers=1))
    other = f"sqlite:///{tmp_path / 'other.db'}"
    theirs = open_optuna(f"sqlite:///{tmp_path / 'theirs.db'}")
    copy_study(StudyStorage(database_url), theirs, "mine")
    # Optuna's users see nothing of it.
    assert optuna.load_study(study_name="mine", storage=theirs).user_attrs == {}
    copy_study(theirs, StudyStorage(other), "mine")
    with StudyStore(database_url) as before, StudyStore(other) as after:
        assert after.studies.get("mine") == before.studies.get("mine")
        assert after.studies.get("mine").labels.sweep == "grid"
        assert after.trials.of("mine") == before.trials.of("mine")
        assert after.runs.stages("mine") == before.runs.stages("mine")
        assert after.routers.of("mine") == before.routers.of("mine")
        assert after.runs.proposer_states("mine") == before.runs.proposer_states("mine")
        assert after.results.measurements("mine") == before.results.measurements("mine")
        assert after.storage.get_study_system_attrs(1) == before.storage.get_study_system_attrs(1)
        assert after.optuna.all() == []
    # And from one of our databases to another.
    third = StudyStorage(f"sqlite:///{tmp_path / 'third.db'}")
    copy_study(StudyStorage(other), third, "mine")
    with StudyStore(f"sqlite:///{tmp_path / 'third.db'}") as copied, StudyStore(other) as source:
        assert copied.studies.get("mine") == source.studies.get("mine")
        assert copied.routers.of("mine") == source.routers.of("mine")


def test_what_a_newer_program_exported_is_left_to_it(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'ours.db'}"
    filled(url, RunConfig(cost="flops", workers=1))
    theirs = open_optuna(f"sqlite:///{tmp_path / 'theirs.db'}")
    copy_study(StudyStorage(url), theirs, "mine")
    study_id = theirs.get_study_id_from_name("mine")
    first = theirs.get_study_system_attrs(study_id)["ftp-search:0"]
    theirs.set_study_system_attr(study_id, "ftp-search:0", first.replace('"revision": "0', '"revision": "9', 1))
    with pytest.raises(StorageError, match="exported by a program with schema revision 9"):
        copy_study(theirs, StudyStorage(f"sqlite:///{tmp_path / 'other.db'}"), "mine")
    assert StudyStorage(f"sqlite:///{tmp_path / 'other.db'}").get_all_studies() == []
