"""Runner processes of the service, replaced when they die."""

from __future__ import annotations

import logging
import subprocess
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass

from search.service.jobs.children import environment

_LOOK_EVERY_S = 0.5
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 1.0, 60.0
# A runner that lived this long did not fail at its start.
_SOUND_AFTER_S = 60.0
_PATIENCE_S = 30.0

_log = logging.getLogger(__name__)


@dataclass
class _Place:
    process: subprocess.Popen[bytes] | None = None
    began_at: float = 0.0
    pause_s: float = _FIRST_PAUSE_S
    start_at: float = 0.0


class RunnerProcesses:
    """Context in which a number of runners are kept running, each started by a command."""

    def __init__(self, number: int, command: Sequence[str], storage: str) -> None:
        self._command = list(command)
        self._environment = environment(storage)
        self._places = [_Place() for _ in range(number)]
        self._is_over = threading.Event()
        self._thread = threading.Thread(target=self._keep_running, name="runner processes", daemon=True)

    def __enter__(self) -> RunnerProcesses:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._is_over.set()
        self._thread.join()
        running = [place.process for place in self._places if place.process is not None]
        for process in running:
            process.terminate()
        deadline = time.monotonic() + _PATIENCE_S
        for process in running:
            try:
                process.wait(max(0.0, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                _log.warning(
                    "Runner %d does not exit and is killed; another runner will go on with its study.", process.pid
                )
                process.kill()
                process.wait()

    def _keep_running(self) -> None:
        while True:
            for place in self._places:
                self._look_after(place)
            if self._is_over.wait(_LOOK_EVERY_S):
                return

    def _look_after(self, place: _Place) -> None:
        now = time.monotonic()
        if place.process is not None and place.process.poll() is not None:
            place.pause_s = _FIRST_PAUSE_S if now - place.began_at > _SOUND_AFTER_S else place.pause_s
            _log.warning(
                "Runner %d ended with %d: another one begins in %.0f s.",
                *(place.process.pid, place.process.returncode, place.pause_s),
            )
            place.process, place.start_at = None, now + place.pause_s
            place.pause_s = min(2 * place.pause_s, _LONGEST_PAUSE_S)
        if place.process is None and now >= place.start_at:
            # In a session of its own, so that Ctrl-C reaches the service alone, which ends its runners in order.
            place.process = subprocess.Popen(
                self._command, env=self._environment, stdin=subprocess.DEVNULL, start_new_session=True
            )
            place.began_at = now
