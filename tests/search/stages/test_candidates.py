"""Candidates come from every search of a study, and rows are chosen by the same items as the selected point."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import replace
from datetime import UTC, datetime

import pytest
from rich.console import Console

from ftp_core.cost.flops import FlopsCounter
from ftp_core.routers import router_to_bytes
from ftp_core.schedule import SparsitySchedule
from search.config.run_config import RunConfig
from search.inputs.data import Workload, load_workload
from search.problem.objectives import OBJECTIVES
from search.progress.progress_view import ProgressView
from search.stages.candidates import best_at, candidates, compared
from search.stages.measure import timed_prompts
from search.stages.open_study import OpenStudy
from studies import Measurement, RouterRun, StudyStore, Trial
from studies.records.study_facts import ProfileRecord, StudyFacts
from studies.records.target import Target
from tests.ftp_core.made_up_routers import random_router
from tests.search.made_up_profiles import made_up
from tests.search.stages.test_select import measured
from tests.studies.records import trial

CONFIG = RunConfig(
    workers=1,
    target_sparsity=0.5,
    measured_points=4,
    **{"calibration_items": 4, "search_items": 4, "validation_items": 4, "test_items": 4},  # type: ignore[arg-type]
)


@pytest.fixture(scope="module")
def workload() -> Workload:
    return load_workload("demo", "demo", 0, CONFIG.sizes)


def _trial(number: int, kl: float, level: float = 0.5, round: int = 0) -> Trial:
    # Schedules differ, overall sparsities do not.
    schedule = tuple(level + (0.001 * number if block % 2 else -0.001 * number) for block in range(12))
    return replace(trial(number, (kl, 10.0), schedule), round=round)


@pytest.fixture
def study(workload: Workload) -> Iterator[OpenStudy]:
    """Two searches with four trials each at the target, and one elsewhere."""
    with StudyStore("sqlite://") as store:
        store.studies.create("one", CONFIG.model_dump(), OBJECTIVES)
        found = [_trial(number, 0.1 * (number + 1)) for number in range(4)]
        found += [_trial(4 + number, 0.01 * (number + 1), round=1) for number in range(4)]
        found.append(_trial(8, 0.0, level=0.1))
        for one in found:
            store.trials.append("one", one)
        with store.runs.lease("one") as lease:
            yield OpenStudy(store, "one", lease, CONFIG, workload, ProgressView(Console(quiet=True)))


def _validated(kl: dict[int, float]) -> list[Measurement]:
    return [measured(number, one) for number, one in kl.items()]


def test_the_best_at_a_sparsity_are_those_with_the_lowest_kl_there(study: OpenStudy) -> None:
    trials = study.store.trials.of("one")
    assert [one.number for one in best_at(trials, Target("target_sparsity", 0.5), 3)] == [4, 5, 6]
    assert [one.number for one in best_at(trials, Target("target_sparsity", 0.1), 3)] == [8]
    assert best_at(trials, Target("target_sparsity", 0.9), 3) == []


def test_at_a_target_every_search_has_candidates_and_the_chosen_trial_is_one(study: OpenStudy) -> None:
    trials = study.store.trials.of("one")
    assert [one.trial for one in candidates(study, trials[4])] == [0, 1, 4, 5]
    assert [one.trial for one in candidates(study, trials[7])] == [7, 0, 1, 4]


def test_trials_that_were_asked_for_are_candidates_wherever_they_lie(study: OpenStudy) -> None:
    study = replace(study, config=CONFIG.model_copy(update={"also_measure": (8, 1), "select_trial": 3}))
    trials = study.store.trials.of("one")
    assert [one.trial for one in candidates(study, trials[4])] == [0, 1, 4, 5, 3, 8]
    study = replace(study, config=study.config.model_copy(update={"target_sparsity": None}))
    assert {3, 8, 1} <= {one.trial for one in candidates(study, trials[4])}


def test_rows_are_chosen_by_validation_items_where_they_tell(study: OpenStudy) -> None:
    trials = study.store.trials.of("one")
    rows = {row.name: row.trial for row in compared(study, trials[5], None, _validated({0: 0.9, 1: 0.4, 4: 0.8}))}
    assert rows == {"dense": None, "uniform": None, "static": 1, "refined": 5}
    # The other way round: a trial of the first search was selected.
    rows = {row.name: row.trial for row in compared(study, trials[1], None, _validated({1: 0.4, 4: 0.8, 5: 0.7}))}
    assert (rows["static"], rows["refined"]) == (1, 5)
    # Without validation items the search set has to do.
    rows = {row.name: row.trial for row in compared(study, trials[5], None, [])}
    assert rows["static"] == 0


@pytest.mark.parametrize("levels", [[0.5] * 12, [0.0] * 6 + [0.95] * 6, [0.05] * 11 + [0.95], [0.95] * 12, [0.0] * 12])
def test_uniform_is_the_prompt_shortened_to_the_selected_flops(study: OpenStudy, levels: list[float]) -> None:
    number = len(study.store.trials.of("one"))
    study.store.trials.append("one", trial(number, (0.1, 10.0), tuple(levels)))
    rows = {row.name: row for row in compared(study, study.store.trials.of("one")[number], None, [])}
    uniform, counter = rows["uniform"].schedule, FlopsCounter(study.workload.model.skipping)
    batch, length = timed_prompts(study).ids.shape

    def flops(schedule: Sequence[float]) -> float:
        return counter.count(SparsitySchedule.of(schedule), batch, length).total

    assert len(set(uniform)) == 1 and rows["uniform"].router.router.kind == "static"
    apart = abs(flops(list(uniform)) - flops(levels))
    # One token less or more would not be nearer.
    for share in (uniform[0] - 1 / length, uniform[0] + 1 / length):
        if 0 <= share <= 0.95:
            assert apart <= abs(flops([share] * 12) - flops(levels)) + 1e-6
    assert apart <= flops([0.0] * 12) / length


def test_what_a_router_takes_is_part_of_the_flops_that_a_shortened_prompt_may_have(study: OpenStudy) -> None:
    weights = router_to_bytes(random_router(1))
    run = RouterRun(0, (0.5,) * 12, {}, {}, hashlib.sha256(weights).hexdigest(), 1.0, datetime.now(UTC))
    study.store.routers.add("one", run, weights)
    static, dynamic = (replace(trial(9, (0.1, 10.0), (0.5,) * 12), router=router) for router in (None, 0))
    shares = [
        next(row.schedule[0] for row in compared(study, one, None, []) if row.name == "uniform")
        for one in (static, dynamic)
    ]
    assert shares[0] == pytest.approx(0.5) and shares[1] < 0.5


def test_where_a_speed_up_is_the_target_uniform_takes_the_predicted_time_that_was_selected(study: OpenStudy) -> None:
    batch, length = timed_prompts(study).ids.shape
    profile = made_up(study.workload, [(batch, length)])
    study.note(StudyFacts(latency_profile=ProfileRecord.model_validate(profile.to_json())))
    selected = trial(9, (0.1, 10.0), (0.0,) * 6 + (0.95,) * 6)
    timed = replace(study, config=study.config.model_copy(update={"target_sparsity": None, "target_speedup": 1.3}))
    by_flops, by_time = (compared(one, selected, None, [])[1].schedule for one in (study, timed))
    wanted = profile.predict_ms(selected.schedule)

    def apart(share: float) -> float:
        return abs(profile.predict_ms([share] * 12) - wanted)

    assert len(set(by_time)) == 1 and apart(by_time[0]) < apart(by_flops[0])
    assert all(apart(by_time[0]) <= apart(by_time[0] + step / length) + 1e-9 for step in (-1, 1))
