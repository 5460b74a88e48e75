"""The data of the pages: studies as they stand, and their trials, read once and then only new ones."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from hashlib import sha256
from typing import Any

from dashboards.analysis.compared import but_for_seed
from dashboards.analysis.records import ReportData
from dashboards.analysis.run_progress import QueuePlaces, RunProgress, progress_of, run_progress
from dashboards.analysis.trials import Found
from studies import Measurement, StudiesError, StudyRecord
from studies.analysis.predictions import LatencyPredictions, latency_predictions
from studies.records.records import StageRecord, StudySummary
from studies.service.overviews import StudyOverview
from studies.service.run_events import RunEvent
from studies.service.runners import RunnerRecord
from studies.service.service_store import ServiceStore
from studies.service.submissions import RunState, Submission, run_state

# Studies whose trials are kept.
MOST_STUDIES = 12
# Lines of a log that a page shows.
_MOST_LINES = 500


@dataclass(frozen=True)
class Line:
    """One study of the list."""

    summary: StudySummary
    changed_at: datetime  # when something was done with it, or its run said something, last; UTC
    state: RunState  # the queue included
    submission: Submission | None  # the last one; None if it was never submitted
    wanted: int | None  # trials of the first search
    stage: str | None  # the stage that runs; None if none does
    figures: Mapping[str, float]  # last figures of its run: trials, trials_per_s, knee_kl, knee_cost, ...
    best: tuple[float, ...] | None  # KL and cost of the trial to take, or of the knee; None where it is not known
    cost: str  # name of the second objective
    seed: int | None
    but_for_seed: str  # the same for studies that differ in their seed alone
    progress: RunProgress


@dataclass(frozen=True)
class Standing:
    """The state of a study."""

    study: StudyRecord
    state: RunState  # the queue included
    submission: Submission | None  # the last one
    stages: list[StageRecord]  # stages of its pipeline
    figures: Mapping[str, float]  # last figures of its run
    progress: RunProgress


class Watch:
    """Reads studies for the pages; threads may share it."""

    def __init__(self, store: ServiceStore) -> None:
        self.store = store
        self._lock = threading.Lock()
        self._known: OrderedDict[str, tuple[str, Found]] = OrderedDict()
        self._reading: dict[str, threading.Lock] = {}

    def lines(self) -> list[Line]:
        """Every study, newest first."""
        submissions, queue = self.store.queue.all(), QueuePlaces.of(self.store)
        return [_line(one, submissions.get(one.summary.name), queue) for one in reversed(self.store.overviews())]

    def names(self) -> list[str]:
        """Names of all studies, newest first."""
        return [summary.name for summary in reversed(self.store.studies.summaries())]

    def runners(self) -> list[RunnerRecord]:
        """The runners that live."""
        return [runner for runner in self.store.runners.all() if runner.is_alive]

    def standing(self, name: str) -> Standing:
        """The state of a study.

        Raises:
            StudyNotFoundError: There is no such study.
        """
        # In this order: what ends a submission also says where the study stands.
        submission = self.store.queue.get(name)
        study = self.store.studies.get(name)
        state = run_state(study.state, submission)
        stages = self.store.runs.stages(name)
        said = self.store.events.latest(name, ("figures",))
        last = said[-1].content if said else {}
        return Standing(
            study,
            state,
            submission,
            stages,
            _numbers(last.get("figures", {})),
            progress_of(self.store, study, state, stages, last),
        )

    def version(self, name: str) -> str:
        """Changes whenever there is something new to show of a study.

        Raises:
            StudyNotFoundError: There is no such study.
        """
        standing = self.standing(name)
        last = self.store.events.latest(name, ("began", "stage", "figures", "measured", "log", "ended"))
        parts = [
            self._origin(name),
            self.store.trials.n_ended(name),
            last[-1].number if last else 0,
            standing.state.value,
            standing.study.chosen_trial,
            standing.progress.queue,
            standing.progress.has_runner,
            len(standing.study.facts.model_fields_set),
            sha256(repr(standing.study.labels).encode()).hexdigest()[:8],
            *(f"{one.name}={one.state.value}" for one in standing.stages),
        ]
        return " ".join(map(str, parts))

    def found(self, name: str) -> Found:
        """The trials of a study, as they are now.

        Raises:
            StudyNotFoundError: There is no such study.
        """
        with self._lock:
            reading = self._reading.setdefault(name, threading.Lock())
        # Several figures of one page ask at once: the first one reads, the others wait for it.
        with reading:
            origin = self._origin(name)
            with self._lock:
                known = self._known.get(name)
            before = known[1] if known is not None and known[0] == origin else None
            if before is not None and len(before.columns.ended) >= self.store.trials.n_ended(name):
                return before
            columns = self.store.columns.of(name, None if before is None else before.columns)
            found = Found.of_study(self.store.studies.get(name), columns)
            with self._lock:
                self._known[name] = (origin, found)
                self._known.move_to_end(name)
                while len(self._known) > MOST_STUDIES:
                    self._known.popitem(last=False)
            return found

    def read_ahead(self, name: str) -> None:
        """Begin to read the trials of a study that somebody opens: the browser takes a while until it asks for them."""

        def read() -> None:
            # Whoever asks for them hears what is wrong.
            with suppress(StudiesError):
                self.found(name)

        threading.Thread(target=read, name=f"trials of {name}", daemon=True).start()

    def measurements(self, name: str) -> list[Measurement]:
        """The measurements on test items."""
        return [m for m in self.store.results.measurements(name) if m.split == "test"]

    def report_data(self, name: str, standing: Standing) -> ReportData:
        """The results of a study, with those of its trials that a verdict rests on."""
        measurements, chosen = self.measurements(name), standing.study.chosen_trial
        numbers = {m.trial for m in measurements if m.trial is not None} | {*([] if chosen is None else [chosen])}
        trials = [trial for number in sorted(numbers) if (trial := self.store.trials.find(name, number)) is not None]
        if chosen is not None and not measurements:
            found = self.found(name)
            trials += found.records([place for place in found.uniform if found.columns.number[place] not in numbers])
        examples = self.store.results.examples(name) if measurements else None
        routers, compared = self.store.routers.of(name), self.store.comparisons.of(name)
        return ReportData(standing.study, trials, measurements, routers, examples, standing.stages, compared=compared)

    def predictions(self, study: StudyRecord) -> LatencyPredictions:
        """The predictions of a study's latency beside what was measured."""
        selection = study.facts.selection
        # The first trial is the dense model wherever a search may evaluate that.
        numbers = [0] if selection is None else [0, selection.trial]
        trials = [trial for number in numbers if (trial := self.store.trials.find(study.name, number)) is not None]
        measurements, routers = self.store.results.measurements(study.name), self.store.routers.of(study.name)
        return latency_predictions(study, trials, measurements, routers)

    def log(self, name: str) -> list[RunEvent]:
        """The last lines that runs of a study wrote."""
        return self.store.events.latest(name, ("log",), _MOST_LINES)

    def _origin(self, name: str) -> str:
        """Another one where all that is known of a study's trials must be read anew."""
        return f"{self.store.events.generation(name)} {self.store.studies.get(name).facts.revaluations}"


def _line(one: StudyOverview, submission: Submission | None, queue: QueuePlaces) -> Line:
    figures, wanted = _numbers(one.figures), one.config.get("trials")
    state = run_state(one.summary.state, submission)
    best = one.chosen_values
    if best is None and "knee_kl" in figures and "knee_cost" in figures:
        best = (figures["knee_kl"], figures["knee_cost"])
    return Line(
        summary=one.summary,
        changed_at=one.changed_at,
        state=state,
        submission=submission,
        wanted=wanted if isinstance(wanted, int) else None,
        stage=None if state.is_at_rest else one.stage,
        figures=figures,
        best=best,
        cost=one.objectives[1] if len(one.objectives) > 1 else "",
        seed=seed if isinstance(seed := one.config.get("seed"), int) else None,
        but_for_seed=but_for_seed(one.config),
        progress=run_progress(
            state,
            None if state.is_at_rest else one.stage,
            one.config,
            one.last_figures,
            foreseen=one.foreseen,
            began_at=one.stage_began_at,
            line=one.line,
            **queue.place_of(one.summary.name),
        ),
    )


def _numbers(said: Mapping[str, Any]) -> dict[str, float]:
    """Of what a run said, what is a number."""
    return {key: float(value) for key, value in said.items() if isinstance(value, (int, float))}
