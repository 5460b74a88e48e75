"""The pipeline chooses a schedule worth distilling, and leaves a study alone that it cannot work on."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

import search.pipeline.pipeline
from ftp_core.routers import OnePassRouter
from ftp_core.schedule import SparsitySchedule
from ftp_core.training.distillation_config import DistillationConfig
from search.config.run_config import RunConfig
from search.errors import SearchError
from search.inputs.data import load_workload
from search.pipeline.pipeline import Pipeline
from search.problem.objectives import OBJECTIVES
from search.progress.progress_view import ProgressView
from search.stages.distill import train_router
from search.stages.knee import choose_from_front
from search.stages.measure import timed_prompts
from search.stages.open_study import OpenStudy
from search.stages.refine import refine
from search.stages.stage_states import Stages
from studies import LeaseLostError, RouterRun, StorageError, StudyState, StudyStore, Trial, best_point, front, load
from studies.records.study_facts import StudyFacts, TimedInput
from studies.records.target import Target
from studies.store.lease import Lease
from tests.studies.records import trial

SMALL = {"calibration_items": 4, "validation_items": 4, "test_items": 4, "search_items": 4}


@pytest.fixture
def store_of_one(tmp_path: Path) -> Iterator[OpenStudy]:
    """A study with nothing in it."""
    config = RunConfig(workers=1, router="dynamic", **SMALL)
    with StudyStore(f"sqlite:///{tmp_path / 'ftp-studies.db'}") as store:
        store.studies.create("one", config.model_dump(), OBJECTIVES)
        workload = load_workload(config.model, config.data, config.seed, config.sizes)
        with store.runs.lease("one") as lease:
            yield OpenStudy(store, "one", lease, config, workload, ProgressView(Console(quiet=True)))


def _points(*points: tuple[float, float, float]) -> list[Trial]:
    return front([trial(n, schedule=(level,) * 4, values=values) for n, (level, *values) in enumerate(points)])


def _no_report(folder: Path) -> list[Path]:
    return []


def _stages(store: StudyStore, lease: Lease) -> Stages:
    view, config = ProgressView(Console(quiet=True)), RunConfig.stored(store.studies.get("one").config)
    workload = load_workload(config.model, config.data, config.seed, config.sizes)
    return Stages(OpenStudy(store, "one", lease, config, workload, view))


def test_the_knee_is_chosen_without_a_target() -> None:
    points = _points((0.0, 0.0, 10.0), (0.4, 0.1, 4.0), (0.8, 2.0, 2.0))
    assert best_point(points, None).number == 1


def test_a_front_that_bends_at_the_dense_model_yields_another_point() -> None:
    points = _points((0.0, 0.0, 10.0), (0.4, 1.0, 8.0))
    assert best_point(points, None).number == 1
    assert best_point(_points((0.0, 0.0, 10.0)), None).number == 0


def test_the_target_wins_over_the_knee() -> None:
    points = _points((0.0, 0.0, 10.0), (0.4, 0.1, 4.0), (0.8, 2.0, 2.0))
    assert best_point(points, Target("target_sparsity", 0.75)).number == 2


def test_a_stage_whose_preconditions_fail_leaves_the_state_alone() -> None:
    config = RunConfig(workers=1, **SMALL)
    view = ProgressView(Console(quiet=True))
    with StudyStore("sqlite://") as store:
        store.studies.create("one", config.model_dump(), OBJECTIVES)
        workload = load_workload(config.model, config.data, config.seed, config.sizes)
        with store.runs.lease("one") as lease:
            with pytest.raises(SearchError, match="no chosen schedule yet"):
                Pipeline(store, "one", lease, view, config, workload).distill_only(None, None, None, _no_report)
            assert store.studies.get("one").state is StudyState.CREATED
            store.studies.update_facts("one", StudyFacts(data_fingerprint="another"))
            with pytest.raises(SearchError, match="data changed"):
                Pipeline(store, "one", lease, view, config, workload)
        assert store.studies.get("one").state is StudyState.CREATED


def test_what_is_measured_anew_is_selected_tested_and_exported_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    config = RunConfig(workers=1, **SMALL)
    done: list[str] = []
    works = ("measure_candidates", "select_candidate", "compare_selected", "time_selected", "export_selected")
    for work in works:
        monkeypatch.setattr(search.pipeline.pipeline, work, lambda *_, work=work, **__: done.append(work))
    monkeypatch.setattr(search.pipeline.pipeline, "refine", lambda *_, **__: None)
    with StudyStore("sqlite://") as store:
        store.studies.create("one", config.model_dump(), OBJECTIVES)
        # A router was distilled by itself, and its schedule tested, before any candidate was measured.
        for stage in ("search", "distill-1", "test", "export", "report"):
            store.runs.begin_stage("one", stage)
            store.runs.end_stage("one", stage, StudyState.FINISHED)
        with store.runs.lease("one") as lease:
            pipeline = Pipeline(store, "one", lease, ProgressView(Console(quiet=True)), config)
            pipeline.run(_no_report)
            assert done == list(works)
            pipeline.run(_no_report)
        assert len(done) == len(works)


def test_the_timed_input_is_of_calibration_examples_and_keeps_its_length(store_of_one: OpenStudy) -> None:
    study = store_of_one
    first = timed_prompts(study)
    calibration = {token for example in study.workload.splits["calibration"] for token in example.prompt}
    assert set(first.ids.flatten().tolist()) <= calibration
    study.store.studies.update_facts("one", StudyFacts(timed_input=TimedInput(8, 64)))
    assert timed_prompts(study).ids.shape == (study.config.latency_batch, 64)


def test_a_training_that_was_stopped_does_not_stand_in_the_way_of_another(
    store_of_one: OpenStudy, monkeypatch: pytest.MonkeyPatch
) -> None:
    study = store_of_one
    config = DistillationConfig(steps=2, evaluate_every=1, batch_size=2)
    schedules = [SparsitySchedule.uniform(level, 12) for level in (0.3, 0.5)]

    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    def train(schedule: SparsitySchedule) -> RouterRun:
        chosen = trial(0, schedule=tuple(schedule), values=(0.1, 1.0))
        return train_router(study, "distill-1", chosen, [schedule], config)

    with monkeypatch.context() as patch:
        patch.setattr(study.view, "figures", stop)
        with pytest.raises(KeyboardInterrupt):
            train(schedules[0])
    scratch = study.store.runs.unfinished_work("one", "x")
    assert scratch is not None and len(list(scratch.parent.iterdir())) == 1
    # The search has gone on meanwhile, and chose another schedule.
    second = train(schedules[1])
    assert second.number == 0 and second.schedule == tuple(schedules[1]) and not list(scratch.parent.iterdir())
    # What has been trained already is not trained again, and what is about another schedule does not count.
    assert train(schedules[1]).number == 0 and train(schedules[0]).number == 1


def test_rounds_end_where_no_router_beats_the_static_one_and_the_reason_stays(store_of_one: OpenStudy) -> None:
    # A router that reads hidden states cannot start as the static one: after one step it is worse.
    config = store_of_one.config.model_copy(update={"router": "hidden", "router_steps": 1, "rounds": 2})
    study = replace(store_of_one, config=config)
    study.store.trials.append("one", trial(0, schedule=(0.5,) * 12, values=(0.5, 5.0)))
    study.store.studies.choose_trial("one", 0)
    refine(study, Stages(study))
    facts = study.store.studies.get("one").facts
    assert not study.store.routers.of("one")[0].beats_static
    assert [stage.name for stage in study.store.runs.stages("one")] == ["distill-1"] and study.store.trials.n_ended(
        "one"
    ) == 1
    assert "Rounds ended in round 1" in (facts.rounds_ended or "") and len(facts.rounds) == 1
    # Nor are they taken up again.
    refine(study, Stages(study))
    assert study.store.studies.get("one").facts == facts and study.store.trials.n_ended("one") == 1


def test_a_one_pass_router_is_distilled_from_the_static_decisions(store_of_one: OpenStudy) -> None:
    study = replace(store_of_one, config=store_of_one.config.model_copy(update={"router": "one-pass"}))
    config, schedule = DistillationConfig(steps=2, evaluate_every=1, batch_size=2), SparsitySchedule([0.0, *[0.5] * 11])
    chosen = trial(0, schedule=tuple(schedule), values=(0.1, 1.0))
    run = train_router(study, "distill-1", chosen, [schedule], config)
    assert run.config["kind"] == "one-pass" and len(study.store.routers.of("one")) == 1
    # It begins as good as the static router, and none is kept that is worse.
    assert run.curves["held_out_kl"][0] == pytest.approx(run.config["static_kl"], rel=1e-5)
    assert run.held_out_kl <= run.curves["held_out_kl"][0]
    assert isinstance(study.router(run.number).router, OnePassRouter)


def test_a_schedule_that_skips_nothing_has_no_rounds_and_the_reason_stays(store_of_one: OpenStudy) -> None:
    study = store_of_one
    study.store.trials.append("one", trial(0, schedule=(0.0,) * 12, values=(0.0, 9.0)))
    study.store.studies.choose_trial("one", 0)
    refine(study, Stages(study))
    assert "skips nothing" in (study.store.studies.get("one").facts.rounds_ended or "") and not study.store.runs.stages(
        "one"
    )


def test_who_lost_the_lease_says_nothing_more_about_the_study() -> None:
    config = RunConfig(workers=1, **SMALL)
    with StudyStore("sqlite://") as store:
        store.studies.create("one", config.model_dump(), OBJECTIVES)
        with store.runs.lease("one") as lease:
            stages = _stages(store, lease)
            for error, state in ((LeaseLostError, StudyState.RUNNING), (OSError, StudyState.FAILED)):
                with pytest.raises(error), stages.running(["search"]):
                    raise error("taken over")
                assert store.studies.get("one").state is state


def test_an_interrupted_study_ends_as_such_even_if_that_cannot_be_written(monkeypatch: pytest.MonkeyPatch) -> None:
    config = RunConfig(workers=1, **SMALL)

    def away(*_: object) -> None:
        raise StorageError("The database has not answered.")

    with StudyStore("sqlite://") as store:
        store.studies.create("one", config.model_dump(), OBJECTIVES)
        with store.runs.lease("one") as lease:
            running = _stages(store, lease).running(["search"])
            running.__enter__()
            monkeypatch.setattr(store.runs, "set_state", away)
            interrupt = KeyboardInterrupt()
            assert not running.__exit__(KeyboardInterrupt, interrupt, None)
        # It runs no more, since nobody works on it.
        assert store.studies.get("one").state is StudyState.STOPPED


@pytest.mark.slow
def test_a_study_whose_budget_is_used_still_gets_its_choice(tmp_path: Path) -> None:
    config = RunConfig(workers=1, trials=2, out=str(tmp_path / "out"), **SMALL)
    with StudyStore("sqlite://") as store:
        store.studies.create("one", config.model_dump(), OBJECTIVES)
        for number, level in enumerate((0.0, 0.5)):
            store.trials.append("one", trial(number, schedule=(level,) * 12, values=(level, 10 - 10 * level)))
        with store.runs.lease("one") as lease:
            Pipeline(store, "one", lease, ProgressView(Console(quiet=True)), config).search_only()
        assert store.studies.get("one").chosen_trial == 1


def test_python_and_the_command_line_take_the_same_point(store_of_one: OpenStudy) -> None:
    points = _points((0.0, 0.0, 10.0), (0.4, 1.0, 8.0))
    for target, expected in ((None, 1), (0.0, 0)):
        name = f"at-{target}"
        config = RunConfig(workers=1, target_sparsity=target, **SMALL)
        study = replace(store_of_one, name=name, config=config)
        study.store.studies.create(name, config.model_dump(), OBJECTIVES)
        for point in points:
            study.store.trials.append(name, point)
        loaded = load(name, study.store)
        before = loaded.best()
        choose_from_front(study)
        assert before.number == loaded.best().number == study.store.studies.get(name).chosen_trial == expected
        # Whatever was selected later is the one.
        study.store.studies.choose_trial(name, 1 - expected)
        assert loaded.best().number == 1 - expected and loaded.best(0.4).number == 1
