"""Settings to go on with a study take effect, or are refused with what to do."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import pytest

from search.config.run_config import RunConfig
from search.errors import ConfigError
from search.pipeline.resume_settings import at_target, check_changes, check_distill
from search.stages.refine_rounds import begun, ended
from studies import StudyRecord, StudyState, Trial, TrialState, front
from studies.records.study_facts import Round, StudyFacts
from studies.records.target import Target
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
        ({"also_measure": (0, 7)}, "Trial 7 is asked for, but study 'one' has no such trial that finished"),
        ({"select_trial": 5}, "Trial 5 is asked for, but study 'one' has no such trial that finished"),
    ],
)
def test_what_cannot_take_effect_is_refused(changes: dict[str, Any], error: str) -> None:
    with pytest.raises(ConfigError, match=error):
        check_changes(STUDY, TRIALS, BEGUN.model_copy(update=changes), changes)


@pytest.mark.parametrize(
    "changes",
    [
        *({}, {"trials": 3}, {"trials": 4}, {"rounds": 1}, {"refine_trials": 3}, {"workers": 2}),
        *({"also_measure": (0, 4)}, {"select_trial": 0}),
        *({"seconds": 9.0, "trials": 4}, {"plateau": 9, "refine_trials": 3}, {"seconds": 9.0, "rounds": 2}),
    ],
)
def test_what_takes_effect_is_accepted(changes: dict[str, Any]) -> None:
    check_changes(STUDY, TRIALS, BEGUN.model_copy(update=changes), changes)


@pytest.mark.parametrize("bad", [trial(5, None), replace(trial(5, (0.1, 1.0)), state=TrialState.PRUNED)])
def test_trials_that_did_not_finish_are_not_measured(bad: Trial) -> None:
    with pytest.raises(ConfigError, match="Trial 5 is asked for"):
        check_changes(STUDY, [*TRIALS, bad], BEGUN.model_copy(update={"select_trial": 5}), {"select_trial"})


def test_a_search_that_ended_early_goes_on_for_as_long_as_is_said() -> None:
    check_changes(STUDY, TRIALS[:2], BEGUN.model_copy(update={"seconds": 9.0}), {"seconds"})


def test_a_sparsity_that_the_front_does_not_have_is_refused_with_those_that_it_has() -> None:
    points = front([trial(n, (kl, 1.0 - kl), (share, share)) for n, (kl, share) in enumerate([(0.1, 0.3), (0.6, 0.6)])])

    def at(sparsity: float) -> int:
        return at_target(points, Target("target_sparsity", sparsity), "one", {}).number

    assert at(0.31) == 0 and at(0.6) == 1
    with pytest.raises(ConfigError, match=r"--target-sparsity is 0\.5, .* are 0\.3 and 0\.6\. Give one of these"):
        at(0.5)
    with pytest.raises(ConfigError, match=r"sparsities on it are 0\.6\. Give"):
        at(0.9)
    with pytest.raises(ConfigError, match="no front yet"):
        at_target([], Target("target_sparsity", 0.5), "one", {})


DENSE = {"flops": 200.0, "latency_ms": 30.0}
# KL, FLOPs and milliseconds: 20, 30.5, 31, 60 % of FLOPs saved.
COSTS = [(0.1, 160.0, 25.0), (0.2, 139.0, 20.0), (0.15, 138.0, 19.9), (0.9, 80.0, 10.0)]
POINTS = [
    replace(trial(n, (kl, 1.0 - n)), metrics={"flops": flops, "latency_ms": ms})
    for n, (kl, flops, ms) in enumerate(COSTS)
]


@pytest.mark.parametrize(
    ("target", "number"),
    [
        # Of those that save as much, and not much more, the best; what saves less is none of them.
        (Target("target_flops_saved", 0.3), 2),
        (Target("target_flops_saved", 0.305), 2),
        (Target("target_flops_saved", 0.18), 0),
        # None saves as much: what saves a little less.
        (Target("target_flops_saved", 0.32), 2),
        (Target("target_flops_saved", 0.21), 0),
        (Target("target_speedup", 1.5), 2),
        (Target("target_speedup", 1.2), 0),
        (Target("target_speedup", 3.0), 3),
    ],
    ids=str,
)
def test_at_a_target_of_cost_the_best_that_meets_it_is_chosen_or_else_the_nearest(target: Target, number: int) -> None:
    assert at_target(POINTS, target, "one", DENSE).number == number


def test_a_cost_that_the_front_does_not_have_is_refused_with_those_that_it_has() -> None:
    with pytest.raises(ConfigError, match=r"--target-flops-saved is 0\.45, .* FLOPs saved on it are 0\.31 and 0\.6\."):
        at_target(POINTS, Target("target_flops_saved", 0.45), "one", DENSE)
    with pytest.raises(ConfigError, match=r"predicted speed-ups on it are 1\.51 and 3\. Give one of these"):
        at_target(POINTS, Target("target_speedup", 2.0), "one", DENSE)


@pytest.mark.parametrize(
    ("asked", "error"),
    [
        ({"target_flops_saved": 1.5}, "--target-flops-saved is 1.5: expected a number less than 1"),
        ({"target_flops_saved": 0.3, "target_speedup": 1.5}, "are all given: expected one target at most"),
        ({"target_speedup": 1.5}, "study 'one' has no latency profile"),
        ({"target_flops_saved": 0.45}, "the nearest shares of FLOPs saved"),
        ({"router_steps": 0}, "--router-steps is 0"),
    ],
)
def test_distilling_where_it_cannot_is_refused(asked: dict[str, Any], error: str) -> None:
    study = replace(STUDY, facts=ROUND.model_copy(update={"dense_costs": DENSE}))
    with pytest.raises(ConfigError, match=error):
        check_distill(study, POINTS, asked)


def test_a_router_may_be_distilled_at_another_kind_of_target_than_that_of_the_search() -> None:
    config = RunConfig(workers=1, target_sparsity=0.3).model_dump()
    study = replace(STUDY, config=config, facts=ROUND.model_copy(update={"dense_costs": DENSE}))
    found = check_distill(study, POINTS, {"target_flops_saved": 0.3, "target_sparsity": None, "seed": 4})
    assert found == Target("target_flops_saved", 0.3)
    assert check_distill(study, POINTS, {"seed": 4}) is None
