"""Asks a trial one's own prompt, in a process of its own: the service itself loads no model."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
import threading
from typing import Any

from search.config.run_config import RunConfig
from search.errors import BusyError, DeadlineError, SearchError
from search.service.jobs.children import environment
from search.service.rules.roots import Reach, check_model_reach
from search.service.rules.settings import ServiceSettings
from search.stages.origin import check_exportable
from studies import StorageError
from studies.service.service_store import ServiceStore

_COMMAND = [sys.executable, "-P", "-m", "search.service.jobs.prompt_child"]
# Of what a process that failed has printed.
_LAST_CHARACTERS = 4000

_log = logging.getLogger(__name__)


class PromptProcess:
    """Answers prompts one at a time, each in a process that loads the model of its study.

    Args:
        store: Database of the studies.
        settings: Settings of the service.
    """

    def __init__(self, store: ServiceStore, settings: ServiceSettings) -> None:
        self._store = store
        self._settings = settings
        self._turn = threading.Lock()
        # Between the start of a process and the end of the service.
        self._guard = threading.Lock()
        self._process: subprocess.Popen[str] | None = None
        self._is_over = False

    def answer(self, name: str, trial: int, text: str, new_tokens: int) -> dict[str, Any]:
        """The fields of an `OwnPrompt`: the prompt under a trial's schedule, with the answers of both models.

        Raises:
            SearchError: There is no such trial, it has no finite figures, its model lies out of the service's reach or
                cannot be loaded, or the text does not fit it.
            BusyError: Another prompt is being answered.
            DeadlineError: It takes too long.
            StudiesError: There is no such study, or the database does not answer.
        """
        known = self._store.trials.find(name, trial)
        if known is None:
            raise SearchError(f"Study {name!r} has no trial {trial} that has ended: choose one that finished.")
        check_exportable(name, known)
        settings = self._settings
        # As a runner that the service starts.
        reach = Reach(settings.roots, settings.out, settings.hub) if settings.roots else None
        check_model_reach(RunConfig.stored(self._store.studies.get(name).config), reach)
        if not self._turn.acquire(blocking=False):
            raise BusyError("The service answers another prompt, and one at a time: try again in a moment.")
        try:
            said = self._ask({"study": name, "trial": trial, "text": text, "new_tokens": new_tokens})
        finally:
            self._turn.release()
        if "away" in said:
            raise StorageError(said["away"])
        if "refused" in said:
            raise SearchError(said["refused"])
        found: dict[str, Any] = said["answer"]
        return found

    def close(self) -> None:
        """Ends the process that answers a prompt."""
        with self._guard:
            self._is_over = True
            if self._process is not None:
                self._process.kill()

    def _ask(self, asked: dict[str, Any]) -> dict[str, Any]:
        with self._guard:
            if self._is_over:
                raise BusyError("The service is about to end: try again once it is back.")
            # In a session of its own, so that Ctrl-C reaches the service alone.
            self._process = process = subprocess.Popen(
                _COMMAND,
                env=environment(self._store.url),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                encoding="utf-8",
                errors="replace",
                start_new_session=True,
            )
        try:
            with process:
                try:
                    answer, said = process.communicate(json.dumps(asked), self._settings.prompt_s)
                except BaseException as error:
                    process.kill()
                    if isinstance(error, subprocess.TimeoutExpired):
                        raise DeadlineError(
                            f"The prompt took longer than {self._settings.prompt_s:g} s and was given up: ask for "
                            "fewer new tokens, or run `ftp-search prompt` where there is more time."
                        ) from error
                    raise
        finally:
            self._process = None
        if process.returncode == 0:
            found: dict[str, Any] = json.loads(answer)
            return found
        if process.returncode < 0:
            raise SearchError(
                f"The process that answers prompts was ended by signal {-process.returncode}, perhaps because memory "
                "ran out: try again, or run `ftp-search prompt` where there is more."
            )
        _log.error("A prompt failed:\n%s", said[-_LAST_CHARACTERS:])
        raise RuntimeError("The process that answers prompts failed; the log says where.")
