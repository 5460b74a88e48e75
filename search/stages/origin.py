"""Finds the trial that a pruned model is of, and says what that keeps beside the weights, without loading any."""

from __future__ import annotations

from math import nan
from typing import Any

from ftp_core.loading.reference import ModelReference
from ftp_core.schedule import SparsitySchedule
from search.config.run_config import RunConfig
from search.errors import SearchError
from studies import StudyRecord, StudyStore, Trial
from studies.records.objectives import COSTS
from studies.records.trial import finite_values


def origin_of(
    study: StudyRecord, trial: Trial, model: ModelReference, router: tuple[str, str] | None
) -> dict[str, Any]:
    """The schedule of a trial and where it comes from, as plain values.

    Args:
        study: The study.
        trial: Its trial.
        model: The dense model.
        router: Kind of the trial's router and hash of its weights; None for the static one.
    """
    return {
        "schedule": SparsitySchedule.of(trial.schedule).to_json(),
        "overall_sparsity": trial.overall_sparsity,
        # As it was when the study ran: a system turn is a number of tokens then.
        "keep_first": study.facts.keep_first,
        # As the search knew them: latency is predicted.
        "objectives": dict(zip(study.objectives, trial.values or (), strict=False)),
        "costs": {cost: trial.metrics[cost] for cost in COSTS if finite_values((trial.metrics.get(cost, nan),))},
        "study": study.name,
        "study_created_at": study.created_at.isoformat(),
        "trial": trial.number,
        "model": str(model.name),
        "revision": model.revision,
        "adapter": model.adapter,
        "model_fingerprint": study.facts.model_fingerprint,
        "router": None if router is None else {"kind": router[0], "sha256": router[1]},
    }


def chosen_number(study: StudyRecord) -> int:
    """Number of the chosen trial of a study; a SearchError if none is chosen yet."""
    if study.chosen_trial is None:
        raise SearchError(
            f"Study {study.name!r} has no chosen schedule yet: finish its search with `ftp-search resume {study.name}`."
        )
    return study.chosen_trial


def trial_to_use(store: StudyStore, name: str, number: int | None) -> Trial:
    """A trial of a study with finite figures, the chosen one for None.

    Raises:
        SearchError: None is chosen yet, or the trial has no finite figures.
        StorageError: No trial of this number has ended.
    """
    trial = store.trials.get(name, chosen_number(store.studies.get(name)) if number is None else number)
    check_exportable(name, trial)
    return trial


def check_exportable(name: str, trial: Trial) -> None:
    """Raises `SearchError` if a trial of a study has no finite figures, so that nothing is known of its schedule."""
    if not finite_values(trial.values):
        raise SearchError(
            f"Trial {trial.number} of {name!r} has no finite figures: choose one that finished, see `ftp-search show`."
        )


def exported_schedule(store: StudyStore, name: str, number: int) -> dict[str, Any]:
    """What `schedule.json` beside a pruned model with a trial's schedule says, with the study's settings.

    Raises:
        SearchError: The trial has not ended, or has no finite figures.
    """
    trial = store.trials.find(name, number)
    if trial is None:
        raise SearchError(f"Study {name!r} has no trial {number} that has ended: export one that finished.")
    check_exportable(name, trial)
    study = store.studies.get(name)
    router: tuple[str, str] | None = None
    if trial.router is not None:
        run = store.routers.of(name)[trial.router]
        router = str(run.config.get("kind", "dynamic")), run.sha256
    # The cluster's address is nobody else's.
    settings = {key: value for key, value in study.config.items() if key != "ray_address"}
    return origin_of(study, trial, RunConfig.stored(study.config).reference, router) | {"settings": settings}
