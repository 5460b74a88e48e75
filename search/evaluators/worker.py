"""What runs in a process of its own and evaluates tasks."""

from __future__ import annotations

import pickle
import socket
from typing import Protocol

from search.evaluators import Evaluation, Task


class Worker(Protocol):
    """Evaluates one task at a time."""

    def evaluate(self, task: Task) -> Evaluation:
        """What is found out about a task."""


class WorkerSetup(Protocol):
    """Makes workers; pickled to each of their processes. Its numpy arrays lie in memory that all of a node share."""

    def start(self, device: str, halvings: int) -> Worker:
        """Make the worker of this process.

        Args:
            device: `cpu` or `cuda`.
            halvings: How many workers before it, in the same place, died for want of memory: batches should be halved
                so many times.
        """


class WorkerProcess:
    """What such a process is called by. The torch of a worker is its own affair: nothing here imports it."""

    def __init__(self) -> None:
        self._worker: Worker | None = None

    def start(self, setup: WorkerSetup, device: str, halvings: int) -> str:
        """Make the worker; gives the name of its machine."""
        self._worker = setup.start(device, halvings)
        return socket.gethostname()

    def evaluate(self, task: bytes) -> bytes:
        """Evaluate a pickled task; gives a pickled evaluation.

        Ray hands bytes on as they are, while its own pickling of such objects takes several times longer than this.
        """
        assert self._worker is not None
        return pickle.dumps(self._worker.evaluate(pickle.loads(task)), pickle.HIGHEST_PROTOCOL)

    def ping(self) -> None:
        """Give a sign of life."""
