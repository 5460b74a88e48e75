"""Chooses the point of the front that a router is distilled for; selection may take another one later."""

from __future__ import annotations

from collections.abc import Sequence

from search.config.run_config import RunConfig
from search.errors import SearchError
from search.stages.open_study import OpenStudy
from search.stages.origin import chosen_number
from studies import Trial, best_point, front
from studies.records.confirmed import as_confirmed
from studies.records.trial import finite_values


def chosen_trial(study: OpenStudy) -> Trial:
    """The chosen trial of a study; a SearchError if none is chosen yet."""
    return study.store.trials.get(study.name, chosen_number(study.store.studies.get(study.name)))


def choose_from_front(study: OpenStudy) -> None:
    """Chooses anew from all trials of a study, by fresh items where there are any; a SearchError without a front."""
    trials = study.trials()
    points = front(as_confirmed(trials))
    if not points:
        raise SearchError(why_no_front(trials, study.config))
    study.store.studies.choose_trial(study.name, best_point(points, study.config.target).number)


def why_no_front(trials: Sequence[Trial], config: RunConfig) -> str:
    """Explains why a study has no front."""
    if not trials:
        return "No schedule was evaluated: allow the search more seconds."
    demanded = config.min_accuracy
    below = [trial.metrics["accuracy"] for trial in trials if trial.metrics.get("accuracy", 1.0) < (demanded or 0.0)]
    if below:
        return (
            f"None of {len(trials)} trials has an accuracy of {demanded:g} on the search set and keeps the other "
            f"constraints; the best of those that miss it has {max(below):.3g}. Demand less with --min-accuracy."
        )
    strange = [trial for trial in trials if trial.values is not None and not finite_values(trial.values)]
    if strange:
        return (
            f"None of {len(trials)} trials has finite objective values and keeps the constraints; trial "
            f"{strange[-1].number} has {strange[-1].values}."
        )
    return f"All {len(trials)} trials failed; the last one says: {trials[-1].error}"
