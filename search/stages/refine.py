"""Refines what a first search found: distils a router, searches again with it, and does so while the front grows."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from ftp_core.schedule import SparsitySchedule
from search.stages.candidates import best_at
from search.stages.distill import distillation_config, schedules_to_distil, train_router, tune
from search.stages.knee import choose_from_front, chosen_trial
from search.stages.open_study import OpenStudy
from search.stages.refine_rounds import Round, first_round, rounds_of, with_end, with_round
from search.stages.search_schedules import Search, search_schedules, study_costs
from search.stages.single_trial import add_trial
from search.stages.stage_states import LAST_STAGES, Stages
from studies import Trial, study_volume
from studies.pareto import usable_front


def refine(study: OpenStudy, stages: Stages) -> None:
    """Every round that is still missing.

    Args:
        study: Whose front.
        stages: Where it is noted how far it is.
    """
    reason = _refine(study, stages)
    if reason:
        study.view.console.print(reason, highlight=False)
    study.store.studies.set_facts(study.name, with_end(reason))


def _refine(study: OpenStudy, stages: Stages) -> str:
    """Every round that is still missing and may help; gives the reason why fewer than wanted were made."""
    first = first_round(_facts(study))
    for number in range(first, first + study.config.rounds):
        if not any(chosen_trial(study).schedule):
            return "There is no round: the chosen schedule skips nothing, so that no router has anything to decide."
        if number == first and study.config.tunes_router and not stages.has_finished("tune"):
            with stages.stage("tune"):
                study.store.studies.set_facts(study.name, {"tuning": tune(study, _schedules(study))})
        if not stages.has_finished(f"distill-{number}"):
            stages.forget(LAST_STAGES)
            with stages.stage(f"distill-{number}"):
                _distill(study, number)
        one = rounds_of(_facts(study))[number]
        if not stages.has_finished(f"refine-{number}"):
            if one.router is None:
                return one.why_last
            stages.forget(LAST_STAGES)
            with stages.stage(f"refine-{number}"):
                _search_again(study, number)
        one, is_last = rounds_of(_facts(study))[number], number + 1 == first + study.config.rounds
        if not one.was_worthwhile:
            return "" if is_last else one.why_last
    return ""


def distill_again(study: OpenStudy, stages: Stages, chosen: Trial, router_steps: int | None, seed: int | None) -> int:
    """A round with a new router for one schedule, and no search: chosen is the better of that one and what was.

    Args:
        study: Whose router.
        stages: Where it is noted.
        chosen: The trial with the schedule.
        router_steps: Steps of the training; None for the study's own.
        seed: Of the training; None for the study's own.

    Returns:
        Number of the router.
    """
    config = distillation_config(study)
    config = replace(config, steps=router_steps or config.steps, seed=config.seed if seed is None else seed)
    number, schedule = max(rounds_of(_facts(study)), default=0) + 1, SparsitySchedule(chosen.schedule)
    with stages.stage(f"distill-{number}"):
        run = train_router(study, f"distill-{number}", chosen, [schedule], config)
        one = Round(number, run.number, run.number if run.beats_static else None)
        one = one.begun(study.store.trials.n_begun(study.name), _hypervolume(study))
        if run.beats_static:
            chosen = add_trial(study, schedule, study.router(run.number), number, "distill", chosen.number)
        _note(study, one.ended(int(run.beats_static), _hypervolume(study)))
        study.store.studies.choose_trial(study.name, chosen.number)
    return run.number


def _distill(study: OpenStudy, number: int) -> None:
    """Train the router of a round."""
    run = train_router(study, f"distill-{number}", chosen_trial(study), _schedules(study), distillation_config(study))
    _note(study, Round(number, run.number, run.number if run.beats_static else None))


def _search_again(study: OpenStudy, number: int) -> None:
    """Search around the front with the router of a round."""
    one = rounds_of(_facts(study))[number].begun(study.store.trials.n_begun(study.name), _hypervolume(study))
    _note(study, one)
    router = study.router(one.router)
    search = Search(number, study.config.refine_trials, router, one.first_trial or 0)
    search_schedules(study, study_costs(study, router), search)
    trials = study.store.trials.of(study.name)
    _note(study, one.ended(sum(trial.round == number for trial in trials), _hypervolume(study)))
    choose_from_front(study)


def _schedules(study: OpenStudy) -> list[SparsitySchedule]:
    """What a router learns to serve: schedules that may be selected in the end."""
    config, chosen, trials = study.config, chosen_trial(study), study.store.trials.of(study.name)
    if config.target_sparsity is None:
        points = usable_front(trials)
    else:
        # Not the front there, on which ruined models are that cost less by a hair.
        points = best_at(trials, config.target_sparsity, config.router_schedules)
    return schedules_to_distil(points, chosen, config.router_schedules)


def _hypervolume(study: OpenStudy) -> float:
    trials = study.store.trials.of(study.name)
    measured = study_volume(study.store.studies.get(study.name), trials)
    return 0.0 if measured is None else measured.of(trials)


def _note(study: OpenStudy, one: Round) -> None:
    study.store.studies.set_facts(study.name, with_round(_facts(study), one))


def _facts(study: OpenStudy) -> Mapping[str, Any]:
    return study.store.studies.get(study.name).facts
