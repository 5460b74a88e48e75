"""Creates and resumes studies for the API and the dashboard."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from threading import Lock

from search.comparison.plan import comparison_plan
from search.errors import ConfigError, UnfinishedError
from search.pipeline.resume_settings import asking_for
from search.problem.objectives import objective_names
from search.service.auth.access import current_access
from search.service.rules.problems import in_fields
from search.service.rules.requests import (
    ComparisonRequest,
    ResumeRequest,
    StudyRequest,
    check_own_folder,
    checked_changes,
    checked_study,
)
from search.service.rules.settings import ServiceSettings
from studies import StudyExistsError, StudyState
from studies.service.service_store import ServiceStore
from studies.store.results_folder import exported_in, results_in

# Keeps simultaneous requests from choosing the same folder.
_choosing_folder = Lock()


def create_and_submit(request: StudyRequest, store: ServiceStore, settings: ServiceSettings) -> None:
    """Creates a study and queues it for the runners, in one transaction; see `checked_study` for what it may name."""
    config, undecided = checked_study(request, store, settings)
    kept = {field: value for field, value in config.model_dump().items() if field not in undecided}
    folder = Path(str(config.out))
    # Files of a deleted study of this name may be left; a folder that the request names is empty.
    left = {one for one in (results_in(folder), exported_in(folder / "model")) if one is not None}
    others = [one for one in left if one.name != request.name]
    if others:
        raise ConfigError(f"out is {str(folder)!r}, which holds the results of {others[0]}: choose another folder.")
    with _choosing_folder:
        check_own_folder(str(config.out), request.name, store.queue.configurations())
        objectives = objective_names(config.cost)
        store.create_submitted(request.name, kept, objectives, _who(), left, request.labels())


def check_new(request: StudyRequest, store: ServiceStore, settings: ServiceSettings) -> None:
    """Raises the error that creating a study would raise now, except for what its data says."""
    config, _ = checked_study(request, store, settings, reads_data=False)
    if store.studies.is_taken(request.name):
        raise StudyExistsError(request.name)
    check_own_folder(str(config.out), request.name, store.queue.configurations())


def resume_and_submit(name: str, request: ResumeRequest | None, store: ServiceStore, settings: ServiceSettings) -> None:
    """Queues a study again, optionally with changed settings; a StudyBusyError if it is queued or worked on."""
    study = store.studies.get(name)
    changes: dict[str, object] = {}
    if request is not None:
        changes = checked_changes(request, study, store.trials.of(name), settings)
    with _choosing_folder:
        if "out" in changes:
            check_own_folder(str(changes["out"]), name, store.queue.configurations())
        store.queue.submit(name, changes, by=_who())


def measure_and_submit(name: str, trial: int, select: bool, store: ServiceStore, settings: ServiceSettings) -> None:
    """Queues a finished study again with a trial to be measured, too, and selected if that is asked for.

    Raises:
        StudyBusyError: It waits for a runner.
        UnfinishedError: It has not finished.
    """
    asked = asking_for(store.studies.get(name), [trial], select, "wait until this one has, or resume it")
    resume_and_submit(name, ResumeRequest(**asked), store, settings)


def compare_and_submit(name: str, request: ComparisonRequest, store: ServiceStore) -> None:
    """Queues a finished study for other methods to be compared with its schedules.

    Raises:
        ConfigError: There is no such method, a share is out of range, or a shape is none.
        StudyBusyError: The study waits for a runner, or is worked on.
        UnfinishedError: It has not finished.
    """
    study, advice = store.studies.get(name), "wait until it has finished, or resume it"
    if study.state is not StudyState.FINISHED:
        raise UnfinishedError(f"Study {name!r} is {study.state.value}: {advice}, and compare others with it then.")
    try:
        asked = request.methods, request.budgets, request.match, request.seeds, request.shapes
        plan = comparison_plan(store, study, *asked, advice=advice)
    except ConfigError as error:
        raise type(error)(in_fields(str(error), ComparisonRequest.model_fields)) from error
    store.queue.submit(name, by=_who(), comparison=asdict(plan))


def _who() -> str | None:
    access = current_access()
    return None if access is None else access.name
