"""Workers as a pool sees them, and the calls that they hold."""

from __future__ import annotations

import time
from collections import deque
from dataclasses import dataclass, field, replace
from typing import Any

from search.evaluators import Evaluation, Task


@dataclass(eq=False)
class Call:
    """A call to a worker.

    Attributes:
        handle: Handle of the worker.
        task: Task to evaluate; None for a start or a sign of life.
        reference: Ray's reference to the result.
        death: Ray's error, if the worker died first.
    """

    handle: WorkerHandle
    task: Task | None
    reference: Any
    death: Exception | None = None


@dataclass(eq=False)
class WorkerHandle:
    """A worker of a pool and its replacements.

    Attributes:
        device: `cpu` or `cuda`.
        number: Number in the pool, which replacements keep.
        host: Name of the worker's machine; empty where all workers share one.
        halvings: Number of workers that ran out of memory.
        failed_starts: Number of failed starts in a row.
        refused_starts: Number of those that failed with an error of the setup, which is likely to recur.
        actor: Ray's handle of the worker.
        is_ready: True once it has loaded.
        is_dying: True once one call, but not every one, has reported its death.
        is_leaving: True if it ends after its present calls.
        calls: Calls in the order of their execution.
        changed: Time by the monotonic clock at which its first call became the first, or at which it became idle.
    """

    device: str
    number: int
    host: str = ""
    halvings: int = 0
    failed_starts: int = 0
    refused_starts: int = 0
    actor: Any = None
    is_ready: bool = False
    is_dying: bool = False
    is_leaving: bool = False
    calls: deque[Call] = field(default_factory=deque)
    changed: float = 0.0

    @property
    def worker(self) -> str:
        """Name of the worker in trials."""
        return f"{self.number} on {self.host}" if self.host else str(self.number)

    def named(self, evaluation: Evaluation) -> Evaluation:
        """An evaluation with the name of the worker."""
        return replace(evaluation, worker=self.worker)

    def failed(self, task: Task, error: str, ended: float) -> Evaluation:
        """The failed evaluation of its first call's task; `ended` is a time of the monotonic clock."""
        seconds = max(0.0, ended - self.changed)
        # The worker cannot say any more when it began.
        began_at = time.time() - (time.monotonic() - ended) - seconds
        return Evaluation(task, seconds=seconds, error=error, worker=self.worker, began_at=began_at)

    @property
    def takes_tasks(self) -> bool:
        """True if it accepts tasks."""
        return self.is_ready and not self.is_dying and not self.is_leaving

    @property
    def is_at_work(self) -> bool:
        """True while it runs a call other than its start."""
        return self.is_ready and not self.is_dying and len(self.calls) > 0
