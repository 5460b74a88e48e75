"""Candidates come from every search of a study, and rows are chosen by the same items as the selected point."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pytest
from rich.console import Console

from search.config import RunConfig
from search.objectives import OBJECTIVES
from search.open_study import OpenStudy
from search.progress import ProgressView
from search.variants import best_at, candidates, compared
from search.workload import Workload, load_workload
from studies import Measurement, StudyStore, TrialRecord
from tests.search.test_selection import measured
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


def _trial(number: int, kl: float, level: float = 0.5, round: int = 0) -> TrialRecord:
    # Schedules differ, overall sparsities do not.
    schedule = tuple(level + (0.001 * number if block % 2 else -0.001 * number) for block in range(12))
    return replace(trial(number, (kl, 10.0), schedule), round=round)


@pytest.fixture
def study(workload: Workload) -> Iterator[OpenStudy]:
    """Two searches with four trials each at the target, and one elsewhere."""
    with StudyStore("sqlite://") as store:
        store.create_study("one", CONFIG.model_dump(), OBJECTIVES)
        found = [_trial(number, 0.1 * (number + 1)) for number in range(4)]
        found += [_trial(4 + number, 0.01 * (number + 1), round=1) for number in range(4)]
        found.append(_trial(8, 0.0, level=0.1))
        for one in found:
            store.append_trial("one", one)
        with store.lease("one") as lease:
            yield OpenStudy(store, "one", lease, CONFIG, workload, ProgressView(Console(quiet=True)))


def _validated(kl: dict[int, float]) -> list[Measurement]:
    return [measured(number, one) for number, one in kl.items()]


def test_the_best_at_a_sparsity_are_those_with_the_lowest_kl_there(study: OpenStudy) -> None:
    trials = study.store.trials("one")
    assert [one.number for one in best_at(trials, 0.5, 3)] == [4, 5, 6]
    assert [one.number for one in best_at(trials, 0.1, 3)] == [8]
    assert best_at(trials, 0.9, 3) == []


def test_at_a_target_every_search_has_candidates_and_the_chosen_trial_is_one(study: OpenStudy) -> None:
    trials = study.store.trials("one")
    assert [one.trial for one in candidates(study, trials[4])] == [0, 1, 4, 5]
    assert [one.trial for one in candidates(study, trials[7])] == [7, 0, 1, 4]


def test_rows_are_chosen_by_validation_items_where_they_tell(study: OpenStudy) -> None:
    trials = study.store.trials("one")
    rows = {row.name: row.trial for row in compared(study, trials[5], None, _validated({0: 0.9, 1: 0.4, 4: 0.8}))}
    assert rows == {"dense": None, "uniform": None, "static": 1, "refined": 5}
    # The other way round: a trial of the first search was selected.
    rows = {row.name: row.trial for row in compared(study, trials[1], None, _validated({1: 0.4, 4: 0.8, 5: 0.7}))}
    assert (rows["static"], rows["refined"]) == (1, 5)
    # Without validation items the search set has to do.
    rows = {row.name: row.trial for row in compared(study, trials[5], None, [])}
    assert rows["static"] == 0


def test_uniform_has_the_selected_overall_sparsity(study: OpenStudy) -> None:
    rows = compared(study, study.store.trials("one")[5], None, [])
    uniform = next(row for row in rows if row.name == "uniform")
    assert list(uniform.schedule) == pytest.approx([0.5] * 12)
