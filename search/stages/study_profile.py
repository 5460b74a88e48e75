"""The latency profile that a study's predictions rest on: found where it is known, and measured where it is not."""

from __future__ import annotations

from ftp_core.cost import LatencyProfile
from ftp_core.cost.conditions import profile_conditions
from search.config.study_name import resume_command
from search.inputs.latency_profiles import Remeasure, known_profile, profile_of, say_doubts, say_elsewhere
from search.stages.measure import timed_prompts
from search.stages.open_study import OpenStudy
from studies.records.study_facts import ProfileRecord, StudyFacts


def study_profile(study: OpenStudy) -> LatencyProfile | None:
    """The study's profile, which predicts its latencies; None where it searches without one.

    A search of latency measures one, unless a reliable one of this machine is known. Another search takes such a one if
    no trial was made without, so that its trials compare, and measures none.
    """
    predicts = study.config.predicts_latency
    stored = study.store.studies.get(study.name).facts.latency_profile
    if stored is not None:
        profile = LatencyProfile.from_json(stored.to_json())
        if predicts:
            here = profile_conditions(study.workload.model.skipping)
            say_elsewhere(profile, here, study.view, _again(study))
            say_doubts(profile, study.view, _again(study))
        return profile
    if predicts:
        profile = measured_profile(study, "doubtful")
        say_doubts(profile, study.view, _again(study))
    else:
        known = _reliable_profile(study)
        if known is None:
            return None
        profile = known
    record = ProfileRecord.model_validate(profile.to_json())
    study.store.studies.update_facts(study.name, StudyFacts(latency_profile=record))
    return profile


def measured_profile(study: OpenStudy, remeasure: Remeasure) -> LatencyProfile:
    """A profile of this machine for the study's timed input; the study is left as it is.

    Args:
        study: Whose model and input.
        remeasure: What is measured again, see `profile_of`.
    """
    model, seconds = study.workload.model.skipping, study.config.profile_seconds
    batch, length = timed_prompts(study).ids.shape
    return profile_of(study.store, model, [(batch, length)], study.view, remeasure, seconds).profile


def _reliable_profile(study: OpenStudy) -> LatencyProfile | None:
    if next(study.store.trials.each(study.name), None) is not None:
        return None
    batch, length = timed_prompts(study).ids.shape
    found = known_profile(study.store, profile_conditions(study.workload.model.skipping), (batch, length))
    return None if found is None or found.doubts() else found


def _again(study: OpenStudy) -> str:
    return resume_command(repr(study.store), study.name, "--remeasure")
