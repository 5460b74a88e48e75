"""Costs of a study's schedules: the input that they are of, and the latency profile that predicts some of them."""

from __future__ import annotations

from ftp_core.cost import LatencyProfile
from ftp_core.cost.conditions import profile_conditions
from ftp_core.schedule import SparsitySchedule
from search.config.study_name import resume_command
from search.inputs.latency_profiles import Remeasure, known_profile, profile_of, say_doubts, say_elsewhere
from search.problem.costs import Costs
from search.stages.measure import timed_prompts
from search.stages.open_study import OpenStudy, StoredRouter
from studies.records.study_facts import ProfileRecord, StudyFacts, TimedInput


def note_costs(study: OpenStudy) -> None:
    """Notes, once, what costs are of as a search begins: the timed input, the profile, and the dense model's costs.

    A search that needs latency measures a profile, unless a reliable one of this machine is known. Another search takes
    such a one if no trial was made without, so that its trials compare, and measures none.
    """
    facts, found = study.facts, None
    if facts.latency_profile is None:
        found = measured_profile(study, "doubtful") if study.config.predicts_latency else _reliable_profile(study)
    if found is None and facts.timed_input is not None:
        return
    model, (batch, length) = study.workload.model.skipping, timed_prompts(study).ids.shape
    costs = Costs(model, batch, length, study_profile(study) if found is None else found)
    dense = costs.of(SparsitySchedule.uniform(0.0, model.n_blocks))
    news = StudyFacts(timed_input=TimedInput(batch, length), dense_costs=dense)
    if found is not None:
        news = news.updated(StudyFacts(latency_profile=ProfileRecord.model_validate(found.to_json())))
    study.note(news)


def study_costs(study: OpenStudy, router: StoredRouter | None = None) -> Costs:
    """Costs of a study's schedules as a router decides; the static one for None."""
    batch, length = timed_prompts(study).ids.shape
    own = None if router is None or router.number is None else router.router
    return Costs(study.workload.model.skipping, batch, length, study_profile(study), own)


def study_profile(study: OpenStudy) -> LatencyProfile | None:
    """The profile that predicts a study's latencies, whose doubts are said where it needs them; None without one."""
    stored = study.facts.latency_profile
    if stored is None:
        return None
    profile = LatencyProfile.from_json(stored.to_json())
    if study.config.predicts_latency:
        again = resume_command(repr(study.store), study.name, "--remeasure")
        say_elsewhere(profile, profile_conditions(study.workload.model.skipping), study.view, again)
        say_doubts(profile, study.view, again)
    return profile


def measured_profile(study: OpenStudy, remeasure: Remeasure) -> LatencyProfile:
    """A profile of this machine for the study's timed input, measured as far as `profile_of` says; nothing is noted."""
    model, shape = study.workload.model.skipping, timed_prompts(study).ids.shape
    shapes, seconds = [(shape[0], shape[1])], study.config.profile_seconds
    return profile_of(study.store, model, shapes, study.view, remeasure, seconds, _skips_apart(study)).profile


def _skips_apart(study: OpenStudy) -> bool:
    """True if halves of blocks may skip apart, or skipped tokens may keep their keys."""
    return study.config.granularity == "half" or study.config.kv == "keep"


def _reliable_profile(study: OpenStudy) -> LatencyProfile | None:
    if next(study.store.trials.each(study.name), None) is not None:
        return None
    batch, length = timed_prompts(study).ids.shape
    found = known_profile(study.store, profile_conditions(study.workload.model.skipping), (batch, length))
    if found is None or found.doubts() or (_skips_apart(study) and not found.has_halves):
        return None
    return found
