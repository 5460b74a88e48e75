"""Refuses settings without effect on a study that goes on, before any work."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from search.config.run_config import RunConfig
from search.config.setting import option
from search.config.study_name import resume_command
from search.errors import ConfigError, UnfinishedError
from search.problem.cost_limit import LIMIT_COSTS
from studies import StudyRecord, StudyState, Trial, TrialState
from studies.pareto import HALF_STEP, closest_to_sparsity
from studies.records.target import TARGETS, Target, TargetKind
from studies.records.trial import finite_values

# Settings that solving takes: a target, and of places that have changed.
SOLVE_SETTINGS = (*TARGETS, "model", "revision", "adapter", "data")
# Settings that comparing takes: of places that have changed.
COMPARE_SETTINGS = SOLVE_SETTINGS[len(TARGETS) :]
# Fewer schedules that skip something tell nothing of single blocks.
_FEWEST_TO_SOLVE = 5
# What points of a front have of each target.
_AMOUNTS: Mapping[TargetKind, str] = {
    "target_sparsity": "overall sparsities",
    "target_flops_saved": "shares of FLOPs saved",
    "target_speedup": "predicted speed-ups",
}
# What rounding may add to a cost.
_SLACK = 1e-9


def check_changes(study: StudyRecord, trials: Sequence[Trial], config: RunConfig, asked: Collection[str]) -> None:
    """Refuses settings that ask for less than there is, limit searches that have ended, or name no usable trial."""
    usable = {trial.number for trial in trials if trial.state is TrialState.FINISHED and finite_values(trial.values)}
    if asked_for := sorted(config.asked_trials - usable):
        raise ConfigError(
            f"Trial {asked_for[0]} is asked for, but study {study.name!r} has no such trial that finished with finite "
            "figures: expected one that `ftp-search show` or the study's page has."
        )
    done = round(sum(trial.evaluations for trial in trials if trial.round == 0))
    if "trials" in asked and config.trials < done:
        raise ConfigError(
            f"--trials is {config.trials}, but study {study.name!r} has {done} trials: expected a new, larger total."
        )
    made = [one for one in study.facts.rounds if one.round >= study.facts.first_round]
    searched = [one for one in made if one.router is not None]
    if "rounds" in asked and config.rounds < len(made):
        raise ConfigError(
            f"--rounds is {config.rounds}, but study {study.name!r} has made {len(made)}: expected a new, larger total."
        )
    last = max((one.round for one in searched), default=None)
    refined = sum(trial.round == last for trial in trials)
    if "refine_trials" in asked and last is not None and config.refine_trials < refined:
        raise ConfigError(
            f"--refine-trials is {config.refine_trials}, but round {last} of study {study.name!r} has {refined}: "
            "expected a new, larger total."
        )
    limits = [name for name in ("seconds", "plateau") if name in asked]
    ends = done >= config.trials and len(made) >= config.rounds and (last is None or refined >= config.refine_trials)
    if limits and ends:
        raise ConfigError(
            f"--{limits[0]} says how long a search goes on, but every search of study {study.name!r} has all its "
            "trials: give more --trials, --refine-trials or --rounds, too."
        )


def asking_for(study: StudyRecord, trials: Sequence[int], select: bool, advice: str) -> dict[str, Any]:
    """The settings with which a finished study is resumed for trials to be measured, too.

    Args:
        study: The study.
        trials: Numbers of the trials.
        select: True if the first one is to be selected as well.
        advice: What to do about a study that has not finished.

    Raises:
        UnfinishedError: It has not.
    """
    if study.state is not StudyState.FINISHED:
        raise UnfinishedError(
            f"Study {study.name!r} is {study.state.value}: measure trials of one that has finished; {advice}."
        )
    known = RunConfig.stored(study.config).also_measure
    asked: dict[str, Any] = {"also_measure": tuple(dict.fromkeys((*known, *trials)))}
    return asked | ({"select_trial": trials[0]} if select else {})


def at_target(points: Sequence[Trial], target: Target, name: str, dense_costs: Mapping[str, float]) -> Trial:
    """The best point of a study's front at a target; a ConfigError if there is none within half a grid step of it.

    At an overall sparsity that is the one with the lowest KL there (`closest_to_sparsity`). Where a cost is the target,
    it is the one with the lowest KL of those that cost at most as much, or else the nearest of those that cost more.

    Args:
        points: The front, as `front` returns it.
        target: The target.
        name: Name of the study.
        dense_costs: Costs of the dense model, by name.
    """
    if not points:
        raise ConfigError(f"Study {name!r} has no front yet: finish its search with `ftp-search resume {name}`.")
    if target.kind == "target_sparsity":
        best = closest_to_sparsity(points, target.value)
        if abs(best.overall_sparsity - target.value) <= HALF_STEP:
            return best
        raise ConfigError(_not_there([point.overall_sparsity for point in points], target, name))
    cost = LIMIT_COSTS[target.kind]
    known = [point for point in points if point.metrics.get(cost, 0.0) > 0]
    if cost not in dense_costs or not known:
        raise ConfigError(f"{option(target.kind)} needs {cost}, which study {name!r} does not know of its front.")
    # Shares of the dense model's cost, which a grid step changes by about as much as overall sparsity.
    asked = 1 - target.value if cost == "flops" else 1 / target.value
    shares = {point.number: point.metrics[cost] / dense_costs[cost] for point in known}
    near = [point for point in known if abs(shares[point.number] - asked) <= HALF_STEP]
    meeting = [point for point in near if shares[point.number] <= asked * (1 + _SLACK)]
    if meeting:
        return min(meeting, key=lambda point: (point.values or (), point.number))
    if near:
        return min(near, key=lambda point: (shares[point.number], point.values or (), point.number))
    amounts = [1 - share if cost == "flops" else 1 / share for share in shares.values()]
    raise ConfigError(_not_there(amounts, target, name))


def _not_there(amounts: Sequence[float], target: Target, name: str) -> str:
    """Says that a front has nothing at a target, given what its points have of it."""
    known = sorted(set(amounts))
    below = [f"{one:.3g}" for one in known if one < target.value][-1:]
    above = [f"{one:.3g}" for one in known if one > target.value][:1]
    return (
        f"{option(target.kind)} is {target.value:g}, but the front of study {name!r} has no schedule there; the "
        f"nearest {_AMOUNTS[target.kind]} on it are {' and '.join(below + above)}. Give one of these, or search at "
        f"{target.value:g} in a study of its own."
    )


def check_distill(study: StudyRecord, points: Sequence[Trial], asked: Mapping[str, Any]) -> Target | None:
    """Refuses to distil a router with settings out of range, or at a target that the front does not have.

    Args:
        study: The study.
        points: Its front.
        asked: Settings of the training, and a target, or none for the chosen schedule.

    Returns:
        The target, if any.

    Raises:
        ConfigError: There are several targets, one is out of range, or the front has no schedule there.
    """
    given = {key: value for key, value in asked.items() if value is not None}
    target = Target.of(given)
    # Another target takes the place of the study's own.
    RunConfig.stored(study.config, **(dict.fromkeys(TARGETS) if target else {}) | given)
    if target is not None:
        _check_predicted(study, target)
        at_target(points, target, study.name, study.facts.dense_costs)
    return target


def check_solve(
    study: StudyRecord, trials: Sequence[Trial], asked: Mapping[str, Any], n: int, storage: str
) -> tuple[RunConfig, Target]:
    """Refuses to solve a study for a target where it knows too little, or cannot tell what meets it.

    Args:
        study: The study.
        trials: Its trials that have ended.
        asked: Settings: a target, or none for the study's own; and where model and data lie.
        n: Number of schedules to solve for.
        storage: URL of the database, for advice.

    Returns:
        The study's configuration with what was asked, except for the target, and the target.

    Raises:
        ConfigError: There is no target, it is out of range, or the study knows too little.
    """
    if n < 1:
        raise ConfigError(f"--best is {n}: expected at least 1.")
    given = {kind: asked[kind] for kind in TARGETS if asked.get(kind) is not None}
    # Several targets are refused here, and those out of range.
    at_target = RunConfig.stored(study.config, **dict.fromkeys(TARGETS) | given) if given else None
    config = RunConfig.stored(study.config, **{key: value for key, value in asked.items() if key not in TARGETS})
    target = (at_target or config).target
    if target is None:
        raise ConfigError(f"Study {study.name!r} has no target: give one of {', '.join(map(option, TARGETS))}.")
    known = {one.schedule for one in trials if one.router is None and one.is_finite and any(one.schedule)}
    if len(known) < _FEWEST_TO_SOLVE:
        raise ConfigError(
            f"Study {study.name!r} has evaluated {len(known)} schedules that skip something, but at least "
            f"{_FEWEST_TO_SOLVE} are needed to know what blocks can spare: go on with "
            f"`{resume_command(storage, study.name)}`."
        )
    _check_predicted(study, target)
    return config, target


def _check_predicted(study: StudyRecord, target: Target) -> None:
    if target.kind == "target_speedup" and study.facts.latency_profile is None:
        raise ConfigError(
            f"--target-speedup needs predicted latency, but study {study.name!r} has no latency profile, as it trades "
            f"KL against {study.config['cost']}: give --target-flops-saved."
        )
