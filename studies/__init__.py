"""Studies in SQL: stored trials, routers and measurements, Optuna's storage interface, and Pareto fronts.

Names are loaded when they are first used, so that a record does not wait for Optuna and SQLAlchemy.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from studies.errors import ForeignResultsError as ForeignResultsError
    from studies.errors import LeaseLostError as LeaseLostError
    from studies.errors import StorageError as StorageError
    from studies.errors import StudiesError as StudiesError
    from studies.errors import StudyBusyError as StudyBusyError
    from studies.errors import StudyExistsError as StudyExistsError
    from studies.errors import StudyNotFoundError as StudyNotFoundError
    from studies.loaded import LoadedStudy as LoadedStudy
    from studies.loaded import load as load
    from studies.optuna_storage.storage import StudyStorage as StudyStorage
    from studies.optuna_storage.transfer import copy_study as copy_study
    from studies.optuna_storage.transfer import open_optuna as open_optuna
    from studies.pareto import best_point as best_point
    from studies.pareto import front as front
    from studies.pareto import hypervolume as hypervolume
    from studies.pareto import knee as knee
    from studies.records.measurement import Measurement as Measurement
    from studies.records.records import RouterRun as RouterRun
    from studies.records.records import StudyRecord as StudyRecord
    from studies.records.records import StudyState as StudyState
    from studies.records.trial import Trial as Trial
    from studies.records.trial import TrialState as TrialState
    from studies.store.store import StudyStore as StudyStore

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

__all__ = list(_HOMES)


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
