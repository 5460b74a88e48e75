"""What is remembered: studies, their trials, and everything found out about them, in SQL."""

from studies.clock import ClockCheck, check_clock
from studies.errors import (
    ForeignResultsError,
    LeaseLostError,
    StorageError,
    StudiesError,
    StudyBusyError,
    StudyExistsError,
    StudyNotFoundError,
)
from studies.front import (
    FrontVolume,
    best_point,
    closest_to_sparsity,
    front,
    front_growth,
    front_volume,
    hypervolume,
    knee,
    reference_point,
    study_volume,
)
from studies.generation_speed import GenerationSpeed, generation_speeds
from studies.lease import Lease
from studies.loaded import LoadedStudy, load
from studies.location import database_file
from studies.measurement import Measurement
from studies.migration import current_revision, upgrade_database
from studies.optuna_alone import OptunaStudy
from studies.origin import is_searched, schedule_origin
from studies.predictions import LatencyPredictions, Prediction, latency_predictions
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
from studies.retention import Interval, Retention, chance_level, chance_sentence, no_better_than_chance, retention_of
from studies.schema import HEAD as SCHEMA_HEAD
from studies.shortened_prompt import (
    AgainstShortenedPrompt,
    measured_against_shortened_prompt,
    searched_against_shortened_prompt,
)
from studies.storage import StudyStorage
from studies.store import StudyStore
from studies.transfer import copy_study, open_optuna
from studies.verdict import NextStep, against_shortened_prompt, next_steps, selected_point, verdict_of

__all__ = [
    "ANCHOR",
    "KNOCK_OUT",
    "SCHEMA_HEAD",
    "AgainstShortenedPrompt",
    "ClockCheck",
    "Disagreement",
    "Exhibits",
    "ForeignResultsError",
    "FrontVolume",
    "GenerationSpeed",
    "GroupAccuracy",
    "Interval",
    "KnownEvaluation",
    "LatencyPredictions",
    "Lease",
    "LeaseLostError",
    "LeftAside",
    "LoadedStudy",
    "Measurement",
    "NextStep",
    "OptunaStudy",
    "Prediction",
    "PrefillSpeedup",
    "ProposerState",
    "QueuedTrial",
    "Retention",
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
    "against_shortened_prompt",
    "best_point",
    "chance_level",
    "chance_sentence",
    "check_clock",
    "closest_to_sparsity",
    "copy_study",
    "current_revision",
    "database_file",
    "finite_values",
    "front",
    "front_growth",
    "front_volume",
    "generation_speeds",
    "hypervolume",
    "is_searched",
    "knee",
    "latency_predictions",
    "load",
    "measured_against_shortened_prompt",
    "next_steps",
    "no_better_than_chance",
    "open_optuna",
    "prefill_speedup",
    "reference_point",
    "retention_of",
    "schedule_origin",
    "searched_against_shortened_prompt",
    "selected_point",
    "study_volume",
    "upgrade_database",
    "verdict_of",
]
