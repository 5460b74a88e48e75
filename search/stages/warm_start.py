"""What a study begins with from the results of another one."""

from __future__ import annotations

from collections.abc import Iterable

from ftp_core.schedule import SparsitySchedule
from search.problem.objectives import Objectives
from search.problem.space import ScheduleSpace
from search.problem.trial import Outcome
from studies import Trial, TrialState
from studies.pareto import ParetoArchive

# How many of the latest trials a search starts from, beside the front.
_LATEST = 2000


def warm_outcomes(
    trials: Iterable[Trial], space: ScheduleSpace, objectives: Objectives, *, own: bool = False
) -> list[Outcome]:
    """Trials of another study, or of another search of this one, as outcomes: those on the front, and the latest.

    Another study may trade KL against another cost, or may have timed another input. So values come from what was
    evaluated and from the schedule, and the front is that of this study's objectives.

    Args:
        trials: What was found there.
        space: Schedules outside it are left out, but for ablations.
        objectives: Of this study. Where they demand an accuracy, trials without one are left out.
        own: Whether the trials are this study's: outcomes then have their numbers.
    """
    outcomes, best = [], ParetoArchive()
    for trial in trials:
        if trial.state is not TrialState.FINISHED or trial.fidelity < 1.0 or "kl" not in trial.metrics:
            continue
        if objectives.min_accuracy is not None and "accuracy" not in trial.metrics:
            continue
        levels = space.levels(SparsitySchedule(trial.schedule))
        if not space.contains(levels) and not space.ablated(levels):
            continue
        values, violation = objectives(space.schedule(levels), trial.metrics)
        violation += space.violation(levels)
        outcome = Outcome(levels, values, violation, number=trial.number if own else None)
        if not outcome.is_finite:
            continue
        outcomes.append(outcome)
        if outcome.is_comparable:
            best.enter(outcome.values)
    first_of_latest = len(outcomes) - _LATEST
    return [outcome for place, outcome in enumerate(outcomes) if place >= first_of_latest or best.holds(outcome.values)]
