"""Renews the latency profile of a study, and with it all that was predicted from the one of before."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from ftp_core.cost import LatencyProfile
from ftp_core.routers import Router
from ftp_core.schedule import SparsitySchedule
from search.errors import ConfigError, SearchError
from search.problem.costs import Costs
from search.problem.objectives import Objectives
from search.stages.measure import timed_prompts
from search.stages.open_study import OpenStudy
from search.stages.refine_rounds import rounds_of, with_round
from search.stages.search_schedules import schedule_space
from search.stages.stage_states import LAST_STAGES
from search.stages.study_profile import FACT, measured_profile, study_profile
from studies import Trial, best_point, front, front_volume
from studies.pareto import FrontVolume

_REFUSED = "The study keeps the latency profile that it has, as by the one measured now: "


def renew_profile(study: OpenStudy) -> None:
    """Measure the study's latency profile again, on this machine, and predict all its trials anew.

    Values of two profiles do not compare, so that the profile, the trials and what was made of them change in one
    transaction: whenever it is stopped, all of them are those of before, or all are new. What rests on the front is due
    again: candidates are measured, and one is selected.

    Args:
        study: The study; it predicts latency.

    Raises:
        SearchError: No trial keeps the study's constraints by the new profile; the study is left as it was.
    """
    predict_from(study, measured_profile(study, "all"))
    # Says what there is to say of it.
    study_profile(study)


def predict_from(study: OpenStudy, profile: LatencyProfile) -> None:
    """Let a study predict from another profile: see `renew_profile`.

    Args:
        study: The study.
        profile: What predicts from now on.

    Raises:
        SearchError: See `renew_profile`.
    """
    record, trials = study.store.studies.get(study.name), study.store.trials.of(study.name)
    judges: dict[int | None, _Judge] = {None: _Judge(study, profile, None)}
    for number in {trial.router for trial in trials} - {None}:
        judges[number] = _Judge(study, profile, study.router(number).router)
    revalued = [judges[trial.router].judged(trial) for trial in trials if trial.values is not None]
    points, chosen = front(revalued), None
    if record.chosen_trial is not None:
        if not points:
            raise SearchError(f"{_REFUSED}none of {len(trials)} trials keeps the study's constraints.")
        chosen = best_point(points, study.config.target_sparsity).number
    dense = judges[None].costs.of(SparsitySchedule.uniform(0.0, study.workload.model.skipping.n_blocks))
    volume = front_volume(record.objectives, revalued, dense[study.config.cost])
    facts = {FACT: profile.to_json(), "dense_costs": dense, **_rounds(record.facts, revalued, volume)}
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
        schedule = SparsitySchedule(trial.schedule)
        # Whoever appended a trial may have known its objective values alone.
        metrics = {"kl": trial.values[0], **trial.metrics, **self.costs.of(schedule)}
        values, violation = self._objectives(schedule, metrics)
        violation += self._space.violation(self._space.levels(schedule))
        kept = metrics if "kl" in trial.metrics else {**trial.metrics, **self.costs.of(schedule)}
        return replace(trial, values=(trial.values[0], values[1]), metrics=kept, violation=violation)


def _rounds(facts: Mapping[str, Any], trials: Sequence[Trial], volume: FrontVolume | None) -> dict[str, Any]:
    """The fact on what rounds made of the front, whose hypervolume is another now; nothing where there was none."""
    known = dict(facts)
    for one in rounds_of(facts).values():
        if one.first_trial is None or volume is None:
            continue
        before = [trial for trial in trials if trial.number < one.first_trial]
        after = [*before, *(trial for trial in trials if trial.number >= one.first_trial and trial.round == one.round)]
        again = replace(one, hypervolume_before=volume.of(before))
        if one.hypervolume_after is not None:
            again = replace(again, hypervolume_after=volume.of(after))
        known |= with_round(known, again)
    return {key: known[key] for key in known if known[key] is not facts.get(key)}
