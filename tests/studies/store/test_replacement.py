"""A study that replaces another one stands beside it until it takes its place, in one step."""

from __future__ import annotations

import pytest

from search.config.run_config import RunConfig
from search.problem.objectives import OBJECTIVES
from studies import StudyBusyError, StudyStore
from studies.records.study_facts import Origin
from tests.studies.records import trial

CONFIG = RunConfig(workers=1).model_dump()


def begun(url: str) -> StudyStore:
    """A database with a study of one trial."""
    store = StudyStore(url)
    store.studies.create("mine", CONFIG, OBJECTIVES)
    store.trials.append("mine", trial(0, (1.0, 2.0)))
    return store


def test_both_studies_have_the_name_each_in_its_own_eyes(database_url: str) -> None:
    with begun(database_url) as others, StudyStore(database_url) as store:
        store.studies.begin_replacement("mine", {**CONFIG, "seed": 7}, OBJECTIVES, [Origin("mine", "earlier")])
        assert store.studies.is_aside("mine") and not others.studies.is_aside("mine")
        with store.runs.lease("mine"), others.runs.lease("mine"):
            pass
        assert (store.trials.n_ended("mine"), store.studies.get("mine").config["seed"]) == (0, 7)
        assert store.studies.get("mine").facts.replaces == (Origin("mine", "earlier"),)
        assert (others.trials.n_ended("mine"), others.studies.get("mine").config["seed"]) == (1, 0)
        store.studies.take_place("mine")
        assert not store.studies.is_aside("mine") and store.studies.get("mine").config["seed"] == 7
        with StudyStore(database_url) as anew:
            assert [summary.name for summary in anew.studies.summaries()] == ["mine"]
            assert anew.studies.get("mine").config["seed"] == 7
        store.trials.append("mine", trial(0, (3.0, 4.0)))
        store.studies.take_place("mine")
        store.studies.abandon_replacement("mine")
        assert [one.values for one in store.trials.of("mine")] == [(3.0, 4.0)]


def test_what_does_not_take_its_place_leaves_nothing(database_url: str) -> None:
    with begun(database_url) as others, StudyStore(database_url) as store:
        for _ in range(2):
            store.studies.begin_replacement("mine", CONFIG, OBJECTIVES)
            store.studies.abandon_replacement("mine")
        # This one's process dies.
        store.studies.begin_replacement("mine", CONFIG, OBJECTIVES)
        with StudyStore(database_url) as again:
            again.studies.begin_replacement("mine", CONFIG, OBJECTIVES)
            again.studies.take_place("mine")
            assert [summary.name for summary in again.studies.summaries()] == ["mine"]
        assert others.studies.is_taken("mine")


def test_a_study_at_work_is_replaced_neither_at_the_beginning_nor_later(database_url: str) -> None:
    with begun(database_url) as others, StudyStore(database_url) as store:
        with others.runs.lease("mine"), pytest.raises(StudyBusyError, match="'mine' is being worked on"):
            store.studies.begin_replacement("mine", CONFIG, OBJECTIVES)
        store.studies.begin_replacement("mine", CONFIG, OBJECTIVES)
        with others.runs.lease("mine"), pytest.raises(StudyBusyError, match="'mine' is being worked on"):
            store.studies.take_place("mine")
        assert others.trials.n_ended("mine") == 1 and store.studies.is_aside("mine")
        with store.runs.lease("mine"), StudyStore(database_url) as third, pytest.raises(StudyBusyError):
            third.studies.begin_replacement("mine", CONFIG, OBJECTIVES)
