"""Notes where a study and the stages of its pipeline stand: in the database, and on the view."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from search.config.run_config import RunConfig
from search.stages.open_study import OpenStudy
from studies import LeaseLostError, StorageError, StudyState

_log = logging.getLogger(__name__)
# What ends a pipeline, and rests on all that was searched and distilled.
LAST_STAGES = ("measure", "select", "test", "time", "export", "report")
# What is done beside the pipeline, with a study as it stands.
COMPARE = "compare"


def all_stages(config: RunConfig, first_round: int = 1) -> list[str]:
    """The stages of a pipeline in their order, with the first round's number, if no round ends the refinement early."""
    numbers = range(first_round, first_round + config.rounds)
    rounds = [f"{kind}-{n}" for n in numbers for kind in ("distill", "refine")]
    last = [stage for stage in LAST_STAGES if stage != "export" or config.export != "none"]
    return ["search", *(["tune"] if rounds and config.tunes_router else []), *rounds, *last]


class Stages:
    """The stages of one study: noted as they begin and end."""

    def __init__(self, study: OpenStudy) -> None:
        self._study = study
        self._store = study.store
        self._name = study.name

    @contextmanager
    def running(self, foreseen: Sequence[str]) -> Iterator[None]:
        """Context that notes the study's state: running, then finished, or stopped or failed if it does not end well.

        `foreseen` are the stages that are to come.
        """
        self._study.view.began(self._name, self._study.config, foreseen)
        self._store.runs.set_state(self._name, StudyState.RUNNING)
        with self._noted(self._end):
            yield

    @contextmanager
    def beside(self, stage: str) -> Iterator[None]:
        """Context of a stage that is none of the pipeline's: where the study stands stays as it is."""
        self._study.view.began(self._name, self._study.config, [stage])
        with self._noted(self._study.view.ended), self.stage(stage):
            yield

    @contextmanager
    def stage(self, stage: str) -> Iterator[None]:
        """Context that notes the beginning of a stage, and when and how it ends."""
        self._study.lease.check()
        self._store.runs.begin_stage(self._name, stage)
        self._study.view.stage_changed(stage, StudyState.RUNNING)
        _log.info("Study %r: stage %s begins", self._name, stage)
        with self._noted(lambda state: self._end_stage(stage, state)):
            yield

    def has_finished(self, stage: str) -> bool:
        """Tells whether the last run of a stage ended well."""
        return self._store.runs.has_finished(self._name, stage)

    def forget(self, stages: Sequence[str]) -> None:
        """Lets stages count as not begun."""
        self._store.runs.forget_stages(self._name, stages)

    def _end(self, state: StudyState) -> None:
        try:
            self._store.runs.set_state(self._name, state)
        finally:
            # Trackers may have to be waited for.
            self._study.view.ended(state)

    def _end_stage(self, stage: str, state: StudyState) -> None:
        self._study.view.stage_changed(stage, state)
        _log.info("Study %r: stage %s has %s", self._name, stage, state.value)
        self._store.runs.end_stage(self._name, stage, state)

    @contextmanager
    def _noted(self, note: Callable[[StudyState], object]) -> Iterator[None]:
        """Context that notes its end: finished, stopped, or failed."""
        try:
            yield
        except LeaseLostError:
            # The study is another process's now, and so is what is said of it.
            self._study.view.close()
            raise
        except BaseException as error:
            try:
                # A study that nobody works on counts as stopped, so this is not worth waiting for.
                with self._store.hurried():
                    note(StudyState.STOPPED if isinstance(error, KeyboardInterrupt) else StudyState.FAILED)
            except StorageError as unwritten:
                self._study.view.console.print(
                    f"How study {self._name!r} ended is not written: {unwritten}", highlight=False
                )
            raise
        note(StudyState.FINISHED)
