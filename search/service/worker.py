"""Runs submitted studies, one after the other: claims one by its lease, goes on where it stands, stops when told."""

from __future__ import annotations

import gc
import logging
import os
import signal
import threading
import traceback
import uuid
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ftp_core.errors import CoreError
from search.config import RunConfig
from search.errors import ConfigError, SearchError
from search.service.event_log import EventLog, console_of
from studies import LeaseLostError, StorageError, StudiesError, StudyBusyError, StudyNotFoundError, StudyStore
from studies.service_store import ServiceStore
from studies.submissions import Submission
from studies.workers import BEAT_EVERY_S

if TYPE_CHECKING:
    from studies import Lease

_LOOK_EVERY_S = 1.0
# A run that was told to stop, and goes on, is told so again.
_REMIND_AFTER_S = 30.0

_log = logging.getLogger(__name__)

# Writes the report of the study of a name into a folder; gives its files.
WriteReport = Callable[[StudyStore, str, Path], Sequence[Path]]


class Worker:
    """A process that runs submitted studies.

    Studies run in the main thread, where Ctrl-C arrives: stopping one from elsewhere is the same as pressing it here.

    Args:
        storage: URL of the database.
        report: Writes reports.
        ray_address: Ray cluster to work on; None for one of this machine alone.
        parent: Process whose end ends this one, too; None for none.

    Attributes:
        id: Tells this worker from others.
    """

    def __init__(
        self, storage: str, report: WriteReport, ray_address: str | None = None, parent: int | None = None
    ) -> None:
        self.id = str(uuid.uuid4())
        self._storage = storage
        self._store = ServiceStore(storage)
        self._report = report
        self._ray_address = ray_address
        self._parent = parent
        self._lock = threading.Lock()
        # The study whose run may be interrupted now.
        self._running: str | None = None
        # What the interruption that arrives is for: the run alone, or the worker.
        self._stops_run = False
        self._leaves = False
        self._is_over = threading.Event()

    def run(self, until_idle: bool = False) -> None:
        """Run studies as they come.

        Args:
            until_idle: Whether to leave once no study waits.

        Raises:
            KeyboardInterrupt: Somebody wants the worker to leave; what it ran is back in the queue.
            StorageError: The database is away for too long.
        """
        signal.signal(signal.SIGTERM, self._leave)
        self._store.beat(self.id, None)
        watch = threading.Thread(target=self._watch, name="watch", daemon=True)
        watch.start()
        try:
            while True:
                if not self.run_next():
                    if until_idle:
                        return
                    self._is_over.wait(_LOOK_EVERY_S)
        finally:
            self._is_over.set()
            watch.join()
            try:
                with self._store.hurried():
                    self._store.forget_worker(self.id)
            except StorageError as error:
                _log.warning("That this worker has left is not written: %s", error)
            self._store.close()

    def run_next(self) -> bool:
        """Run the study whose turn it is, up to its end; whether there was one."""
        for name in self._store.waiting():
            # What is left of an earlier study is not this one's.
            with StudyStore(self._storage, create=False) as store:
                try:
                    with store.lease(name) as lease:
                        submission = self._store.claim(name, self.id)
                        if submission is None:
                            continue
                        self._run_claimed(store, lease, submission)
                        return True
                except (StudyBusyError, StudyNotFoundError):
                    # Another worker was faster, or somebody has deleted it.
                    continue
                finally:
                    gc.collect()
        return False

    def _run_claimed(self, store: StudyStore, lease: Lease, submission: Submission) -> None:
        name = submission.name
        events = EventLog(self._store, name)
        error: str | None = None
        try:
            with self._lock:
                self._running, self._stops_run = name, False
            _log.info("Study %r begins.", name)
            self._store.beat(self.id, name)
            self._go_on(store, lease, submission, events)
            with self._lock:
                self._running = None
        except KeyboardInterrupt:
            self._running = None
            events.close()
            with self._store.hurried():
                self._store.release(name, self.id)
            if self._leaves or not self._stops_run:
                raise
            return
        except LeaseLostError as lost:
            # What is said of the study is another process's now.
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
        self._store.end(name, self.id, error)
        self._store.beat(self.id, None)

    def _go_on(self, store: StudyStore, lease: Lease, submission: Submission, events: EventLog) -> None:
        """Make the changes that were submitted, then run every stage that is missing."""
        # They load torch and transformers.
        from search.feasibility import check_search
        from search.pipeline import Pipeline, load_with_progress
        from search.progress import ProgressView
        from search.starting import reconfigure

        name = submission.name
        view = ProgressView(console_of(events, name), observers=[events])
        config = RunConfig.stored(store.study(name).config, **submission.changes)
        if self._ray_address is not None:
            config = config.model_copy(update={"ray_address": self._ray_address})
        _check_model(config)
        reconfigure(store, name, config, submission.changes)
        self._store.note_changed(name)
        workload = load_with_progress(config, view)
        if not store.stages(name):
            # Who submitted it could not load the model.
            check_search(config, workload, store)

        def report(folder: Path) -> Sequence[Path]:
            return self._report(store, name, folder)

        Pipeline(store, name, lease, view, workload).run(report)

    def _watch(self) -> None:
        """Show that this worker lives, and interrupt the study that it runs if that shall stop."""
        silent_s, told_s = 0.0, _REMIND_AFTER_S
        while not self._is_over.wait(_LOOK_EVERY_S):
            name = self._running
            silent_s, told_s = silent_s + _LOOK_EVERY_S, told_s + _LOOK_EVERY_S
            if self._parent is not None and os.getppid() != self._parent:
                _log.warning("The service is gone: so does this worker.")
                signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGTERM)
                self._parent = None
            try:
                if silent_s >= BEAT_EVERY_S:
                    self._store.beat(self.id, name)
                    silent_s = 0.0
                if name is None:
                    told_s = _REMIND_AFTER_S
                elif told_s >= _REMIND_AFTER_S and self._store.stop_requested(name, self.id):
                    told_s = 0.0
                    self._interrupt(name)
            except (StudyNotFoundError, StorageError) as error:
                _log.warning("%s", error)

    def _leave(self, *_: object) -> None:
        self._leaves = True
        raise KeyboardInterrupt

    def _interrupt(self, name: str) -> None:
        """What Ctrl-C does, unless the run has just ended by itself."""
        with self._lock:
            if self._running == name:
                self._stops_run = True
                signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)


def _check_model(config: RunConfig) -> None:
    """A request's model without a path is one of the Hub, and no folder that happens to lie where this worker began.

    Raises:
        ConfigError: There is such a folder.
    """
    if config.model != "demo" and not os.path.isabs(config.model) and Path(config.model).exists():
        raise ConfigError(f"The model is {config.model!r}, and a folder of this name is in the way: start elsewhere.")
