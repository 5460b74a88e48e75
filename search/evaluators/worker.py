"""Workers: processes that evaluate tasks."""

from __future__ import annotations

import pickle
import socket
from typing import Protocol

from search.evaluators import Evaluation, Task


class Worker(Protocol):
    """Evaluates one task at a time."""

    def evaluate(self, task: Task) -> Evaluation:
        """Evaluates a task; a failure is part of the evaluation."""


class WorkerSetup(Protocol):
    """Makes workers; pickled to each of their processes, with numpy arrays in memory that a node shares."""

    def start(self, device: str, halvings: int) -> Worker:
        """Makes the worker of this process.

        Args:
            device: `cpu`, `cuda`, `cuda:N` or `mps`.
            halvings: Number of times to halve batches: its predecessors that ran out of memory.
        """


class WorkerProcess:
    """Entry points of a worker process; imports no torch."""

    def __init__(self) -> None:
        self._worker: Worker | None = None

    def start(self, setup: WorkerSetup, device: str, halvings: int) -> str:
        """Makes the worker, and returns the name of its machine."""
        self._worker = setup.start(device, halvings)
        return socket.gethostname()

    def evaluate(self, task: bytes) -> bytes:
        """Evaluates a pickled task, and returns a pickled evaluation.

        Ray hands bytes on as they are, while its own pickling of such objects takes several times longer than this.
        """
        assert self._worker is not None
        return pickle.dumps(self._worker.evaluate(pickle.loads(task)), pickle.HIGHEST_PROTOCOL)

    def ping(self) -> None:
        """Returns at once, as a sign of life."""
