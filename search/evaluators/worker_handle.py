"""Workers as a pool knows them, and the calls that they hold."""

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
        task: What it is to evaluate; None for a call that starts it or sees whether it lives.
        reference: Ray's, of the result.
        death: What Ray said, if the worker died first.
    """

    handle: WorkerHandle
    task: Task | None
    reference: Any
    death: Exception | None = None


@dataclass(eq=False)
class WorkerHandle:
    """A worker of a pool, or the one that replaces it.

    Attributes:
        device: `cpu` or `cuda`.
        number: Its number in the pool, which its workers have one after the other.
        host: Name of the machine that its worker is on; empty where all are on one.
        halvings: How many of its workers died for want of memory.
        failed_starts: How many of the last starts failed.
        refused_starts: How many of these ended with an error of the setup, which is likely to come again.
        actor: Ray's handle of the worker.
        is_ready: Whether it has loaded.
        is_dying: Whether a call has told of its death, and others have not yet.
        is_leaving: Whether it ends when it has done what it holds.
        calls: What it holds, in the order in which it does it.
        changed: When its first call became the first, or when it became idle, by the monotonic clock.
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
        """What its worker is called in trials."""
        return f"{self.number} on {self.host}" if self.host else str(self.number)

    def named(self, evaluation: Evaluation) -> Evaluation:
        """An evaluation that came from its worker."""
        return replace(evaluation, worker=self.worker)

    def failed(self, task: Task, error: str, ended: float) -> Evaluation:
        """What becomes of its first call's task, if no evaluation came back.

        Args:
            task: The task.
            error: What went wrong.
            ended: When, by the monotonic clock.
        """
        seconds = max(0.0, ended - self.changed)
        # The worker cannot say any more when it began.
        began_at = time.time() - (time.monotonic() - ended) - seconds
        return Evaluation(task, seconds=seconds, error=error, worker=self.worker, began_at=began_at)

    @property
    def takes_tasks(self) -> bool:
        """Whether it may be given tasks."""
        return self.is_ready and not self.is_dying and not self.is_leaving

    @property
    def is_at_work(self) -> bool:
        """Whether it runs a call, other than its start."""
        return self.is_ready and not self.is_dying and len(self.calls) > 0
