"""What is remembered of studies, in SQL."""

from studies.analysis.clock import ClockCheck, check_clock
from studies.analysis.origin import is_searched, schedule_origin
from studies.analysis.predictions import LatencyPredictions, Prediction, latency_predictions
from studies.analysis.prefill_speed import PrefillSpeedup, prefill_speedup
from studies.analysis.retention import (
    Interval,
    Retention,
    chance_level,
    chance_sentence,
    no_better_than_chance,
    retention_of,
)
from studies.analysis.shortened_prompt import (
    AgainstShortenedPrompt,
    measured_against_shortened_prompt,
    searched_against_shortened_prompt,
)
from studies.analysis.verdict import NextStep, against_shortened_prompt, next_steps, selected_point, verdict_of
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
from studies.pareto import (
    FrontVolume,
    best_point,
    closest_to_sparsity,
    front,
    front_growth,
    front_volume,
    hypervolume,
    knee,
    study_volume,
)
from studies.records.generation_speed import GenerationSpeed
from studies.records.measurement import Measurement
from studies.records.records import (
    Disagreement,
    Exhibits,
    GroupAccuracy,
    LeftAside,
    ProposerState,
    RoutedPrompt,
    RouterRun,
    StageRecord,
    StudyRecord,
    StudyState,
    StudySummary,
)
from studies.records.study_facts import StudyFacts
from studies.records.trial import ANCHOR, KNOCK_OUT, Trial, TrialState, WorkSpan, finite_values
from studies.sql.location import database_file
from studies.sql.migration import current_revision, upgrade_database
from studies.sql.schema import HEAD as SCHEMA_HEAD
from studies.store.lease import Lease
from studies.store.optuna_studies import OptunaStudy
from studies.store.store import StudyStore

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
    "Retention",
    "RoutedPrompt",
    "RouterRun",
    "StageRecord",
    "StorageError",
    "StudiesError",
    "StudyBusyError",
    "StudyExistsError",
    "StudyFacts",
    "StudyNotFoundError",
    "StudyRecord",
    "StudyState",
    "StudyStorage",
    "StudyStore",
    "StudySummary",
    "Trial",
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
    "retention_of",
    "schedule_origin",
    "searched_against_shortened_prompt",
    "selected_point",
    "study_volume",
    "upgrade_database",
    "verdict_of",
]
