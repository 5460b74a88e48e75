"""Runs, resumes and loads studies from Python, as the commands `run` and `resume` do."""

from __future__ import annotations

import os
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from search.comparison.plan import comparison_plan
from search.config.file import PATHS, anchored
from search.config.labels import checked_labels
from search.config.run_config import DEFAULT_STORAGE, RESUMABLE, RunConfig
from search.config.study_name import checked_study_name
from search.errors import ConfigError
from search.pipeline.early_checks import check_writable
from search.pipeline.opening import begun, continued, resumed
from search.pipeline.resume_settings import COMPARE_SETTINGS, SOLVE_SETTINGS, check_solve
from search.progress.views import make_view
from search.reports import write_reports
from search.study import Study, load
from studies import StudyStore

if TYPE_CHECKING:
    from search.stages.solve import Solved
    from studies.records.compared import Compared


def run(
    name: str = "study",
    *,
    tags: Sequence[str] = (),
    note: str = "",
    storage: str = DEFAULT_STORAGE,
    overwrite: bool = False,
    track: str = "",
    quiet: bool = False,
    **settings: Any,
) -> Study:
    """Runs a study from its search to the exported model and the report.

    It is the command `ftp-search run`: trials are kept in SQL as they end, and `resume` continues after an
    interruption.

    Args:
        name: Name of the study.
        tags: Short texts to find it by.
        note: Note on it.
        storage: URL of the database, `sqlite:///PATH` or `postgresql+psycopg://USER:PASSWORD@HOST/DATABASE`.
        overwrite: Whether a study of this name is replaced, and its results.
        track: Trackers that are told of the run, separated by commas: mlflow, wandb, tensorboard.
        quiet: Whether no progress is drawn on standard error.
        **settings: Fields of `RunConfig`, such as `model`, `data`, `trials`, `target_sparsity` and `out`.

    Returns:
        The study, with its trials, front, figures and selected point.

    Raises:
        ConfigError: A setting is unknown or outside its range, or no search can be made as it is asked for.
        CoreError: Model or data cannot be used.
        StudiesError: There is a study of this name, or the database cannot be used.
        EvaluationError: No worker could start.

    Example:
        >>> import search
        >>> study = search.run("notebook", trials=60, target_sparsity=0.3)  # doctest: +SKIP
        >>> study.best().schedule  # doctest: +SKIP
    """
    name = checked_study_name(name, "name")
    config, labels = RunConfig.checked(str, **_absolute(settings)), checked_labels(tags, note)
    check_writable(config.folder(name))
    with (
        begun(name, config, storage, make_view(quiet, track), overwrite, labels=labels) as (store, opening),
        store.runs.lease(name) as lease,
    ):
        opening(lease).run(partial(write_reports, store, name))
    return load(name, storage)


def resume(
    name: str,
    *,
    storage: str = DEFAULT_STORAGE,
    remeasure: bool = False,
    track: str = "",
    quiet: bool = False,
    **settings: Any,
) -> Study:
    """Continues a study that was stopped, or a finished one with more trials.

    It is the command `ftp-search resume`: nothing that has finished is done again.

    Args:
        name: Name of the study.
        storage: URL of its database.
        remeasure: Whether its latency profile is measured again, and its trials are predicted anew.
        track: Trackers that are told of the run, separated by commas: mlflow, wandb, tensorboard.
        quiet: Whether no progress is drawn on standard error.
        **settings: Fields of `RunConfig` that may change, `search.config.run_config.RESUMABLE`: `model` and `data`
            where these lie elsewhere.

    Returns:
        The study.

    Raises:
        ConfigError: A setting may not change, is outside its range, or would have no effect.
        SearchError: Model or data are not those that the study began with.
        StudyNotFoundError: There is no such study.
        StudyBusyError: Another process works on it.

    Example:
        >>> import search
        >>> study = search.resume("notebook", trials=200)  # doctest: +SKIP
    """
    fixed = sorted(settings.keys() & RunConfig.model_fields.keys() - set(RESUMABLE))
    if fixed:
        raise ConfigError(f"{fixed[0]} is fixed once a study has begun: expected some of {', '.join(RESUMABLE)}.")
    with StudyStore(storage, create=False) as store:
        study, config = resumed(store, name, _absolute(settings), remeasure)
        opening = continued(store, study, config, make_view(quiet, track), settings)
        with store.runs.lease(name) as lease:
            opening(lease).run(partial(write_reports, store, name), remeasure)
    return load(name, storage)


def solve(name: str, *, storage: str = DEFAULT_STORAGE, best: int = 4, quiet: bool = False, **settings: Any) -> Solved:
    """Solves a study for another target from what its trials tell, and evaluates the best few schedules.

    It is the command `ftp-search solve`. What trials tell holds near what they tried: compare with the shortened
    prompt.

    Args:
        name: Name of the study.
        storage: URL of its database.
        best: Number of schedules to solve for.
        quiet: Whether no progress is drawn on standard error.
        **settings: One of `target_sparsity`, `target_flops_saved` and `target_speedup`, or none for the study's own
            target; `model`, `revision`, `adapter` and `data` where these lie elsewhere.

    Returns:
        The solutions with their KL, intervals and costs, beside the shortened prompt and the best trial known before.

    Raises:
        ConfigError: The study knows too little, or the target cannot be reached.
        SearchError: Model or data are not those that the study began with.
        StudyNotFoundError: There is no such study.
        StudyBusyError: Another process works on it.

    Example:
        >>> import search
        >>> solved = search.solve("notebook", target_flops_saved=0.4)  # doctest: +SKIP
        >>> solved.best.schedule, solved.best.kl_interval  # doctest: +SKIP
    """
    unknown = sorted(settings.keys() - set(SOLVE_SETTINGS))
    if unknown:
        raise ConfigError(f"{unknown[0]} is none of what solve takes: expected some of {', '.join(SOLVE_SETTINGS)}.")
    with StudyStore(storage, create=False) as store:
        study = store.studies.get(name)
        config, target = check_solve(study, store.trials.of(name), _absolute(settings), best, storage)
        opening = continued(store, study, config, make_view(quiet, ""))
        with store.runs.lease(name) as lease:
            return opening(lease).solve(target, best)


def compare(
    name: str,
    *,
    storage: str = DEFAULT_STORAGE,
    methods: Sequence[str] | None = None,
    budgets: Sequence[float] | None = None,
    match: str = "latency",
    seeds: int = 3,
    shapes: Sequence[str] = (),
    quiet: bool = False,
    **settings: Any,
) -> list[Compared]:
    """Puts other methods beside a study's schedules: at equal time or operations, on its test items.

    It is the command `ftp-search compare`: every row is kept in SQL as it is measured, and none is measured twice.

    Args:
        name: Name of the study.
        storage: URL of its database.
        methods: Names of methods, `search.comparison.methods.method_names` or registered ones; None for all.
        budgets: Shares of the dense model's time or operations to save; None for what the selected schedule saves.
        match: What is alike, `latency` or `flops`.
        seeds: Seeds of each method with chance.
        shapes: Further prefills to time, as rows x tokens, such as `8x2048`.
        quiet: Whether no progress is drawn on standard error.
        **settings: `model`, `revision`, `adapter` and `data` where these lie elsewhere.

    Returns:
        The rows of all budgets, ours first; `dashboards.report.methods.methods_tables` judges them.

    Raises:
        ConfigError: A name or a number is wrong, or the study has nothing to compare.
        SearchError: Model or data are not those that the study began with.
        StudyNotFoundError: There is no such study.
        StudyBusyError: Another process works on it.

    Example:
        >>> import search
        >>> rows = search.compare("notebook", methods=["shortgpt"], budgets=[0.2])  # doctest: +SKIP
    """
    unknown = sorted(settings.keys() - set(COMPARE_SETTINGS))
    if unknown:
        raise ConfigError(
            f"{unknown[0]} is none of what compare takes: expected some of {', '.join(COMPARE_SETTINGS)}."
        )
    with StudyStore(storage, create=False) as store:
        study = store.studies.get(name)
        plan = comparison_plan(store, study, methods, budgets, match, seeds, shapes)
        opening = continued(store, study, RunConfig.stored(study.config, **_absolute(settings)), make_view(quiet, ""))
        with store.runs.lease(name) as lease:
            return opening(lease).compare(plan)


def _absolute(settings: dict[str, Any]) -> dict[str, Any]:
    given = {field: os.fspath(value) if isinstance(value, Path) else value for field, value in settings.items()}
    return anchored(given, PATHS, Path.cwd(), str)
