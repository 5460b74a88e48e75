"""Studies in SQL: stored trials, routers and measurements, Optuna's storage interface, and Pareto fronts."""

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


def __dir__() -> list[str]:
    return __all__
