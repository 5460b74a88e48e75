"""Runs `ftp-search` in a process that kills itself in the middle of a stage, as `kill -9` would: `STAGE N ARGUMENT...`.

The process dies at the N-th sign of life that the stage gives: a figure, a quality that was kept, or at its begin (0).
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from typing import Any

from search.cli import main
from search.progress.progress_view import ProgressView
from studies.store.runs import Runs
from studies.store.shared import Evaluations


def _dying(method: Callable[..., Any], counts: Callable[..., bool], last: int) -> Callable[..., Any]:
    """The method, which kills the process behind its call number `last` that counts."""
    calls = 0

    def called(self: object, *arguments: Any) -> Any:
        nonlocal calls
        result = method(self, *arguments)
        calls += counts(*arguments)
        if calls >= last and counts(*arguments):
            os.kill(os.getpid(), signal.SIGKILL)
        return result

    return called


def run() -> None:
    stage, last, *arguments = sys.argv[1:]
    n, running = int(last), [""]

    def begins(_: str, name: str) -> bool:
        running[0] = name
        return n == 0 and name == stage

    Runs.begin_stage = _dying(Runs.begin_stage, begins, 1)  # type: ignore[method-assign]
    if n > 0:
        figures = _dying(ProgressView.figures, lambda name, *_: name == stage, n)
        ProgressView.figures = figures  # type: ignore[method-assign]
        kept = _dying(Evaluations.keep, lambda *_: running[0] == stage, n)
        Evaluations.keep = kept  # type: ignore[method-assign]
    sys.argv = ["ftp-search", *arguments]
    main()


if __name__ == "__main__":
    run()
