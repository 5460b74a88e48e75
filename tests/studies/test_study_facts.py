"""What is known of a study is a record with a version: facts change by name, and what was never set stays unsaid."""

from __future__ import annotations

import json

import pytest

from studies import StorageError, StudyStore
from studies.records.study_facts import (
    VERSION,
    Estimate,
    LongCompletions,
    Memory,
    ProfileRecord,
    StudyFacts,
    TunedTrial,
    Tuning,
)

FACTS = StudyFacts(
    unprotected_beginning=None,
    left_out={"too long": 2},
    long_completions=LongCompletions(64, 3),
    estimate=Estimate(
        seconds={"search": 2.0, "test": 1.0},
        evaluation_s=0.5,
        workers=2,
        memory=Memory(worker_bytes=10, process_bytes=5),
    ),
    tuning=Tuning((TunedTrial({"lr": 0.1}, 0.5, 10, 1.0),), {"lr": 0.1}, 1.0),
    latency_profile=ProfileRecord.model_validate({"batch": 8, "length": 64, "blocks": [0, 1], "conditions": None}),
)


def test_it_comes_back_from_its_json_as_it_was() -> None:
    stored = json.loads(json.dumps(FACTS.stored()))
    assert stored["version"] == VERSION
    found = StudyFacts.from_stored(stored)
    assert found == FACTS and found.model_fields_set == FACTS.model_fields_set
    assert found.latency_profile is not None
    assert found.latency_profile.to_json() == {"batch": 8, "length": 64, "blocks": [0, 1], "conditions": None}


def test_only_what_was_set_is_said_be_it_that_there_is_none() -> None:
    said = FACTS.to_json()
    assert said["unprotected_beginning"] is None and "n_blocks" not in said and "version" not in said
    assert (said["estimate"]["total_s"], said["estimate"]["total_bytes"]) == (3.0, 25)
    assert FACTS.to_json(("left_out", "keep_first")) == {"left_out": {"too long": 2}}
    assert FACTS.with_defaults(("left_out", "keep_first")) == {"left_out": {"too long": 2}, "keep_first": 0}


def test_a_change_replaces_what_it_sets_and_nothing_else() -> None:
    with StudyStore("sqlite://") as store:
        store.studies.create("one", {}, ("kl", "flops"))
        store.studies.update_facts("one", StudyFacts(n_blocks=2, blocks_run=3))
        store.studies.update_facts("one", StudyFacts(n_blocks=None))
        store.studies.update_facts("one", lambda known: StudyFacts(blocks_run=known.blocks_run + 4))
        assert store.studies.get("one").facts.to_json() == {"n_blocks": None, "blocks_run": 7}


def test_facts_of_a_newer_program_are_refused() -> None:
    with pytest.raises(StorageError, match="has version 999, which a newer program wrote, and this one reads"):
        StudyFacts.from_stored({"version": 999})


def test_a_fact_that_there_is_not_is_refused() -> None:
    with pytest.raises(ValueError, match="n_block"):
        StudyFacts(n_block=2)  # type: ignore[call-arg]
