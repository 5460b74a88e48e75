"""Fronts of studies and their growth, cached until more trials end."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from threading import Lock

import numpy as np

from studies import StudyRecord, Trial, front
from studies.pareto import study_volume
from studies.records.trial_columns import TrialColumns
from studies.service.service_store import ServiceStore

_MAX_STUDIES = 16


@dataclass(frozen=True)
class Analysis:
    """The front of a study and its growth."""

    front: list[Trial]
    reference: tuple[float, ...] | None  # reference point of the hypervolume; None before a trial has finished
    growth: list[tuple[Trial, float]]  # each trial that changed the front, and the hypervolume after it


def cached_analyses(store: ServiceStore) -> Callable[[str], Analysis]:
    """A function that gives the analysis of a study as it stands now; the latest ones are kept."""

    @lru_cache(_MAX_STUDIES)
    def analysis(name: str, generation: str, n_ended: int) -> Analysis:
        return analyse(store.studies.get(name), store.trials.of(name))

    return lambda name: analysis(name, store.events.generation(name), store.trials.n_ended(name))


def cached_columns(store: ServiceStore) -> Callable[[str], TrialColumns]:
    """A function that gives the trials of a study as columns; those of the latest ones are kept, and only new read."""
    # By name: where all must be read anew if that changes, and the columns.
    known: OrderedDict[str, tuple[str, TrialColumns]] = OrderedDict()
    lock = Lock()

    def columns(name: str) -> TrialColumns:
        origin = f"{store.events.generation(name)} {store.studies.get(name).facts.revaluations}"
        with lock:
            before = known.get(name)
        found = store.columns.of(name, before[1] if before is not None and before[0] == origin else None)
        with lock:
            known[name] = (origin, found)
            known.move_to_end(name)
            while len(known) > _MAX_STUDIES:
                known.popitem(last=False)
        return found

    return columns


def analyse(study: StudyRecord, trials: list[Trial]) -> Analysis:
    """The analysis of a study's trials."""
    points, measured = front(trials), study_volume(study, trials)
    if measured is None:
        return Analysis([], None, [])
    comparable = [trial for trial in trials if trial.is_comparable]
    growth = measured.growth(np.array([trial.values for trial in comparable]))
    return Analysis(points, measured.reference, [(comparable[place], volume) for place, volume in growth])
