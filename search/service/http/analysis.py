"""Fronts of studies and how they grew, kept until there are more trials: drawing one must not read all again."""

from __future__ import annotations

import threading
from collections import OrderedDict
from dataclasses import dataclass

import numpy as np

from studies import StudyRecord, Trial, front
from studies.pareto import study_volume
from studies.service.service_store import ServiceStore

_MAX_STUDIES = 16


@dataclass(frozen=True)
class Growth:
    """The hypervolume from one trial on."""

    trial: Trial
    value: float


@dataclass(frozen=True)
class Analysis:
    """What the trials of a study add up to.

    Attributes:
        front: The non-dominated trials.
        reference: The corner that hypervolume is measured from; None before a trial has finished.
        growth: The hypervolume (`studies.pareto.front_volume`), once for each trial that changed the front.
    """

    front: list[Trial]
    reference: tuple[float, ...] | None
    growth: list[Growth]


class Analyses:
    """The analyses of the studies that were asked for last.

    Args:
        store: Where they live.
    """

    def __init__(self, store: ServiceStore) -> None:
        self._store = store
        self._known: OrderedDict[tuple[str, int], Analysis] = OrderedDict()
        self._lock = threading.Lock()

    def of(self, name: str) -> Analysis:
        """The analysis of a study as it stands now.

        Raises:
            StudyNotFoundError: There is no such study.
        """
        key = (self._store.events.generation(name), self._store.trials.n_ended(name))
        with self._lock:
            if key in self._known:
                self._known.move_to_end(key)
                return self._known[key]
        analysis = analyse(self._store.studies.get(name), self._store.trials.of(name))
        with self._lock:
            self._known[key] = analysis
            # Of a study that runs, only the latest is of use.
            for other in [one for one in self._known if one[0] == key[0] and one[1] < key[1]]:
                del self._known[other]
            while len(self._known) > _MAX_STUDIES:
                self._known.popitem(last=False)
        return analysis


def analyse(study: StudyRecord, trials: list[Trial]) -> Analysis:
    """What the trials of a study add up to."""
    points, measured = front(trials), study_volume(study, trials)
    if measured is None:
        return Analysis([], None, [])
    comparable = [trial for trial in trials if trial.is_comparable]
    growth = measured.growth(np.array([trial.values for trial in comparable]))
    return Analysis(points, measured.reference, [Growth(comparable[place], volume) for place, volume in growth])
