"""Evaluates schedules in Ray actors that load the model once."""

from __future__ import annotations

import logging
import os
import signal
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

# Both must be set before Ray is imported: no usage report, and no warning about accelerators that are not asked for.
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")

import ray
import torch
from ray.exceptions import RayError, RayTaskError

from ftp_core.schedule import SparsitySchedule
from search.errors import EvaluationError
from search.evaluators import Evaluation
from search.evaluators.local import LocalEvaluator
from search.workload import load_workload

MAX_ATTEMPTS = 3


@dataclass(frozen=True)
class WorkerSetup:
    """What an actor loads before its first schedule.

    Attributes:
        model: Name of the model.
        data: Name of the data.
        seed: Of the data's splits.
        sizes: Examples in each split.
        n_items: How many calibration examples a schedule is evaluated on.
    """

    model: str
    data: str
    seed: int
    sizes: Mapping[str, int]
    n_items: int


class _Worker:
    """Runs inside an actor."""

    def __init__(self, setup: WorkerSetup) -> None:
        # Ray gives an actor one core; more threads than that would fight with the other actors.
        torch.set_num_threads(1)
        workload = load_workload(setup.model, setup.data, setup.seed, setup.sizes)
        self._evaluator = LocalEvaluator(workload.model.skipping, workload.splits["calibration"][: setup.n_items])

    def ready(self) -> bool:
        return True

    def evaluate(self, schedule: tuple[float, ...]) -> Evaluation:
        return self._evaluator.evaluate(SparsitySchedule(schedule))


class RayPool:
    """Actors on this machine, each with one core and its own copy of the model.

    An actor that dies is replaced and its schedules are tried again, up to three times.

    Args:
        setup: What each actor loads.
        n_workers: How many actors.
        on_ready: Called when an actor has loaded.

    Raises:
        EvaluationError: Ray or an actor could not start.
    """

    def __init__(self, setup: WorkerSetup, n_workers: int, on_ready: Callable[[], None] = lambda: None) -> None:
        self._setup = setup
        on_terminate = signal.getsignal(signal.SIGTERM)
        try:
            ray.init(
                # Never a cluster that happens to be named in the environment: its machines lack the user's files.
                address="local",
                num_cpus=n_workers,
                include_dashboard=False,
                log_to_driver=False,
                logging_level=logging.ERROR,
                configure_logging=True,
            )
        except (RuntimeError, OSError, ValueError) as error:
            raise EvaluationError(f"Ray could not start: {str(error).splitlines()[0]}") from error
        # Ray exits the process on SIGTERM; what to do about it is for the caller to say.
        signal.signal(signal.SIGTERM, on_terminate)
        self._actor_type = ray.remote(num_cpus=1)(_Worker)
        self._actors: list[Any] = [self._actor_type.remote(setup) for _ in range(n_workers)]
        self._load = [0] * n_workers
        self._in_flight: dict[Any, tuple[int, SparsitySchedule, int]] = {}
        try:
            starting = [actor.ready.remote() for actor in self._actors]
            while starting:
                [done], starting = ray.wait(starting, num_returns=1)
                ray.get(done)
                on_ready()
        except RayError as error:
            self.close()
            raise EvaluationError(f"A worker could not start: {_cause(error)}") from error
        except BaseException:
            self.close()
            raise

    @property
    def capacity(self) -> int:
        """Two a worker: one that runs, one that waits."""
        return 2 * len(self._actors)

    def submit(self, schedule: SparsitySchedule) -> None:
        """See `Evaluator.submit`."""
        self._send(schedule, attempt=1)

    def next_result(self) -> Evaluation:
        """See `Evaluator.next_result`."""
        while True:
            [done], _ = ray.wait(list(self._in_flight), num_returns=1)
            worker, schedule, attempt = self._in_flight.pop(done)
            self._load[worker] -= 1
            try:
                result: Evaluation = ray.get(done)
            except RayTaskError as error:
                return Evaluation(schedule, error=_cause(error))
            except RayError as error:
                # The worker died, or was killed for want of memory.
                self._replace(worker)
                if attempt < MAX_ATTEMPTS:
                    self._send(schedule, attempt + 1)
                    continue
                return Evaluation(schedule, error=f"its worker died {attempt} times: {_cause(error)}")
            return result

    def close(self) -> None:
        """See `Evaluator.close`."""
        self._in_flight.clear()
        ray.shutdown()

    def _send(self, schedule: SparsitySchedule, attempt: int) -> None:
        worker = min(range(len(self._actors)), key=self._load.__getitem__)
        self._load[worker] += 1
        self._in_flight[self._actors[worker].evaluate.remote(tuple(schedule))] = (worker, schedule, attempt)

    def _replace(self, worker: int) -> None:
        """Start a new actor in the place of a dead one, once for all schedules that it held."""
        try:
            ray.get(self._actors[worker].ready.remote())
        except RayError:
            self._actors[worker] = self._actor_type.remote(self._setup)


def _cause(error: Exception) -> str:
    """The last line of a Ray error, which is the one that the worker raised."""
    lines = [line for line in str(error).splitlines() if line.strip()]
    return lines[-1].strip() if lines else type(error).__name__
