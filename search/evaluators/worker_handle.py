"""Workers as a pool sees them, the calls that they hold, and checks of their number."""

from __future__ import annotations

import time
from collections import deque
from dataclasses import dataclass, field, replace
from typing import Any

from ftp_core.cpu_limits import n_cores
from search.errors import ConfigError, EvaluationError
from search.evaluators import Evaluation, Task

# Device of workers whose GPU Ray assigns.
GPU = "cuda"
# Workers wait for each other now and then, so that a few more than cores may be of use.
_PER_CORE = 4


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
        device: `cpu`, `cuda`, `cuda:N` or `mps`.
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


def check_numbers(n_workers: int, n_gpu_workers: int) -> None:
    """Raises `ConfigError` if there are no workers."""
    if n_workers < 0 or n_gpu_workers < 0 or n_workers + n_gpu_workers == 0:
        raise ConfigError(
            f"{n_workers} workers and {n_gpu_workers} more on GPUs evaluate nothing: give at least one of them."
        )


def most_on_this_machine() -> int:
    """Most CPU workers of one machine: more would wait for each other and for memory."""
    return _PER_CORE * n_cores()


def check_fit(n_workers: int) -> None:
    """Raises `ConfigError` if this machine has far fewer cores than workers on CPUs."""
    most = most_on_this_machine()
    if n_workers > most:
        raise ConfigError(
            f"--workers is {n_workers}, but this machine has {n_cores()} cores for it, of which each worker uses one: "
            f"give {most} at most, or --ray-address for a cluster."
        )


def check_gpus(n_gpu_workers: int, gpu_share: float, n_gpus: int) -> None:
    """Checks that the GPUs suffice, for which Ray would wait for ever.

    Raises:
        ConfigError: The share of each worker is invalid.
        EvaluationError: The GPUs do not suffice.
    """
    if n_gpu_workers == 0:
        return
    if gpu_share <= 0 or (gpu_share > 1 and gpu_share != int(gpu_share)):
        raise ConfigError(f"A share of {gpu_share:g} GPUs is none: give one in (0, 1], or a whole number.")
    n_fitting = n_gpus * int(1 / gpu_share + 1e-9) if gpu_share <= 1 else n_gpus // int(gpu_share)
    if n_gpu_workers > n_fitting:
        raise EvaluationError(
            f"Of {n_gpu_workers} workers that take {gpu_share:g} of a GPU each, {n_fitting} fit on the {n_gpus} GPUs "
            "that Ray sees here: start fewer, or give each a smaller share."
        )
