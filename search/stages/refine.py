"""Refines what a first search found: distils a router, searches again with it, and does so while the front grows."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime

from ftp_core.schedule import SparsitySchedule
from search.engine.trial_runner import work_spans
from search.errors import SearchError
from search.evaluators import Task
from search.evaluators.local import LocalEvaluator
from search.inputs.data import search_set
from search.problem.objectives import Objectives
from search.stages.candidates import best_at
from search.stages.distill import distillation_config, schedules_to_distil, train_router, tune
from search.stages.knee import choose_from_front, chosen_trial
from search.stages.open_study import OpenStudy, StoredRouter
from search.stages.refine_rounds import begun, ended, last_number, was_worthwhile, why_last
from search.stages.search_schedules import Search, search_schedules
from search.stages.stage_states import LAST_STAGES, Stages
from search.stages.study_costs import study_costs
from studies import Trial, TrialState
from studies.pareto import study_volume, usable_front
from studies.records.confirmed import as_confirmed
from studies.records.study_facts import Round, StudyFacts


def refine(study: OpenStudy, stages: Stages) -> None:
    """Runs every round that is still missing, and notes why fewer were made than wanted."""
    reason = _refine(study, stages)
    if reason:
        study.view.console.print(reason, highlight=False)
    study.note(StudyFacts(rounds_ended=reason))


def _refine(study: OpenStudy, stages: Stages) -> str:
    """Runs every round that is still missing and may help; returns the reason why fewer than wanted were made."""
    first = study.facts.first_round
    for number in range(first, first + study.config.rounds):
        if not any(chosen_trial(study).schedule):
            return "There is no round: the chosen schedule skips nothing, so that no router has anything to decide."
        if number == first and study.config.tunes_router and not stages.has_finished("tune"):
            with stages.stage("tune"):
                tune(study, _schedules(study), number)
        if not stages.has_finished(f"distill-{number}"):
            stages.forget(LAST_STAGES)
            with stages.stage(f"distill-{number}"):
                _distill(study, number)
        one = _round(study, number)
        if not stages.has_finished(f"refine-{number}"):
            if one.router is None:
                return why_last(one)
            stages.forget(LAST_STAGES)
            with stages.stage(f"refine-{number}"):
                _search_again(study, number)
        one, is_last = _round(study, number), number + 1 == first + study.config.rounds
        if not was_worthwhile(one):
            return "" if is_last else why_last(one)
    return ""


def distill_again(study: OpenStudy, stages: Stages, chosen: Trial, router_steps: int | None, seed: int | None) -> int:
    """Distils a router for one trial's schedule, in a round without a search; the better of both trials is chosen.

    Steps and seed are the study's own for None. Returns the number of the router.
    """
    config = distillation_config(study)
    config = replace(config, steps=router_steps or config.steps, seed=config.seed if seed is None else seed)
    number, schedule = last_number(study.facts) + 1, SparsitySchedule.of(chosen.schedule)
    with stages.stage(f"distill-{number}"):
        run = train_router(study, f"distill-{number}", chosen, [schedule], config)
        one = Round(number, run.number, run.number if run.beats_static else None)
        one = begun(one, study.store.trials.n_begun(study.name), _hypervolume(study))
        if run.beats_static:
            chosen = _add_trial(study, schedule, study.router(run.number), number, "distill", chosen.number)
        _note(study, ended(one, int(run.beats_static), _hypervolume(study)))
        study.store.studies.choose_trial(study.name, chosen.number)
    return run.number


def _distill(study: OpenStudy, number: int) -> None:
    """Train the router of a round."""
    run = train_router(study, f"distill-{number}", chosen_trial(study), _schedules(study), distillation_config(study))
    _note(study, Round(number, run.number, run.number if run.beats_static else None))


def _search_again(study: OpenStudy, number: int) -> None:
    """Search around the front with the router of a round."""
    one = begun(_round(study, number), study.store.trials.n_begun(study.name), _hypervolume(study))
    _note(study, one)
    router = study.router(one.router)
    search = Search(number, study.config.refine_trials, router, one.first_trial or 0)
    search_schedules(study, study_costs(study, router), search)
    trials = study.trials()
    _note(study, ended(one, sum(trial.round == number for trial in trials), _hypervolume(study)))
    choose_from_front(study)


def _schedules(study: OpenStudy) -> list[SparsitySchedule]:
    """Schedules that a router learns to serve, as they may be selected in the end."""
    config, chosen, trials = study.config, chosen_trial(study), as_confirmed(study.trials())
    target, most = config.target, config.router_schedules
    # At a target not the front, on which ruined models are that cost less by a hair.
    points = usable_front(trials) if target is None else best_at(trials, target, most)
    return schedules_to_distil(points, chosen, config.router_schedules)


def _hypervolume(study: OpenStudy) -> float:
    trials = study.trials()
    measured = study_volume(study.store.studies.get(study.name), trials)
    return 0.0 if measured is None else measured.of(trials)


def _note(study: OpenStudy, one: Round) -> None:
    study.note(lambda known: StudyFacts(rounds=known.with_round(one)))


def _round(study: OpenStudy, number: int) -> Round:
    one = study.facts.round_of(number)
    assert one is not None
    return one


def _add_trial(
    study: OpenStudy, schedule: SparsitySchedule, router: StoredRouter, round: int, proposer: str, parent: int
) -> Trial:
    """Evaluates a schedule on the search set under a trained router, and keeps it as a trial of a round."""
    config = study.config
    evaluation = LocalEvaluator(
        study.workload.model.skipping,
        search_set(config, study.workload),
        router=router.router,
        choices=config.min_accuracy is not None,
    ).evaluate(Task(schedule))
    if evaluation.error is not None:
        raise SearchError(f"The schedule {schedule} cannot be evaluated with its new router: {evaluation.error}")
    costs = study_costs(study, router)
    values, violation = Objectives(costs.function(config.cost), config.min_accuracy)(schedule, evaluation.metrics)
    trial = Trial(
        number=study.store.trials.n_begun(study.name),
        schedule=schedule,
        values=values,
        state=TrialState.FINISHED,
        fidelity=1.0,
        proposer=proposer,
        seconds=evaluation.seconds,
        finished_at=datetime.now(UTC),
        metrics={**evaluation.metrics, **costs.of(schedule)},
        constraint_violation=violation,
        round=round,
        router=router.number,
        parents=(parent,),
        work=work_spans([evaluation]),
    )
    study.store.trials.append(study.name, trial)
    return trial
