"""A study that is given another configuration does again what that changes, and nothing else."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import replace

import pytest

from search.config.run_config import RunConfig
from search.pipeline.create import reconfigure
from search.problem.objectives import OBJECTIVES
from search.stages.refine_rounds import begun, ended
from studies import StudyState, StudyStore
from studies.records.study_facts import Round, StudyFacts
from tests.studies.records import trial

BEGUN = RunConfig(workers=1, trials=3)
STAGES = ("search", "measure", "select", "time", "export")


@pytest.fixture
def store() -> Iterator[StudyStore]:
    """A study whose first search ended with two of its three trials."""
    with StudyStore("sqlite://") as store:
        store.studies.create("one", BEGUN.model_dump(), OBJECTIVES)
        for number in range(2):
            store.trials.append("one", trial(number, (1.0, 2.0)))
        for stage in STAGES:
            store.runs.begin_stage("one", stage)
            store.runs.end_stage("one", stage, StudyState.FINISHED)
        yield store


@pytest.mark.parametrize(
    ("changes", "asked", "kept"),
    [
        ({}, (), set(STAGES)),
        ({"workers": 2}, ("workers",), set(STAGES)),
        ({"trials": 5}, ("trials",), set(STAGES) - {"search"}),
        # The same as before, but asked for again.
        ({}, ("seconds",), set(STAGES) - {"search"}),
        # All of them were made: there is nothing to go on with.
        ({"trials": 2}, ("trials",), set(STAGES)),
        ({"export": "full"}, ("export",), set(STAGES) - {"export"}),
        ({"new_tokens": (128,)}, ("new_tokens",), set(STAGES) - {"time"}),
        ({"latency_length": (64, 128)}, ("latency_length",), set(STAGES) - {"time"}),
        ({"also_measure": (1,)}, ("also_measure",), set(STAGES) - {"measure"}),
        ({"select_trial": 1}, ("select_trial",), set(STAGES) - {"measure", "select"}),
        ({"out": "/elsewhere"}, ("out",), set(STAGES) - {"export"}),
    ],
)
def test_what_was_asked_for_says_which_stages_are_run_again(
    store: StudyStore, changes: dict[str, object], asked: Collection[str], kept: set[str]
) -> None:
    reconfigure(store, "one", BEGUN, BEGUN.model_copy(update=changes), asked)
    assert {stage.name for stage in store.runs.stages("one")} == kept
    assert store.studies.get("one").config["trials"] == changes.get("trials", 3)


def test_what_is_measured_already_is_only_selected(store: StudyStore) -> None:
    before = BEGUN.model_copy(update={"also_measure": (0, 1)})
    reconfigure(store, "one", before, before.model_copy(update={"select_trial": 1}))
    assert {stage.name for stage in store.runs.stages("one")} == set(STAGES) - {"select"}


@pytest.mark.parametrize(("asked_for", "goes_on"), [(2, False), (3, True)])
def test_more_trials_of_refinements_let_the_last_one_go_on(store: StudyStore, asked_for: int, goes_on: bool) -> None:
    store.studies.update_facts("one", StudyFacts(rounds=(ended(begun(Round(1, 0, 0), 2, 1.0), 2, 1.1),)))
    for number in (2, 3):
        store.trials.append("one", replace(trial(number, (1.0, 2.0)), round=1))
    store.runs.begin_stage("one", "refine-1")
    store.runs.end_stage("one", "refine-1", StudyState.FINISHED)
    reconfigure(store, "one", BEGUN, BEGUN.model_copy(update={"refine_trials": asked_for}), ("refine_trials",))
    assert ("refine-1" not in {stage.name for stage in store.runs.stages("one")}) == goes_on
