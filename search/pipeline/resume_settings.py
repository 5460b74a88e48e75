"""Refuses settings without effect on a study that goes on, before any work."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from search.config.run_config import RunConfig
from search.config.setting import option
from search.config.study_name import resume_command
from search.errors import ConfigError
from studies import StudyRecord, Trial
from studies.pareto import HALF_STEP, closest_to_sparsity
from studies.records.target import TARGETS, Target

# Settings that solving takes: a target, and of places that have changed.
SOLVE_SETTINGS = (*TARGETS, "model", "revision", "adapter", "data")
# Fewer schedules that skip something tell nothing of single blocks.
_FEWEST_TO_SOLVE = 5


def check_changes(study: StudyRecord, trials: Sequence[Trial], config: RunConfig, asked: Collection[str]) -> None:
    """Refuses settings that ask a study for less than there is, or limit searches of which none can go on."""
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


def at_target(points: Sequence[Trial], target_sparsity: float, name: str) -> Trial:
    """The best point of a study's front at an overall sparsity; a ConfigError if there is none."""
    if not points:
        raise ConfigError(f"Study {name!r} has no front yet: finish its search with `ftp-search resume {name}`.")
    best = closest_to_sparsity(points, target_sparsity)
    if abs(best.overall_sparsity - target_sparsity) <= HALF_STEP:
        return best
    known = sorted({point.overall_sparsity for point in points})
    below = [f"{one:.3g}" for one in known if one < target_sparsity][-1:]
    above = [f"{one:.3g}" for one in known if one > target_sparsity][:1]
    raise ConfigError(
        f"--target-sparsity is {target_sparsity:g}, but the front of study {name!r} has no schedule there; the nearest "
        f"overall sparsities on it are {' and '.join(below + above)}. Give one of these, or search at "
        f"{target_sparsity:g} in a study of its own."
    )


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
    if target.kind == "target_speedup" and study.facts.latency_profile is None:
        raise ConfigError(
            f"--target-speedup needs predicted latency, but study {study.name!r} has no latency profile, as it trades "
            f"KL against {config.cost}: give --target-flops-saved."
        )
    return config, target
