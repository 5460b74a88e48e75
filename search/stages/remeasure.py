"""Renews the latency profile of a study, and with it all that was predicted from the one of before."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from ftp_core.cost import LatencyProfile
from ftp_core.routers import Router
from ftp_core.schedule import SparsitySchedule
from search.errors import ConfigError, SearchError
from search.problem.costs import Costs
from search.problem.objectives import Objectives
from search.stages.measure import timed_prompts
from search.stages.open_study import OpenStudy
from search.stages.refine_rounds import grown
from search.stages.search_schedules import schedule_space
from search.stages.stage_states import LAST_STAGES
from search.stages.study_costs import measured_profile, study_profile
from studies import Trial, best_point, front
from studies.pareto import FrontVolume, front_volume
from studies.records.confirmed import as_confirmed
from studies.records.study_facts import ProfileRecord, Round, StudyFacts

_REFUSED = "The study keeps the latency profile that it has, as by the one measured now: "


def renew_profile(study: OpenStudy) -> None:
    """Measures the study's latency profile again, on this machine, and predicts all its trials anew.

    Values of two profiles do not compare, so that the profile, the trials and what was made of them change in one
    transaction: whenever it is stopped, all of them are those of before, or all are new. What rests on the front is due
    again: candidates are measured, and one is selected.

    Raises:
        SearchError: No trial keeps the study's constraints by the new profile; the study is left as it was.
    """
    predict_from(study, measured_profile(study, "all"))
    # Says what there is to say of it.
    study_profile(study)


def predict_from(study: OpenStudy, profile: LatencyProfile) -> None:
    """Lets a study predict from another profile; see `renew_profile`."""
    record, trials = study.store.studies.get(study.name), study.trials()
    judges: dict[int | None, _Judge] = {None: _Judge(study, profile, None)}
    for number in {trial.router for trial in trials} - {None}:
        judges[number] = _Judge(study, profile, study.router(number).router)
    revalued = [judges[trial.router].judged(trial) for trial in trials if trial.values is not None]
    points, chosen = front(revalued), None
    if record.chosen_trial is not None:
        if not points:
            raise SearchError(f"{_REFUSED}none of {len(trials)} trials keeps the study's constraints.")
        chosen = best_point(front(as_confirmed(revalued)), study.config.target).number
    dense = judges[None].costs.of(SparsitySchedule.uniform(0.0, study.workload.model.skipping.n_blocks))
    volume = front_volume(record.objectives, revalued, dense[study.config.cost])
    facts = StudyFacts(latency_profile=ProfileRecord.model_validate(profile.to_json()), dense_costs=dense)
    if volume is not None and record.facts.rounds:
        rounds = tuple(_remeasured(one, revalued, volume) for one in record.facts.rounds)
        facts = facts.updated(StudyFacts(rounds=rounds))
    study.store.revaluation.apply(study.name, revalued, facts, LAST_STAGES, chosen)


class _Judge:
    """Values of trials with one router."""

    def __init__(self, study: OpenStudy, profile: LatencyProfile, router: Router | None) -> None:
        model, (batch, length) = study.workload.model.skipping, timed_prompts(study).ids.shape
        self.costs = Costs(model, batch, length, profile, router)
        self._objectives = Objectives(self.costs.function(study.config.cost), study.config.min_accuracy)
        try:
            self._space = schedule_space(study.config, model.n_blocks, self.costs)
        except ConfigError as error:
            raise SearchError(f"{_REFUSED}{error}") from error

    def judged(self, trial: Trial) -> Trial:
        """A trial with what it costs now."""
        assert trial.values is not None
        schedule = SparsitySchedule.of(trial.schedule)
        # Whoever appended a trial may have known its objective values alone.
        metrics = {"kl": trial.values[0], **trial.metrics, **self.costs.of(schedule)}
        values, violation = self._objectives(schedule, metrics)
        violation += self._space.violation_of(schedule)
        kept = metrics if "kl" in trial.metrics else {**trial.metrics, **self.costs.of(schedule)}
        return replace(trial, values=(trial.values[0], values[1]), metrics=kept, constraint_violation=violation)


def _remeasured(one: Round, trials: Sequence[Trial], volume: FrontVolume) -> Round:
    """A round with the growth of the front by its new hypervolume."""
    if one.first_trial is None:
        return one
    before = [trial for trial in trials if trial.number < one.first_trial]
    after = [*before, *(trial for trial in trials if trial.number >= one.first_trial and trial.round == one.round)]
    return grown(one, volume.of(before), None if one.hypervolume_after is None else volume.of(after))
