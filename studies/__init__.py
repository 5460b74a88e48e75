"""What is remembered: studies, their trials, and everything found out about them, in SQL."""

from studies.clock import ClockCheck, check_clock
from studies.errors import (
    LeaseLostError,
    StorageError,
    StudiesError,
    StudyBusyError,
    StudyExistsError,
    StudyNotFoundError,
)
from studies.front import (
    best_point,
    closest_to_sparsity,
    front,
    hypervolume,
    hypervolume_history,
    knee,
    reference_point,
    useful_hypervolume,
)
from studies.lease import Lease
from studies.loaded import LoadedStudy, load
from studies.location import database_file
from studies.measurement import Measurement
from studies.migration import current_revision, upgrade_database
from studies.prefill_speed import PrefillSpeedup, prefill_speedup
from studies.records import (
    ANCHOR,
    KNOCK_OUT,
    Disagreement,
    Exhibits,
    GroupAccuracy,
    KnownEvaluation,
    LeftAside,
    ProposerState,
    QueuedTrial,
    RoutedPrompt,
    RouterRun,
    StageRecord,
    StudyRecord,
    StudyState,
    StudySummary,
    TrialRecord,
    TrialState,
    WorkSpan,
    finite_values,
)
from studies.schema import HEAD as SCHEMA_HEAD
from studies.shortened_prompt import (
    AgainstShortenedPrompt,
    measured_against_shortened_prompt,
    searched_against_shortened_prompt,
)
from studies.storage import StudyStorage
from studies.store import StudyStore
from studies.transfer import copy_study, open_optuna

__all__ = [
    "ANCHOR",
    "KNOCK_OUT",
    "SCHEMA_HEAD",
    "AgainstShortenedPrompt",
    "ClockCheck",
    "Disagreement",
    "Exhibits",
    "GroupAccuracy",
    "KnownEvaluation",
    "Lease",
    "LeaseLostError",
    "LeftAside",
    "LoadedStudy",
    "Measurement",
    "PrefillSpeedup",
    "ProposerState",
    "QueuedTrial",
    "RoutedPrompt",
    "RouterRun",
    "StageRecord",
    "StorageError",
    "StudiesError",
    "StudyBusyError",
    "StudyExistsError",
    "StudyNotFoundError",
    "StudyRecord",
    "StudyState",
    "StudyStorage",
    "StudyStore",
    "StudySummary",
    "TrialRecord",
    "TrialState",
    "WorkSpan",
    "best_point",
    "check_clock",
    "closest_to_sparsity",
    "copy_study",
    "current_revision",
    "database_file",
    "finite_values",
    "front",
    "hypervolume",
    "hypervolume_history",
    "knee",
    "load",
    "measured_against_shortened_prompt",
    "open_optuna",
    "prefill_speedup",
    "reference_point",
    "searched_against_shortened_prompt",
    "upgrade_database",
    "useful_hypervolume",
]
