"""Runs the studies of a sweep on one Ray, each from where it stands."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from search.config.groups import RunSettings
from search.config.run_config import SETTINGS, RunConfig
from search.config.sweep_plan import PlannedStudy, Sweep
from search.errors import ConfigError
from search.pipeline.create import beginning, reopened, usable
from search.pipeline.pipeline import Pipeline
from search.progress.progress_view import ProgressView
from studies import StudyNotFoundError, StudyRecord, StudyState, StudyStore
from studies.records.labels import NO_LABELS, Labels

# Where and how fast a study runs is not what it studies: that may change from one time to the next.
_OF_THE_MACHINE = {field for field, setting in SETTINGS.items() if setting.group == RunSettings.heading} - {"export"}


@dataclass(frozen=True)
class Outcome:
    """The end of one study of a sweep: with the error that ended it early, or whether it had finished before."""

    study: PlannedStudy
    error: Exception | None = None
    was_finished: bool = False

    @property
    def reason(self) -> str | None:
        """The error as one line; None without one."""
        if self.error is None:
            return None
        return " ".join(str(self.error).split()) or type(self.error).__name__


def run_sweep(
    sweep: Sweep,
    store: StudyStore,
    view: ProgressView,
    say: Callable[[str], None],
    report: Callable[[str, Path], Sequence[Path]],
    overwrite: bool = False,
    labels: Labels = NO_LABELS,
) -> list[Outcome]:
    """Runs the studies of a sweep: those that have finished are left alone, one that fails stops no other.

    A line is said when a study begins, and when one fails. With `overwrite`, each replaces a study of its name as it
    begins. New ones have the labels, and are of the sweep. All studies are checked first: a ConfigError says that a
    name is of one that is configured in another way.
    """
    labels = replace(labels, sweep=sweep.name)
    # All of them are checked before the first begins, which may take hours.
    studies = [replace(study, config=usable(study.config)) for study in sweep.studies]
    known = set() if overwrite else {summary.name for summary in store.studies.summaries()}
    finished = {name for name in known if has_finished(store, name)}
    for study in studies:
        if study.name in known:
            _check_unchanged(store.studies.get(study.name), study)
    if all(study.name in finished for study in studies):
        return [Outcome(study, was_finished=True) for study in studies]

    # Ray takes seconds to load.
    from search.evaluators.ray_cluster import cluster

    outcomes = []
    with cluster(studies[0].config.ray_address, max(study.config.workers for study in studies)):
        for number, study in enumerate(studies, start=1):
            place = f"Study {number} of {len(studies)}: {study.name}"
            if study.name in finished:
                say(f"{place} has finished already")
                outcomes.append(Outcome(study, was_finished=True))
                continue
            say(place)
            try:
                _run(study, store, view, report, study.name in known, overwrite, labels)
                outcomes.append(Outcome(study))
            except Exception as error:  # whatever it is, it is this study's
                outcomes.append(Outcome(study, error))
                say(f"{study.name} failed: {outcomes[-1].reason}")
    return outcomes


def has_finished(store: StudyStore, name: str) -> bool:
    """Tells whether a study has gone through its whole pipeline, up to the report."""
    return store.studies.get(name).state is StudyState.FINISHED and store.runs.has_finished(name, "report")


def comparison_rows(sweep: Sweep, store: StudyStore) -> list[dict[str, Any]]:
    """The results of the studies of a sweep that have finished, a row for each."""
    rows = []
    for study in sweep.studies:
        try:
            if not has_finished(store, study.name):
                continue
        except StudyNotFoundError:
            continue
        record = store.studies.get(study.name)
        rows.append(
            {
                "study": study.name,
                "created_at": record.created_at.isoformat(),
                "model": study.model,
                "target": study.config.target,
                "seed": study.config.seed,
                "measurements": store.results.measurements(study.name),
                "facts": record.facts,
                "examples": store.results.examples(study.name),
            }
        )
    return rows


def _check_unchanged(known: StudyRecord, study: PlannedStudy) -> None:
    """Refuses to go on with a study that was begun with other settings."""
    before, now = RunConfig.stored(known.config).model_dump(), study.config.model_dump()
    changes = [
        f"{field} was {before[field]!r} and is {now[field]!r}"
        for field in now
        if field not in _OF_THE_MACHINE and before[field] != now[field]
    ]
    if changes:
        raise ConfigError(
            f"Study {study.name!r} was begun with other settings: {'; '.join(changes)}. Restore them, choose another "
            f"name, or delete it with `ftp-search delete {study.name}`."
        )


def _run(
    study: PlannedStudy,
    store: StudyStore,
    view: ProgressView,
    report: Callable[[str, Path], Sequence[Path]],
    is_known: bool,
    overwrite: bool,
    labels: Labels,
) -> None:
    """Runs what is missing of one study."""
    name = study.name
    write = partial(report, name)
    if is_known:
        with store.runs.lease(name) as lease:
            reopened(store, store.studies.get(name), study.config, lease, view).run(write)
        return
    with (
        beginning(store, name, study.config, view, overwrite, labels) as (config, workload),
        store.runs.lease(name) as lease,
    ):
        Pipeline(store, name, lease, view, config, workload).run(write)
