"""Runs submitted studies one after the other: claims each by its lease, resumes it, and stops it on request."""

from __future__ import annotations

import gc
import logging
import os
import signal
import threading
import traceback
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from ftp_core.errors import CoreError
from search.config.run_config import RunConfig
from search.errors import SearchError
from search.service.jobs.event_log import EventLog, console_of
from search.service.rules.roots import Reach, check_reach
from studies import LeaseLostError, StorageError, StudiesError, StudyBusyError, StudyNotFoundError, StudyStore
from studies.service.runners import BEAT_EVERY_S
from studies.service.service_store import ServiceStore
from studies.service.submissions import Submission

if TYPE_CHECKING:
    from studies.store.lease import Lease

_LOOK_EVERY_S = 1.0
# A run that goes on is interrupted again: other code may have swallowed the interruption.
_REMIND_AFTER_S = 30.0

_log = logging.getLogger(__name__)

# Writes the report of a study, given by name, into a folder and returns its files.
WriteReport = Callable[[StudyStore, str, Path], Sequence[Path]]


class Runner:
    """A process that runs submitted studies.

    Studies run in the main thread, which Ctrl-C interrupts; a request to stop a study does the same. Ending the runner
    interrupts evaluations, which another runner repeats, but not the writes before and after a run, which would leave
    the study claimed for a while.

    Args:
        storage: URL of the database.
        report: Function that writes reports.
        ray_address: Ray cluster to use; None for one of this machine.
        parent: Process whose end also ends this one; None for none.
        reach: Files that studies may use; None for any.
    """

    def __init__(
        self,
        storage: str,
        report: WriteReport,
        ray_address: str | None = None,
        parent: int | None = None,
        reach: Reach | None = None,
    ) -> None:
        self.id = str(uuid.uuid4())
        self._storage = storage
        self._store = ServiceStore(storage)
        self._report = report
        self._ray_address = ray_address
        self._parent = parent
        self._reach = reach
        self._lock = threading.Lock()
        # The study whose run may be interrupted now.
        self._running: str | None = None
        # Whether the next interruption is for the run alone, or for the runner.
        self._stops_run = False
        self._leaves = False
        # Whether an interruption waits for writes to end.
        self._is_noting = False
        self._is_over = threading.Event()

    def run(self, until_idle: bool = False) -> None:
        """Runs studies as they are submitted, with `until_idle` for as long as one is waiting.

        Raises:
            KeyboardInterrupt: The runner was told to exit; its study is back in the queue.
            StorageError: The database was unreachable for too long.
        """
        signal.signal(signal.SIGTERM, self._interrupted)
        signal.signal(signal.SIGINT, self._interrupted)
        self._store.runners.beat(self.id, None)
        watch = threading.Thread(target=self._watch, name="watch", daemon=True)
        watch.start()
        try:
            while True:
                if self._leaves:
                    # Other code, such as a destructor, swallowed the interruption.
                    raise KeyboardInterrupt
                if not self.run_next():
                    if until_idle:
                        return
                    self._is_over.wait(_LOOK_EVERY_S)
        finally:
            self._is_noting = True
            self._is_over.set()
            watch.join()
            try:
                with self._store.hurried():
                    self._store.runners.forget(self.id)
            except StorageError as error:
                _log.warning("That this runner has left is not written: %s", error)
            self._store.close()

    def run_next(self) -> bool:
        """Runs the next study to its end; False if none was waiting."""
        for name in self._store.queue.waiting():
            # A new store for each study.
            with StudyStore(self._storage, create=False) as store:
                try:
                    with self._noting(), store.runs.lease(name) as lease:
                        submission = self._store.queue.claim(name, self.id, lease)
                        if submission is None:
                            continue
                        self._run_claimed(store, lease, submission)
                        return True
                except (StudyBusyError, StudyNotFoundError):
                    # Another runner has claimed it, or it was deleted.
                    continue
                finally:
                    gc.collect()
        return False

    @contextmanager
    def _noting(self) -> Iterator[None]:
        """Context in which interruptions wait for its end, except those of a run inside."""
        self._is_noting = True
        try:
            yield
        finally:
            self._is_noting = False
            if self._leaves:
                raise KeyboardInterrupt

    def _run_claimed(self, store: StudyStore, lease: Lease, submission: Submission) -> None:
        name = submission.name
        events = EventLog(self._store, name)
        error: str | None = None
        try:
            _log.info("Study %r begins.", name)
            self._store.runners.beat(self.id, name)
            try:
                self._is_noting = False
                with self._lock:
                    self._running, self._stops_run = name, False
                if self._leaves:
                    raise KeyboardInterrupt
                self._go_on(store, lease, submission, events)
                with self._lock:
                    self._running = None
            finally:
                self._is_noting = True
        except KeyboardInterrupt:
            self._is_noting, self._running = True, None
            self._leaves = self._leaves or not self._stops_run
            self._return(name, lease, events)
            if self._leaves:
                raise
            self._store.runners.beat(self.id, None)
            return
        except LeaseLostError as lost:
            # Another process now holds the study.
            _log.warning("%s", lost)
            return
        except (SearchError, StudiesError, CoreError, OSError) as known:
            error = " ".join(str(known).split()) or type(known).__name__
        except Exception as defect:
            error = f"{type(defect).__name__}: {defect} (this is a defect)"
            for line in traceback.format_exc().splitlines():
                events.say(line)
        finally:
            self._running = None
            if error is not None:
                events.say(error)
                _log.error("Study %r failed: %s", name, error)
            events.close()
        self._store.queue.end(name, self.id, error, lease)
        self._store.runners.beat(self.id, None)

    def _return(self, name: str, lease: Lease, events: EventLog) -> None:
        """Returns an interrupted study to the queue, unless it was stopped."""
        try:
            with self._store.hurried():
                events.close()
                self._store.queue.release(name, self.id, lease)
        except StorageError as error:
            # Without a lease, it counts as one whose runner has died.
            _log.warning("That study %r waits again is not written: %s", name, error)

    def _go_on(self, store: StudyStore, lease: Lease, submission: Submission, events: EventLog) -> None:
        """Applies the submitted changes and runs the missing stages, or compares other methods."""
        name = submission.name
        study = store.studies.get(name)
        config = RunConfig.stored(study.config, **submission.changes)
        check_reach(config, name, self._reach)
        # They load torch and transformers.
        from search.comparison.plan import ComparisonPlan
        from search.pipeline.create import reopened
        from search.pipeline.preflight import check_search
        from search.pipeline.workload import load_with_progress
        from search.progress.progress_view import ProgressView

        view = ProgressView(console_of(events, name), observers=[events])
        # The previous runner's cluster may be out of reach.
        config = config.model_copy(update={"ray_address": self._ray_address})
        workload = load_with_progress(config, view)
        if not store.runs.stages(name):
            # The service has not loaded the model.
            check_search(config, workload, store)

        def report(folder: Path) -> Sequence[Path]:
            return self._report(store, name, folder)

        pipeline = reopened(store, study, config, lease, view, submission.changes, workload)
        self._store.queue.note_changed(name)
        if submission.comparison is None:
            pipeline.run(report)
        else:
            # What is known of it is not done again, whoever began.
            pipeline.compare(ComparisonPlan.stored(submission.comparison), report)

    def _watch(self) -> None:
        """Writes signs of life, and interrupts the study once it is to stop."""
        silent_s, told_s, left_s = 0.0, _REMIND_AFTER_S, 0.0
        while not self._is_over.wait(_LOOK_EVERY_S):
            name = self._running
            silent_s, told_s = silent_s + _LOOK_EVERY_S, told_s + _LOOK_EVERY_S
            if self._parent is not None and os.getppid() != self._parent and not self._leaves:
                _log.warning("The service is gone: so does this runner.")
                signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGTERM)
                self._parent = None
            left_s = left_s + _LOOK_EVERY_S if self._leaves else 0.0
            if left_s >= _REMIND_AFTER_S:
                signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGTERM)
                left_s = 0.0
            try:
                if silent_s >= BEAT_EVERY_S:
                    self._store.runners.beat(self.id, name)
                    silent_s = 0.0
                if name is None:
                    told_s = _REMIND_AFTER_S
                elif told_s >= _REMIND_AFTER_S and self._store.queue.stop_requested(name, self.id):
                    told_s = 0.0
                    self._interrupt(name)
            except (StudyNotFoundError, StorageError) as error:
                _log.warning("%s", error)

    def _interrupted(self, number: int, _: object) -> None:
        """Handler of SIGTERM and, outside of the search, of Ctrl-C."""
        if number == signal.SIGTERM or self._running is None or not self._stops_run:
            self._leaves = True
        if not self._is_noting:
            raise KeyboardInterrupt

    def _interrupt(self, name: str) -> None:
        """Interrupts the run, as Ctrl-C does, unless it has just ended."""
        with self._lock:
            if self._running == name:
                self._stops_run = True
                signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)
