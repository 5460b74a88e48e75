"""A study that goes to an Optuna database and comes back is what it was."""

from __future__ import annotations

import hashlib
from datetime import UTC, datetime
from pathlib import Path

import optuna
import pytest

from search.config.run_config import RunConfig
from studies import RouterRun, StorageError, StudyState, StudyStorage, StudyStore, copy_study, open_optuna
from tests.studies.records import trial

# 128 KiB: more than some databases of Optuna's keep in one attribute.
WEIGHTS = bytes(range(256)) * 512


def router(number: int) -> RouterRun:
    return RouterRun(
        **{"trial": 1, "schedule": (0.25,) * 12, "config": {"stage": f"distill-{number}", "kind": "dynamic"}},
        **{"curves": {"step": [0.0, 1.0], "held_out_kl": [0.5, 0.25]}, "weights": WEIGHTS, "seconds": 1.5},
        **{"sha256": hashlib.sha256(WEIGHTS).hexdigest(), "created_at": datetime(2026, 1, 2, tzinfo=UTC)},
    )


def filled(url: str, config: RunConfig) -> None:
    with StudyStore(url) as store:
        store.create_study("mine", config.model_dump(), ("kl", "flops"))
        for number in range(2):
            store.append_trial("mine", trial(number, (float(number), 10.0 - number), (number / 4,) * 12))
        store.add_router_run("mine", router(1))
        store.set_facts("mine", {"n_blocks": 12, "rounds": []})
        store.choose_trial("mine", 1)
        store.begin_stage("mine", "search")
        store.end_stage("mine", "search", StudyState.FINISHED)
        store.keep_proposer_states("mine", {"deap": {"asked": 4}})
        store.set_state("mine", StudyState.STOPPED)


def test_what_was_exported_is_imported_as_it_was(database_url: str, tmp_path: Path) -> None:
    filled(database_url, RunConfig(cost="flops", workers=1))
    other = f"sqlite:///{tmp_path / 'other.db'}"
    theirs = open_optuna(f"sqlite:///{tmp_path / 'theirs.db'}")
    copy_study(StudyStorage(database_url), theirs, "mine")
    # Optuna's users see nothing of it.
    assert optuna.load_study(study_name="mine", storage=theirs).user_attrs == {}
    copy_study(theirs, StudyStorage(other), "mine")
    with StudyStore(database_url) as before, StudyStore(other) as after:
        assert after.study("mine") == before.study("mine")
        assert after.trials("mine") == before.trials("mine")
        assert after.stages("mine") == before.stages("mine")
        assert after.router_runs("mine") == before.router_runs("mine")
        assert after.proposer_states("mine") == before.proposer_states("mine")
        assert after.measurements("mine") == before.measurements("mine")
        assert after.storage.get_study_system_attrs(1) == before.storage.get_study_system_attrs(1)
        assert after.optuna_studies() == []
    # And from one of our databases to another.
    third = StudyStorage(f"sqlite:///{tmp_path / 'third.db'}")
    copy_study(StudyStorage(other), third, "mine")
    with StudyStore(f"sqlite:///{tmp_path / 'third.db'}") as copied, StudyStore(other) as source:
        assert copied.study("mine") == source.study("mine")
        assert copied.router_runs("mine") == source.router_runs("mine")


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
