"""Copies studies between Optuna's storages: trials, attributes, distributions and times."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import sqlalchemy as sa
from optuna.exceptions import DuplicatedStudyError
from optuna.storages import BaseStorage, RDBStorage
from sqlalchemy.engine import make_url
from sqlalchemy.exc import ArgumentError, SQLAlchemyError

from studies.errors import StorageError, StudyExistsError, StudyNotFoundError
from studies.optuna_storage.carried import carried, split_carried, take_over
from studies.optuna_storage.storage import StudyStorage

# A table that Optuna's storage always has, and nothing else.
_OPTUNAS = "version_info"


def open_optuna(url: str, create: bool = True) -> RDBStorage:
    """Optuna's own storage in a SQL database.

    Args:
        url: URL of the database.
        create: Whether Optuna's tables are made in a database that is empty or missing.

    Raises:
        StorageError: It cannot be opened, or holds the tables of another program.
    """
    try:
        parsed = make_url(url)
        shown = parsed.render_as_string(hide_password=True)
    except (ArgumentError, ValueError) as error:
        raise StorageError("--optuna is not the URL of a database: write for example sqlite:///optuna.db.") from error
    missing = f"There are no studies of Optuna in {shown}: name the database that Optuna's storage uses."
    named = parsed.database if parsed.get_backend_name() == "sqlite" else None
    is_file = named not in (None, "", ":memory:") and not str(named).startswith("file:")
    if is_file and not create and not Path(str(named)).is_file():
        raise StorageError(missing)
    try:
        engine = sa.create_engine(url)
        tables = set(sa.inspect(engine).get_table_names())
        engine.dispose()
        if tables and _OPTUNAS not in tables:
            raise StorageError(
                f"The database {shown} holds tables of another program, where Optuna's would be made: name one that is "
                "Optuna's, empty or missing."
            )
        if not tables and not create:
            raise StorageError(missing)
        return RDBStorage(url)
    except (SQLAlchemyError, ImportError, RuntimeError, ValueError) as error:
        reason = str(getattr(error, "orig", error)).splitlines()[0]
        raise StorageError(f"Cannot open the Optuna database {shown}: {reason}.") from error


def copy_study(
    source: BaseStorage,
    target: BaseStorage,
    name: str,
    on_trial: Callable[[], None] = lambda: None,
) -> int:
    """Copies a study as a whole; if that fails, nothing of it stays in the target.

    What this program knows of a study beyond its trials goes to Optuna's storage as attributes, and comes back from
    them.

    Args:
        source: Storage to copy from.
        target: Storage to copy to.
        name: Name of the study in both.
        on_trial: Called after each trial.

    Returns:
        How many trials were copied.

    Raises:
        StudyNotFoundError: The source has no such study.
        StudyExistsError: The target has one.
    """
    try:
        source_id = source.get_study_id_from_name(name)
    except KeyError as error:
        names = ", ".join(repr(study.study_name) for study in source.get_all_studies()) or "none"
        raise StudyNotFoundError(f"There is no study {name!r} to copy: there are {names}.") from error
    try:
        target_id = target.create_new_study(source.get_study_directions(source_id), name)
    except DuplicatedStudyError as error:
        raise StudyExistsError(
            f"A study named {name!r} is there already: delete it first, or copy elsewhere."
        ) from error
    try:
        for key, value in source.get_study_user_attrs(source_id).items():
            target.set_study_user_attr(target_id, key, value)
        system, known = source.get_study_system_attrs(source_id), None
        if isinstance(source, StudyStorage):
            system = {**system, **carried(source.database, source_id)}
        if isinstance(target, StudyStorage):
            system, known = split_carried(system)
        for key, value in system.items():
            target.set_study_system_attr(target_id, key, value)
        trials = source.get_all_trials(source_id, deepcopy=False)
        for trial in trials:
            target.create_new_trial(target_id, template_trial=trial)
            on_trial()
        if known is not None and isinstance(target, StudyStorage):
            # Last, so that nobody goes on with a study that is not there as a whole.
            take_over(target.database, target_id, known)
    except BaseException:
        target.delete_study(target_id)
        raise
    return len(trials)
