"""The pipeline chooses a schedule worth distilling, and leaves a study alone that it cannot work on."""

from __future__ import annotations

from pathlib import Path

import pytest
from rich.console import Console

from search.choosing import choose
from search.config import RunConfig
from search.errors import SearchError
from search.objectives import OBJECTIVES
from search.open_study import OpenStudy
from search.pipeline import Pipeline
from search.progress import ProgressView
from search.stages import Stages
from search.workload import load_workload
from studies import Lease, LeaseLostError, StorageError, StudyState, StudyStore, TrialRecord, front
from tests.studies.records import trial

SMALL = {"calibration_items": 4, "validation_items": 4, "test_items": 4, "search_items": 4}


def _points(*points: tuple[float, float, float]) -> list[TrialRecord]:
    return front([trial(n, schedule=(level,) * 4, values=values) for n, (level, *values) in enumerate(points)])


def _no_report(folder: Path) -> list[Path]:
    return []


def _stages(store: StudyStore, lease: Lease) -> Stages:
    view, config = ProgressView(Console(quiet=True)), RunConfig.stored(store.study("one").config)
    workload = load_workload(config.model, config.data, config.seed, config.sizes)
    return Stages(OpenStudy(store, "one", lease, config, workload, view))


def test_the_knee_is_chosen_without_a_target() -> None:
    points = _points((0.0, 0.0, 10.0), (0.4, 0.1, 4.0), (0.8, 2.0, 2.0))
    assert choose(points, None).number == 1


def test_a_front_that_bends_at_the_dense_model_yields_another_point() -> None:
    points = _points((0.0, 0.0, 10.0), (0.4, 1.0, 8.0))
    assert choose(points, None).number == 1
    assert choose(_points((0.0, 0.0, 10.0)), None).number == 0


def test_the_target_wins_over_the_knee() -> None:
    points = _points((0.0, 0.0, 10.0), (0.4, 0.1, 4.0), (0.8, 2.0, 2.0))
    assert choose(points, 0.75).number == 2


def test_a_stage_whose_preconditions_fail_leaves_the_state_alone() -> None:
    config = RunConfig(workers=1, **SMALL)
    view = ProgressView(Console(quiet=True))
    with StudyStore("sqlite://") as store:
        store.create_study("one", config.model_dump(), OBJECTIVES)
        workload = load_workload(config.model, config.data, config.seed, config.sizes)
        with store.lease("one") as lease:
            with pytest.raises(SearchError, match="no chosen schedule yet"):
                Pipeline(store, "one", lease, view, workload).distill_only(None, None, None, _no_report)
            assert store.study("one").state is StudyState.CREATED
            store.set_facts("one", {"data_fingerprint": "another"})
            with pytest.raises(SearchError, match="data changed"):
                Pipeline(store, "one", lease, view, workload)
        assert store.study("one").state is StudyState.CREATED


def test_who_lost_the_lease_says_nothing_more_about_the_study() -> None:
    config = RunConfig(workers=1, **SMALL)
    with StudyStore("sqlite://") as store:
        store.create_study("one", config.model_dump(), OBJECTIVES)
        with store.lease("one") as lease:
            stages = _stages(store, lease)
            for error, state in ((LeaseLostError, StudyState.RUNNING), (OSError, StudyState.FAILED)):
                with pytest.raises(error), stages.running(["search"]):
                    raise error("taken over")
                assert store.study("one").state is state


def test_an_interrupted_study_ends_as_such_even_if_that_cannot_be_written(monkeypatch: pytest.MonkeyPatch) -> None:
    config = RunConfig(workers=1, **SMALL)

    def away(*_: object) -> None:
        raise StorageError("The database has not answered.")

    with StudyStore("sqlite://") as store:
        store.create_study("one", config.model_dump(), OBJECTIVES)
        with store.lease("one") as lease:
            running = _stages(store, lease).running(["search"])
            running.__enter__()
            monkeypatch.setattr(store, "set_state", away)
            interrupt = KeyboardInterrupt()
            assert not running.__exit__(KeyboardInterrupt, interrupt, None)
        # It runs no more, since nobody works on it.
        assert store.study("one").state is StudyState.STOPPED


def test_a_study_whose_budget_is_used_still_gets_its_choice() -> None:
    config = RunConfig(workers=1, trials=2, **SMALL)
    with StudyStore("sqlite://") as store:
        store.create_study("one", config.model_dump(), OBJECTIVES)
        for number, level in enumerate((0.0, 0.5)):
            store.append_trial("one", trial(number, schedule=(level,) * 12, values=(level, 10 - 10 * level)))
        with store.lease("one") as lease:
            Pipeline(store, "one", lease, ProgressView(Console(quiet=True))).search_only()
        assert store.study("one").chosen_trial == 1
