"""Trials of another study, or of another search of this one, that a search begins with."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from search.problem.objectives import Objectives
from search.problem.space import ScheduleSpace
from studies import Trial, TrialState
from studies.pareto import ParetoArchive

# How many of the latest trials a search starts from, beside the front.
_LATEST = 2000


def warm_trials(trials: Iterable[Trial], space: ScheduleSpace, objectives: Objectives) -> list[Trial]:
    """Trials found elsewhere, judged by these objectives: the front, and the latest.

    Another study may trade KL against another cost, or may have timed another input. So values come from what was
    evaluated and from the schedule, and the front is that of this study's objectives. Schedules outside the space are
    left out, but for ablations, and so are trials without an accuracy where the objectives demand one.
    """
    found, best = [], ParetoArchive()
    for trial in trials:
        if trial.state is not TrialState.FINISHED or trial.fidelity < 1.0 or "kl" not in trial.metrics:
            continue
        if objectives.min_accuracy is not None and "accuracy" not in trial.metrics:
            continue
        indices = space.grid_indices(trial.schedule)
        if not space.contains(indices) and not space.ablated(indices):
            continue
        values, violation = objectives(space.schedule(indices), trial.metrics)
        judged = replace(trial, values=values, constraint_violation=violation + space.constraint_violation(indices))
        if not judged.is_finite:
            continue
        found.append(judged)
        if judged.is_comparable:
            best.enter(values)
    first_of_latest = len(found) - _LATEST
    return [one for place, one in enumerate(found) if place >= first_of_latest or best.holds(one.values or ())]
