"""Studies in SQL: stored trials, routers and measurements, Optuna's storage interface, and Pareto fronts.

Names are loaded when they are first used, so that a record does not wait for Optuna and SQLAlchemy.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from studies.errors import (
        ForeignResultsError,
        LeaseLostError,
        StorageError,
        StudiesError,
        StudyBusyError,
        StudyExistsError,
        StudyNotFoundError,
    )
    from studies.loaded import LoadedStudy, load
    from studies.optuna_storage.storage import StudyStorage
    from studies.optuna_storage.transfer import copy_study, open_optuna
    from studies.pareto import best_point, front, hypervolume, knee
    from studies.records.measurement import Measurement
    from studies.records.records import RouterRun, StudyRecord, StudyState
    from studies.records.trial import Trial, TrialState
    from studies.store.store import StudyStore

_HOMES = {
    "ForeignResultsError": "studies.errors",
    "LeaseLostError": "studies.errors",
    "LoadedStudy": "studies.loaded",
    "Measurement": "studies.records.measurement",
    "RouterRun": "studies.records.records",
    "StorageError": "studies.errors",
    "StudiesError": "studies.errors",
    "StudyBusyError": "studies.errors",
    "StudyExistsError": "studies.errors",
    "StudyNotFoundError": "studies.errors",
    "StudyRecord": "studies.records.records",
    "StudyState": "studies.records.records",
    "StudyStorage": "studies.optuna_storage.storage",
    "StudyStore": "studies.store.store",
    "Trial": "studies.records.trial",
    "TrialState": "studies.records.trial",
    "best_point": "studies.pareto",
    "copy_study": "studies.optuna_storage.transfer",
    "front": "studies.pareto",
    "hypervolume": "studies.pareto",
    "knee": "studies.pareto",
    "load": "studies.loaded",
    "open_optuna": "studies.optuna_storage.transfer",
}

__all__ = [
    "ForeignResultsError",
    "LeaseLostError",
    "LoadedStudy",
    "Measurement",
    "RouterRun",
    "StorageError",
    "StudiesError",
    "StudyBusyError",
    "StudyExistsError",
    "StudyNotFoundError",
    "StudyRecord",
    "StudyState",
    "StudyStorage",
    "StudyStore",
    "Trial",
    "TrialState",
    "best_point",
    "copy_study",
    "front",
    "hypervolume",
    "knee",
    "load",
    "open_optuna",
]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
