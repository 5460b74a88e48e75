"""A process that answers one prompt: the question is JSON on standard input, the answer JSON on standard output."""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from dataclasses import asdict
from typing import Any

from ftp_core.errors import CoreError
from search.config.run_config import STORAGE_VARIABLE
from search.errors import SearchError
from search.service.jobs.children import PARENT_VARIABLE
from search.stages.origin import trial_to_use
from search.stages.own_prompt import run_prompt
from studies import StudiesError, StudyStore

_LOOK_EVERY_S = 1.0


def main() -> None:
    """Reads a question and writes the answer."""
    threading.Thread(target=_end_with_parent, args=(int(os.environ[PARENT_VARIABLE]),), daemon=True).start()
    # Libraries print what they like: all of it goes where messages go.
    with os.fdopen(os.dup(1), "w", encoding="utf-8") as out:
        os.dup2(2, 1)
        asked = json.loads(sys.stdin.buffer.read())
        json.dump(answered(os.environ[STORAGE_VARIABLE], **asked), out)


def answered(storage: str, study: str, trial: int, text: str, new_tokens: int) -> dict[str, Any]:
    """An answer, or in its place why there is none: `refused`, or `away` for a database that does not answer."""
    try:
        with StudyStore(storage, create=False) as store:
            found = trial_to_use(store, study, trial)
            return {"answer": asdict(run_prompt(store, study, found, text, new_tokens, {}))}
    except StudiesError as error:
        return {"away": str(error)}
    except (SearchError, CoreError) as error:
        return {"refused": str(error)}


def _end_with_parent(parent: int) -> None:
    """Ends this process once the service is gone, which may have been killed."""
    while os.getppid() == parent:
        time.sleep(_LOOK_EVERY_S)
    os._exit(1)


if __name__ == "__main__":
    main()
