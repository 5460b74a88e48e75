"""What is remembered: studies, their trials, and everything found out about them, in SQL."""

from studies.errors import StorageError, StudiesError, StudyExistsError, StudyNotFoundError
from studies.front import closest_to_sparsity, front, hypervolume, hypervolume_history, knee, reference_point
from studies.location import database_file
from studies.records import Measurement, RouterRun, StudyRecord, StudyState, StudySummary, TrialRecord, TrialState
from studies.store import StudyStore

__all__ = [
    "Measurement",
    "RouterRun",
    "StorageError",
    "StudiesError",
    "StudyExistsError",
    "StudyNotFoundError",
    "StudyRecord",
    "StudyState",
    "StudyStore",
    "StudySummary",
    "TrialRecord",
    "TrialState",
    "closest_to_sparsity",
    "database_file",
    "front",
    "hypervolume",
    "hypervolume_history",
    "knee",
    "reference_point",
]
