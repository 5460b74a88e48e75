"""Evaluates tasks in Ray actors, which may die, hang, come and go."""

from __future__ import annotations

import itertools
import logging
import os
import pickle
import queue
import signal
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from typing import Any

# Both must be set before Ray is imported: no usage report, and no warning about accelerators that are not asked for.
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")

import ray
from ray.exceptions import OutOfMemoryError, RayError, RayTaskError

from search.errors import EvaluationError
from search.evaluators import Evaluation, Task
from search.evaluators.backlog import Backlog
from search.evaluators.crash import KERNEL, cause_of
from search.evaluators.ray_address import check_address
from search.evaluators.ray_home import check_home
from search.evaluators.ray_job import job_config
from search.evaluators.worker import WorkerProcess, WorkerSetup
from search.evaluators.worker_handle import Call, Place
from search.evaluators.worker_numbers import check_gpus, check_numbers, most_on_this_machine

_log = logging.getLogger(__name__)

# Of a worker: one task runs, one waits behind it, so that the worker has the next one at once.
_IN_ACTOR = 2
# One more of each worker waits here, so that there is a choice of who takes it.
_PER_WORKER = _IN_ACTOR + 1
# Starts of one worker that may fail in a row before it is given up, and starts of all before the search is.
_MAX_STARTS = 3
# A worker that was idle for longer is asked for a sign of life ahead of its next task, which is then not taken for the
# cause of a death that nobody had noticed.
_LONG_IDLE_S = 1.0
# Addresses of the Rays that `cluster` keeps up: none, or one.
_kept: list[str | None] = []


class RayPool:
    """Workers in processes of their own, on this machine or on a cluster.

    Each holds two tasks, one that runs and one that waits; further ones wait here until a worker has room, which then
    gets the one nearest to what it evaluated before (see `Backlog`). A worker that dies or hangs is replaced: the task
    that it ran comes back with an error, those behind it go to others. (An answer given right before a sudden death is
    lost with the process: the task then counts as the one that ran.) A worker that died for want of memory, or as
    if it had, is replaced by one with smaller batches. Evaluations name their worker by its number, which the one that
    replaces it takes over, and on a cluster by its machine, too. Not for use by several threads.

    Args:
        setup: Makes the workers.
        n_workers: How many on CPUs, with one core each.
        address: Of a cluster to join, `auto` or `host:port`; None for a Ray of this process alone.
        n_gpu_workers: How many on GPUs.
        gpu_share: Share of a GPU that each of these takes.
        trial_timeout_s: How long a task may run.
        on_ready: Called whenever a worker has loaded.

    Raises:
        ConfigError: No worker is asked for.
        EvaluationError: Ray or all workers could not start, or the GPUs do not suffice.
    """

    def __init__(
        self,
        setup: WorkerSetup,
        n_workers: int,
        address: str | None = None,
        n_gpu_workers: int = 0,
        gpu_share: float = 1.0,
        trial_timeout_s: float | None = None,
        on_ready: Callable[[], None] = lambda: None,
    ) -> None:
        check_numbers(n_workers, n_gpu_workers)
        self._gpu_share = gpu_share
        self._trial_timeout_s = trial_timeout_s
        self._on_ready = on_ready
        self._places: list[Place] = []
        self._backlog = Backlog(patience=1)
        self._events: queue.SimpleQueue[tuple[Call, Future[Any], float]] = queue.SimpleQueue()
        self._n_pending = 0
        self._is_closed = False
        self._cause = ""
        self._on_cluster = start_ray(address, n_workers)
        n_workers = self._fitting(n_workers)
        try:
            if not self._on_cluster:
                n_gpus = int(ray.cluster_resources().get("GPU", 0))  # type: ignore[no-untyped-call]
                check_gpus(n_gpu_workers, gpu_share, n_gpus)
            self._actor_type = ray.remote(WorkerProcess)
            # Put once, the object store gives it to all processes of a node.
            self._setup = ray.put(setup)
            for device, number in (("cuda", n_gpu_workers), ("cpu", n_workers)):
                for _ in range(number):
                    self._add(device)
            results: list[Evaluation] = []
            while not any(place.is_ready for place in self._places):
                self._handle(*self._events.get(), results)
                self._check_alive()
        except RayError as error:
            self.close()
            raise EvaluationError(f"Workers could not start: {cause_of(error)}") from error
        except BaseException:
            self.close()
            raise

    @property
    def n_workers(self) -> int:
        """Workers on CPUs that run or start."""
        return sum(place.device == "cpu" and not place.is_leaving for place in self._places)

    @property
    def capacity(self) -> int:
        """Three per worker: one that runs, one that waits behind it, and one to choose from."""
        ready = sum(place.takes_tasks for place in self._places)
        return _PER_WORKER * max(1, ready)

    def submit(self, task: Task) -> None:
        """See `Evaluator.submit`."""
        self._n_pending += 1
        self._backlog.add(task)
        self._feed(self._places)

    def next_results(self, timeout_s: float | None = None) -> list[Evaluation]:
        """See `Evaluator.next_results`; empty at once if there is nothing to wait for, and no time either.

        Raises:
            EvaluationError: No worker is left, and none could be started.
        """
        ends = None if timeout_s is None else time.monotonic() + timeout_s
        results: list[Evaluation] = []
        while True:
            with suppress(queue.Empty):
                while True:
                    self._handle(*self._events.get_nowait(), results)
            self._end_overdue(results)
            if results:
                self._n_pending -= len(results)
                return results
            self._check_alive()
            if self._n_pending == 0 and ends is None:
                return []
            now = time.monotonic()
            if ends is not None and now >= ends:
                return []
            waits = [moment - now for moment in (ends, self._next_deadline()) if moment is not None]
            with suppress(queue.Empty):
                self._handle(*self._events.get(timeout=max(0.0, min(waits)) if waits else None), results)

    def resize(self, n_workers: int) -> None:
        """Change the number of workers on CPUs; those that go first do what they hold.

        Raises:
            ConfigError: No worker would be left.
        """
        check_numbers(n_workers, sum(place.device != "cpu" for place in self._places))
        n_workers = self._fitting(n_workers)
        places = [place for place in self._places if place.device == "cpu"]
        # Those stay that can do most right now.
        places.sort(key=lambda place: (place.is_leaving, not place.is_ready, -len(place.calls)))
        for rank, place in enumerate(places):
            place.is_leaving = rank >= n_workers
            if place.is_leaving and not any(call.task for call in place.calls):
                self._remove(place)
        for _ in range(n_workers - len(places)):
            self._add("cpu")
        self._feed(self._places)

    def close(self) -> None:
        """See `Evaluator.close`; a cluster that was joined, or is kept up, goes on without the workers."""
        if self._is_closed:
            return
        self._is_closed = True
        for place in self._places:
            _kill(place.actor)
        self._places.clear()
        stop_ray()

    def _fitting(self, n_workers: int) -> int:
        """As many workers as were asked for, or as this machine is given at most."""
        most = n_workers if self._on_cluster else min(n_workers, most_on_this_machine())
        if most < n_workers:
            _log.warning("%d workers are asked for; on this machine's cores there are %d at most", n_workers, most)
        return most

    def _add(self, device: str) -> None:
        taken = {place.number for place in self._places}
        place = Place(device, next(number for number in itertools.count() if number not in taken))
        self._places.append(place)
        self._set_patience()
        self._start(place)

    def _remove(self, place: Place) -> None:
        self._places.remove(place)
        self._backlog.forget(place)
        self._set_patience()
        place.calls.clear()
        _kill(place.actor)

    def _set_patience(self) -> None:
        self._backlog.patience = 2 * max(1, len(self._places))

    def _start(self, place: Place) -> None:
        """Start a worker in a place that has none, or none any more."""
        if place.actor is not None:
            _kill(place.actor)
        if place.device == "cuda":
            resources = {"num_cpus": 0, "num_gpus": self._gpu_share}
        else:
            # On this machine nobody else asks this Ray for cores, and the pool may grow beyond their number.
            resources = {"num_cpus": 1 if self._on_cluster else 0}
        self._backlog.forget(place)
        place.calls.clear()
        place.is_ready = place.is_dying = False
        place.actor = self._actor_type.options(**resources).remote()
        self._call(place, None, place.actor.start.remote(self._setup, place.device, place.halvings))

    def _call(self, place: Place, task: Task | None, reference: Any) -> None:
        call = Call(place, task, reference)
        if not place.calls:
            place.changed = time.monotonic()
        place.calls.append(call)
        # Ray's thread only notes what happened, and when.
        reference.future().add_done_callback(lambda future: self._events.put((call, future, time.monotonic())))

    def _feed(self, places: list[Place]) -> None:
        """Give tasks to workers that have room, first to those that have nothing to do."""
        for n_calls in range(_IN_ACTOR):
            for place in places:
                if place.takes_tasks and len(place.calls) <= n_calls:
                    task = self._backlog.take(place)
                    if task is None:
                        return
                    if not place.calls and time.monotonic() - place.changed > _LONG_IDLE_S:
                        self._call(place, None, place.actor.ping.remote())
                    data = pickle.dumps(task, pickle.HIGHEST_PROTOCOL)
                    self._call(place, task, place.actor.evaluate.remote(data))

    def _handle(self, call: Call, future: Future[Any], moment: float, results: list[Evaluation]) -> None:
        """Take in that a call has ended, and add to the results."""
        place, error = call.place, future.exception()
        if call not in place.calls:
            return
        if error is not None and not isinstance(error, RayError):
            raise error
        if isinstance(error, RayError) and not isinstance(error, RayTaskError):
            call.death = error
            place.is_dying = True
            # Whatever else it holds must end, too, also where only the connection was lost.
            _kill(place.actor)
        else:
            if call.task is not None:
                failed = place.failed(call.task, cause_of(error), moment) if error else None
                results.append(failed or place.named(pickle.loads(future.result())))
            is_first = place.calls[0] is call
            place.calls.remove(call)
            if is_first:
                place.changed = moment
            if call.task is None and error is not None:
                place.refused_starts += 1
                self._start_failed(place, cause_of(error))
                return
            if call.task is None and not place.is_ready:
                place.is_ready, place.failed_starts, place.refused_starts = True, 0, 0
                place.host = future.result() if self._on_cluster else ""
                _log.info("Worker %s is ready on %s", place.worker, place.device)
                self._on_ready()
        if place.calls and all(other.death is not None for other in place.calls):
            self._bury(place, moment, results)
        elif place.is_leaving and not place.calls:
            self._remove(place)
        else:
            self._feed([place])

    def _bury(self, place: Place, moment: float, results: list[Evaluation]) -> None:
        """Replace a worker whose calls have all ended with its death."""
        first, *others = place.calls
        assert first.death is not None
        cause = cause_of(first.death)
        _log.info("Worker %s died: %s", place.worker, cause)
        if _wanted_memory(first.death):
            place.halvings += 1
        if not place.is_ready:
            self._start_failed(place, cause)
            return
        if first.task is not None:
            results.append(place.failed(first.task, f"its worker died: {cause}", moment))
        self._replace(place, others)

    def _replace(self, place: Place, untouched: list[Call]) -> None:
        """Start another worker in a place, and give tasks that had not begun to others."""
        self._backlog.give_back(call.task for call in untouched if call.task is not None)
        if place.is_leaving:
            self._remove(place)
        else:
            self._start(place)
        self._feed(self._places)

    def _start_failed(self, place: Place, cause: str) -> None:
        self._cause = cause
        _log.info("Worker %s did not start: %s", place.worker, cause)
        place.failed_starts += 1
        if place.failed_starts >= _MAX_STARTS:
            _log.warning("A worker was given up after %d starts: %s", _MAX_STARTS, cause)
            self._remove(place)
        else:
            self._start(place)

    def _next_deadline(self) -> float | None:
        """When the first of the tasks that run now has had its time."""
        if self._trial_timeout_s is None:
            return None
        begun = (place.changed for place in self._places if place.is_at_work)
        return min((moment + self._trial_timeout_s for moment in begun), default=None)

    def _end_overdue(self, results: list[Evaluation]) -> None:
        """Replace workers whose task has had its time."""
        limit = self._trial_timeout_s
        if limit is None:
            return
        now = time.monotonic()
        for place in [place for place in self._places if place.is_at_work]:
            first, *others = place.calls
            # The thread that notes results may be late where this process is busy: Ray itself knows.
            if now - place.changed < limit or ray.wait([first.reference], timeout=0)[0]:
                continue
            if first.task is not None:
                results.append(place.failed(first.task, f"it ran longer than the limit of {limit:g} s", now))
            self._replace(place, others)

    def _check_alive(self) -> None:
        """Raise an error when no worker is left, or when setting up has failed in each, and often enough."""
        refused = [place.refused_starts for place in self._places]
        if not self._places or (all(refused) and sum(refused) >= _MAX_STARTS):
            raise EvaluationError(f"No worker could start: {self._cause}")


@contextmanager
def cluster(address: str | None, n_cpus: int) -> Iterator[None]:
    """Keep one Ray up for all pools and tunings inside, each of which would else start its own; inside another: that.

    Args:
        address: Of a cluster to join, `auto` or `host:port`; None for a Ray of this process alone. That of a pool
            inside then does not count.
        n_cpus: Cores that a Ray of this process counts on.

    Raises:
        EvaluationError: Ray could not start, or no cluster answers.
    """
    if _kept:
        yield
        return
    start_ray(address, n_cpus)
    _kept.append(address)
    try:
        yield
    finally:
        _kept.clear()
        stop_ray()


def start_ray(address: str | None, n_cpus: int) -> bool:
    """Start or join Ray, unless one is kept up; says whether others may ask it for cores, too. See `cluster`."""
    if _kept:
        return _kept[0] is not None
    check_address(address)
    if address is None:
        check_home()
    is_main, on_terminate = threading.current_thread() is threading.main_thread(), signal.getsignal(signal.SIGTERM)
    # As much as was asked for of this package; what workers write is for those who want to know more.
    level = logging.getLogger("search").level or logging.ERROR
    options: dict[str, Any] = {
        "log_to_driver": level < logging.WARNING,
        "logging_level": level,
        "configure_logging": True,
        "job_config": job_config(address),
    }
    if address is None:
        # Never a cluster that happens to be named in the environment.
        options |= {"address": "local", "num_cpus": max(1, n_cpus), "include_dashboard": False}
    else:
        options |= {"address": address}
    try:
        ray.init(**options)
    except (RuntimeError, OSError, ValueError) as error:
        raise EvaluationError(f"Ray could not start: {str(error).splitlines()[0]}") from error
    except SystemExit:
        # That was a SIGTERM while it started.
        with suppress(Exception):
            ray.shutdown()
        if is_main:
            signal.signal(signal.SIGTERM, on_terminate)
            signal.raise_signal(signal.SIGTERM)
        raise
    if is_main:
        # Ray exits the process on SIGTERM; what to do about it is for the caller to say.
        signal.signal(signal.SIGTERM, on_terminate)
    _let_ray_print(False)
    return address is not None


def stop_ray() -> None:
    """End or leave Ray, unless it is kept up."""
    if not _kept:
        ray.shutdown()
        _let_ray_print(True)


def _let_ray_print(is_allowed: bool) -> None:
    """Whether Ray may write of dead workers to the standard output, which is the caller's, and knows of them."""
    ray._private.worker._worker_logs_enabled = is_allowed


def _kill(actor: Any) -> None:
    with suppress(RayError, ValueError):
        ray.kill(actor, no_restart=True)


def _wanted_memory(death: Exception) -> bool:
    """Whether a worker died for want of memory, as far as one can tell.

    A kernel that ends it for that leaves no more than a broken connection. So do other sudden ends; Ray's text for them
    all names that kernel among the causes.
    """
    return isinstance(death, OutOfMemoryError) or KERNEL in str(death)
