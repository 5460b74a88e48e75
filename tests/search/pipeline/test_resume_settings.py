"""Settings to go on with a study take effect, or are refused with what to do."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import pytest

from search.config.run_config import RunConfig
from search.errors import ConfigError
from search.pipeline.resume_settings import at_target, check_changes
from search.stages.refine_rounds import begun, ended
from studies import StudyRecord, StudyState, front
from studies.records.study_facts import Round, StudyFacts
from tests.studies.records import trial

BEGUN = RunConfig(workers=1, trials=3, rounds=1, refine_trials=2)
ROUND = StudyFacts(rounds=(ended(begun(Round(1, 0, 0), 3, 1.0), 2, 1.1),))
BEGAN = datetime(2026, 1, 1, tzinfo=UTC)
STUDY = StudyRecord("one", StudyState.FINISHED, BEGAN, BEGUN.model_dump(), ("kl", "flops"), ROUND, 0)
TRIALS = [replace(trial(number, (1.0, 2.0)), round=int(number > 2)) for number in range(5)]


@pytest.mark.parametrize(
    ("changes", "error"),
    [
        ({"trials": 2}, "--trials is 2, but study 'one' has 3"),
        ({"rounds": 0}, "--rounds is 0, but study 'one' has made 1"),
        ({"refine_trials": 1}, "--refine-trials is 1, but round 1 of study 'one' has 2"),
        ({"seconds": 9.0}, "--seconds says how long a search goes on"),
        ({"plateau": 9}, "--plateau says how long a search goes on"),
    ],
)
def test_what_cannot_take_effect_is_refused(changes: dict[str, Any], error: str) -> None:
    with pytest.raises(ConfigError, match=error):
        check_changes(STUDY, TRIALS, BEGUN.model_copy(update=changes), changes)


@pytest.mark.parametrize(
    "changes",
    [
        *({}, {"trials": 3}, {"trials": 4}, {"rounds": 1}, {"refine_trials": 3}, {"workers": 2}),
        *({"seconds": 9.0, "trials": 4}, {"plateau": 9, "refine_trials": 3}, {"seconds": 9.0, "rounds": 2}),
    ],
)
def test_what_takes_effect_is_accepted(changes: dict[str, Any]) -> None:
    check_changes(STUDY, TRIALS, BEGUN.model_copy(update=changes), changes)


def test_a_search_that_ended_early_goes_on_for_as_long_as_is_said() -> None:
    check_changes(STUDY, TRIALS[:2], BEGUN.model_copy(update={"seconds": 9.0}), {"seconds"})


def test_a_sparsity_that_the_front_does_not_have_is_refused_with_those_that_it_has() -> None:
    points = front([trial(n, (kl, 1.0 - kl), (share, share)) for n, (kl, share) in enumerate([(0.1, 0.3), (0.6, 0.6)])])
    assert at_target(points, 0.31, "one").number == 0 and at_target(points, 0.6, "one").number == 1
    with pytest.raises(ConfigError, match=r"--target-sparsity is 0\.5, .* are 0\.3 and 0\.6\. Give one of these"):
        at_target(points, 0.5, "one")
    with pytest.raises(ConfigError, match=r"sparsities on it are 0\.6\. Give"):
        at_target(points, 0.9, "one")
    with pytest.raises(ConfigError, match="no front yet"):
        at_target([], 0.5, "one")
