"""The profile that a study predicts from: one that is to be relied on, or one that says that it is not."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import pytest
import sqlalchemy as sa
import torch
from rich.console import Console

from ftp_core.cost.conditions import profile_conditions
from ftp_core.cost.half_times import HalfProfile
from ftp_core.cost.profile import LatencyProfile
from ftp_core.schedule import SparsitySchedule
from ftp_core.skipping.skipping_model import SkippingModel
from search.config.run_config import RunConfig
from search.errors import SearchError
from search.inputs.data import Workload, load_workload
from search.inputs.latency_profiles import keep_profile, profile_of
from search.pipeline.pipeline import Pipeline
from search.problem.objectives import OBJECTIVES, objective_names
from search.progress.progress_view import ProgressView
from search.stages.open_study import OpenStudy
from search.stages.study_costs import note_costs, study_costs, study_profile
from studies import StudyStore
from studies.records.study_facts import ProfileRecord, StudyFacts
from tests.search.made_up_profiles import made_up

SMALL: dict[str, Any] = {
    "calibration_items": 4,
    "validation_items": 2,
    "test_items": 4,
    "search_items": 4,
}


@pytest.fixture(scope="module")
def workload() -> Workload:
    return load_workload("demo", "demo", 0, RunConfig.checked(**SMALL).sizes)


@pytest.fixture
def shown() -> io.StringIO:
    return io.StringIO()


@pytest.fixture
def study(workload: Workload, shown: io.StringIO) -> Iterator[OpenStudy]:
    config = RunConfig.checked(**SMALL)
    view = ProgressView(Console(file=shown, width=400))
    with StudyStore("sqlite://") as store:
        store.studies.create("one", config.model_dump(), OBJECTIVES)
        with store.runs.lease("one") as lease:
            yield OpenStudy(store, "one", lease, config, workload, view)


def profile_of_begun(study: OpenStudy) -> LatencyProfile | None:
    note_costs(study)
    return study_profile(study)


def keep(study: OpenStudy, profile: dict[str, Any]) -> None:
    study.store.studies.update_facts(study.name, StudyFacts(latency_profile=ProfileRecord.model_validate(profile)))


def test_a_study_takes_the_profile_that_is_known_and_keeps_it(study: OpenStudy, shown: io.StringIO) -> None:
    shapes = [(study.config.latency_batch, length) for length in range(32, 513, 32)]
    here = made_up(study.workload, shapes)
    keep_profile(study.store, here, replace=False)
    profile = profile_of_begun(study)
    assert (
        profile is not None
        and len(profile.shapes) == 1
        and profile.batch == study.config.latency_batch
        and profile.length % 32 == 0
    )
    # Another one that is measured later changes nothing for it.
    slower = LatencyProfile(tuple(replace(shape, fixed_ms=9.0) for shape in here.shapes), *_rest(here))
    keep_profile(study.store, slower, replace=True)
    assert profile_of_begun(study) == profile
    view = ProgressView(Console(file=shown, width=400))
    known = profile_of(study.store, study.workload.model.skipping, shapes[:1], view)
    assert known.profile.shapes[0].fixed_ms == 9.0 and known.known == ((*shapes[0], here.shapes[0].measured_at),)
    assert shown.getvalue() == ""


def _rest(profile: LatencyProfile) -> tuple[Any, ...]:
    return profile.blocks, profile.kinds, profile.conditions


def test_what_is_done_is_kept_when_there_is_no_memory_for_the_next(
    study: OpenStudy, monkeypatch: pytest.MonkeyPatch
) -> None:
    def measured(model: SkippingModel, shapes: list[tuple[int, int]], *_: object, **__: object) -> LatencyProfile:
        if shapes == [(1, 64)]:
            raise torch.OutOfMemoryError
        return made_up(study.workload, shapes)

    # The memory of a machine cannot be taken away for a test.
    monkeypatch.setattr("search.inputs.latency_profiles.profile_latency", measured)
    model = study.workload.model.skipping
    with pytest.raises(SearchError, match="not enough memory for 1 x 64 tokens"):
        profile_of(study.store, model, [(1, 32), (1, 64)], study.view)
    assert study.store.profiles.get(profile_conditions(model).fingerprint(1, 32)) is not None


def test_a_profile_that_was_stopped_goes_on_behind_what_was_measured(
    study: OpenStudy, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[int, int]] = []

    def measured(model: SkippingModel, shapes: list[tuple[int, int]], *_: object, **__: object) -> LatencyProfile:
        asked.extend(shapes)
        if len(asked) == 3:
            # Whatever ends a process, nothing of it is asked to clean up.
            raise SystemExit(-9)
        return made_up(study.workload, shapes)

    monkeypatch.setattr("search.inputs.latency_profiles.profile_latency", measured)
    shapes = [(1, 32), (1, 64), (1, 96), (1, 128)]
    model = study.workload.model.skipping
    with pytest.raises(SystemExit):
        profile_of(study.store, model, shapes, study.view)
    found = profile_of(study.store, model, shapes, study.view)
    assert asked == [*shapes[:3], *shapes[2:]]
    assert [(one.batch, one.length) for one in found.profile.shapes] == shapes
    assert [known[:2] for known in found.known] == shapes[:2]


def test_an_earlier_profile_stays_unless_it_shall_be_replaced(study: OpenStudy) -> None:
    here = made_up(study.workload, [(1, 64)])
    later = LatencyProfile((replace(here.shapes[0], fixed_ms=9.0),), *_rest(here))
    assert keep_profile(study.store, here, replace=False) == [here]
    assert keep_profile(study.store, later, replace=False) == [here]
    assert keep_profile(study.store, later, replace=True) == [later]
    assert keep_profile(study.store, here, replace=False) == [later]


def test_a_resumed_study_says_in_one_line_that_its_predictions_come_from_elsewhere(
    study: OpenStudy, shown: io.StringIO
) -> None:
    here = made_up(study.workload, [(8, 64)])
    there = replace(here, conditions=replace(here.conditions, cpu="another processor"))
    keep(study, there.to_json())
    assert study_profile(study) == there
    [line] = shown.getvalue().splitlines()
    assert "Latency is predicted for where this study began" in line and "cpu 'another processor', here " in line


SHAPES = [(8, length) for length in range(32, 513, 32)]
Measured = Callable[..., None]


@pytest.fixture
def measured(study: OpenStudy, monkeypatch: pytest.MonkeyPatch) -> Measured:
    """Decides what measuring finds: whether a machine is busy is nothing that a test can say."""

    def finds(**facts: Any) -> None:
        monkeypatch.setattr(
            "search.inputs.latency_profiles.profile_latency",
            lambda model, shapes, *_, **__: made_up(study.workload, shapes, **facts),
        )

    return finds


def _said(shown: io.StringIO) -> list[str]:
    return [line for line in shown.getvalue().splitlines() if not line.startswith(("Profiling", "Latency of"))]


def test_a_doubtful_profile_is_used_where_there_is_no_other_and_by_no_later_study(
    study: OpenStudy, shown: io.StringIO, measured: Measured
) -> None:
    measured(check_error=2.39, uncertainty=4.7, waited=0.9)
    doubtful = profile_of_begun(study)
    assert doubtful is not None and len(doubtful.doubts()) == 3
    [line] = _said(shown)
    assert line.startswith("Predicted latency is not to be relied on: processes waited for a core during 90% of the")
    assert "off by 239%" in line
    # The study keeps it, as its trials rest on it.
    measured(uncertainty=0.01)
    assert profile_of_begun(study) == doubtful
    with _another(study) as other:
        found = profile_of_begun(other)
        assert found is not None and found.doubts() == ()
    # A third one finds what is to be relied on, and measures nothing.
    measured(uncertainty=9.9)
    with _another(study, "three") as other:
        assert profile_of_begun(other) == found
    assert _said(shown) == [line] and profile_of_begun(study) == doubtful


def test_a_known_profile_without_halves_is_measured_again_where_they_are_needed(
    study: OpenStudy, measured: Measured
) -> None:
    known = made_up(study.workload, [(1, 64)])
    keep_profile(study.store, known, replace=False)
    model, table = study.workload.model.skipping, ((1.0,),) * len(known.kinds)
    measured(halves=HalfProfile((32,), table, table, table, table))
    assert profile_of(study.store, model, [(1, 64)], study.view).profile == known
    found = profile_of(study.store, model, [(1, 64)], study.view, halves=True)
    assert found.known == () and found.profile.has_halves
    # From then on it is the one that is known.
    assert profile_of(study.store, model, [(1, 64)], study.view).profile == found.profile
    assert len(profile_of(study.store, model, [(1, 64)], study.view, halves=True).known) == 1


def test_costs_are_noted_once_and_reading_them_changes_nothing(study: OpenStudy, measured: Measured) -> None:
    before = study.facts
    assert study_profile(study) is None and study_costs(study).profile is None and study.facts == before
    measured(uncertainty=0.01)
    note_costs(study)
    noted = study.facts
    assert noted.timed_input is not None and noted.latency_profile is not None and "latency_ms" in noted.dense_costs
    with writes() as changes:
        note_costs(study)
        costs = study_costs(study)
    assert costs.of(SparsitySchedule.uniform(0.0, study.workload.model.skipping.n_blocks)) == noted.dense_costs
    assert study.facts == noted and changes == []


@pytest.mark.parametrize("settings", [{}, {"cost": "flops"}])
def test_a_pipeline_that_is_opened_again_writes_nothing(study: OpenStudy, settings: dict[str, Any]) -> None:
    with _another(study, **settings) as other:
        opened = (other.store, other.name, other.lease, other.view, other.config, other.workload)
        with writes() as changes:
            Pipeline(*opened)
        noted = other.facts
        assert changes != [] and noted.data_fingerprint == other.workload.data_fingerprint
        with writes() as changes:
            Pipeline(*opened)
        assert changes == [] and other.facts == noted


@contextmanager
def writes() -> Iterator[list[str]]:
    """The statements, inside, that change what a database holds."""
    found: list[str] = []

    def listen(_connection: Any, _cursor: Any, statement: str, *_: Any) -> None:
        if statement.split()[0].upper() in {"INSERT", "UPDATE", "DELETE"}:
            found.append(statement)

    sa.event.listen(sa.Engine, "before_cursor_execute", listen)
    try:
        yield found
    finally:
        sa.event.remove(sa.Engine, "before_cursor_execute", listen)


def test_of_two_doubtful_profiles_the_less_uncertain_one_is_taken(
    study: OpenStudy, shown: io.StringIO, measured: Measured
) -> None:
    keep_profile(study.store, made_up(study.workload, SHAPES, uncertainty=0.3), replace=False)
    measured(uncertainty=0.9)
    profile = profile_of_begun(study)
    assert profile is not None and profile.uncertainty == 0.3
    with _another(study) as other:
        measured(uncertainty=0.25)
        profile = profile_of_begun(other)
        assert profile is not None and profile.uncertainty == 0.25


@pytest.mark.parametrize("cost", ["flops", "kv_bytes"])
def test_a_search_of_other_costs_takes_no_doubtful_profile_and_says_nothing(
    study: OpenStudy, shown: io.StringIO, cost: str
) -> None:
    keep_profile(study.store, made_up(study.workload, SHAPES, check_error=0.5), replace=False)
    with _another(study, cost=cost) as other:
        assert profile_of_begun(other) is None
        # One that it began with, in an earlier version, is none of its concern either.
        before = made_up(study.workload, SHAPES[:1], check_error=0.5)
        keep(other, before.to_json())
        assert study_profile(other) == before
    assert shown.getvalue() == ""


def test_the_advice_on_a_doubtful_profile_names_the_study_and_its_database(
    study: OpenStudy, shown: io.StringIO
) -> None:
    keep(study, made_up(study.workload, SHAPES[:1], waited=0.5).to_json())
    study_profile(study)
    assert "`ftp-search resume one --remeasure --storage sqlite://`" in shown.getvalue()


def test_many_doubtful_shapes_are_one_line_about_the_worst(workload: Workload) -> None:
    parts = [made_up(workload, [shape], waited=0.3 + 0.01 * n) for n, shape in enumerate(SHAPES[:6])]
    [doubt] = LatencyProfile.joined(parts).doubts()
    assert doubt == "processes waited for a core during 35% of the time at 8 x 192 tokens (and less at 5 other shapes)"


@contextmanager
def _another(study: OpenStudy, name: str = "two", **settings: Any) -> Iterator[OpenStudy]:
    """Another study of the same database."""
    config = study.config.model_copy(update=settings)
    study.store.studies.create(name, config.model_dump(), objective_names(config.cost))
    with study.store.runs.lease(name) as lease:
        yield replace(study, name=name, lease=lease, config=config)
