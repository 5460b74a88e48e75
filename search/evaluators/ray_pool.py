"""Evaluates tasks in Ray actors, which may die, hang, come and go."""

from __future__ import annotations

import itertools
import logging
import pickle
import queue
import time
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import suppress
from typing import Any

import ray
from ray.exceptions import OutOfMemoryError, RayError, RayTaskError

from search.errors import EvaluationError
from search.evaluators import Evaluation, Task
from search.evaluators.backlog import Backlog
from search.evaluators.ray_cluster import KERNEL, cause_of, start_ray, stop_ray
from search.evaluators.worker import WorkerProcess, WorkerSetup
from search.evaluators.worker_handle import GPU, Call, WorkerHandle, check_gpus, check_numbers, most_on_this_machine

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
        n_workers: Number of workers on the device; those on CPUs have one core each.
        address: Address of a cluster to join, `auto` or `host:port`; None for a Ray of this process alone.
        device: Device of these: `cpu`, `cuda` for a GPU that Ray assigns, `cuda:N` for one of this machine, or `mps`.
        n_gpu_workers: Number of workers on GPUs that Ray assigns, beside the others.
        gpu_share: GPUs that each worker on `cuda` takes: a share of one, or a whole number.
        trial_timeout_s: Time limit of a task in seconds; None for no limit.
        on_ready: Called whenever a worker has loaded.

    Attributes:
        peak_bytes: Most memory that a worker has held, beside what it shares with others; None if unknown.

    Raises:
        ConfigError: No worker is asked for.
        EvaluationError: Ray or all workers could not start, or the GPUs do not suffice.
    """

    def __init__(
        self,
        setup: WorkerSetup,
        n_workers: int,
        address: str | None = None,
        device: str = "cpu",
        n_gpu_workers: int = 0,
        gpu_share: float = 1.0,
        trial_timeout_s: float | None = None,
        on_ready: Callable[[], None] = lambda: None,
    ) -> None:
        check_numbers(n_workers, n_gpu_workers)
        self._device = device
        self._gpu_share = gpu_share
        self._trial_timeout_s = trial_timeout_s
        self._on_ready = on_ready
        self.peak_bytes: int | None = None
        self._handles: list[WorkerHandle] = []
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
                check_gpus(n_gpu_workers + n_workers * (device == GPU), gpu_share, n_gpus)
            self._actor_type = ray.remote(WorkerProcess)
            # Put once, the object store gives it to all processes of a node.
            self._setup = ray.put(setup)
            for kind, number in ((GPU, n_gpu_workers), (device, n_workers)):
                for _ in range(number):
                    self._add(kind)
            results: list[Evaluation] = []
            while not any(handle.is_ready for handle in self._handles):
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
        """Workers on the device that run or start."""
        return sum(handle.device == self._device and not handle.is_leaving for handle in self._handles)

    @property
    def capacity(self) -> int:
        """Three per worker: one that runs, one that waits behind it, and one to choose from."""
        ready = sum(handle.takes_tasks for handle in self._handles)
        return _PER_WORKER * max(1, ready)

    def submit(self, task: Task) -> None:
        """See `Evaluator.submit`."""
        self._n_pending += 1
        self._backlog.add(task)
        self._feed(self._handles)

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
        """Change the number of workers on the device; those that go first do what they hold.

        Raises:
            ConfigError: No worker would be left.
        """
        check_numbers(n_workers, sum(handle.device != self._device for handle in self._handles))
        n_workers = self._fitting(n_workers)
        handles = [handle for handle in self._handles if handle.device == self._device]
        # Those stay that can do most right now.
        handles.sort(key=lambda handle: (handle.is_leaving, not handle.is_ready, -len(handle.calls)))
        for rank, handle in enumerate(handles):
            handle.is_leaving = rank >= n_workers
            if handle.is_leaving and not any(call.task for call in handle.calls):
                self._remove(handle)
        for _ in range(n_workers - len(handles)):
            self._add(self._device)
        self._feed(self._handles)

    def close(self) -> None:
        """See `Evaluator.close`; a cluster that was joined, or is kept up, goes on without the workers."""
        if self._is_closed:
            return
        self._is_closed = True
        for handle in self._handles:
            _kill(handle.actor)
        self._handles.clear()
        stop_ray()

    def _fitting(self, n_workers: int) -> int:
        """The number of workers, limited to what this machine can run."""
        is_limited = self._device == "cpu" and not self._on_cluster
        most = min(n_workers, most_on_this_machine()) if is_limited else n_workers
        if most < n_workers:
            _log.warning("%d workers are asked for; on this machine's cores there are %d at most", n_workers, most)
        return most

    def _add(self, device: str) -> None:
        taken = {handle.number for handle in self._handles}
        handle = WorkerHandle(device, next(number for number in itertools.count() if number not in taken))
        self._handles.append(handle)
        self._set_patience()
        self._start(handle)

    def _remove(self, handle: WorkerHandle) -> None:
        self._handles.remove(handle)
        self._backlog.forget(handle)
        self._set_patience()
        handle.calls.clear()
        _kill(handle.actor)

    def _set_patience(self) -> None:
        self._backlog.patience = 2 * max(1, len(self._handles))

    def _start(self, handle: WorkerHandle) -> None:
        """Starts or restarts a worker."""
        if handle.actor is not None:
            _kill(handle.actor)
        if handle.device == GPU:
            resources = {"num_cpus": 0, "num_gpus": self._gpu_share}
        else:
            # On this machine nobody else asks this Ray for cores, and the pool may grow beyond their number.
            resources = {"num_cpus": 1 if self._on_cluster else 0}
        self._backlog.forget(handle)
        handle.calls.clear()
        handle.is_ready = handle.is_dying = False
        handle.actor = self._actor_type.options(**resources).remote()
        self._call(handle, None, handle.actor.start.remote(self._setup, handle.device, handle.halvings))

    def _call(self, handle: WorkerHandle, task: Task | None, reference: Any) -> None:
        call = Call(handle, task, reference)
        if not handle.calls:
            handle.changed = time.monotonic()
        handle.calls.append(call)
        # Ray's thread only notes what happened, and when.
        reference.future().add_done_callback(lambda future: self._events.put((call, future, time.monotonic())))

    def _feed(self, handles: list[WorkerHandle]) -> None:
        """Gives tasks to workers with room, idle ones first."""
        for n_calls in range(_IN_ACTOR):
            for handle in handles:
                if handle.takes_tasks and len(handle.calls) <= n_calls:
                    task = self._backlog.take(handle)
                    if task is None:
                        return
                    if not handle.calls and time.monotonic() - handle.changed > _LONG_IDLE_S:
                        self._call(handle, None, handle.actor.ping.remote())
                    data = pickle.dumps(task, pickle.HIGHEST_PROTOCOL)
                    self._call(handle, task, handle.actor.evaluate.remote(data))

    def _handle(self, call: Call, future: Future[Any], moment: float, results: list[Evaluation]) -> None:
        """Handles the end of a call, and adds to the results."""
        handle, error = call.handle, future.exception()
        if call not in handle.calls:
            return
        if error is not None and not isinstance(error, RayError):
            raise error
        if isinstance(error, RayError) and not isinstance(error, RayTaskError):
            call.death = error
            handle.is_dying = True
            # Whatever else it holds must end, too, also where only the connection was lost.
            _kill(handle.actor)
        else:
            if call.task is not None:
                failed = handle.failed(call.task, cause_of(error), moment) if error else None
                results.append(failed or handle.named(pickle.loads(future.result())))
                self.peak_bytes = max(self.peak_bytes or 0, results[-1].peak_bytes or 0) or None
            is_first = handle.calls[0] is call
            handle.calls.remove(call)
            if is_first:
                handle.changed = moment
            if call.task is None and error is not None:
                handle.refused_starts += 1
                self._start_failed(handle, cause_of(error))
                return
            if call.task is None and not handle.is_ready:
                handle.is_ready, handle.failed_starts, handle.refused_starts = True, 0, 0
                handle.host = future.result() if self._on_cluster else ""
                _log.info("Worker %s is ready on %s", handle.worker, handle.device)
                self._on_ready()
        if handle.calls and all(other.death is not None for other in handle.calls):
            self._bury(handle, moment, results)
        elif handle.is_leaving and not handle.calls:
            self._remove(handle)
        else:
            self._feed([handle])

    def _bury(self, handle: WorkerHandle, moment: float, results: list[Evaluation]) -> None:
        """Replace a worker whose calls have all ended with its death."""
        first, *others = handle.calls
        assert first.death is not None
        cause = cause_of(first.death)
        _log.info("Worker %s died: %s", handle.worker, cause)
        if _wanted_memory(first.death):
            handle.halvings += 1
        if not handle.is_ready:
            self._start_failed(handle, cause)
            return
        if first.task is not None:
            results.append(handle.failed(first.task, f"its worker died: {cause}", moment))
        self._replace(handle, others)

    def _replace(self, handle: WorkerHandle, untouched: list[Call]) -> None:
        """Restarts a worker, and returns tasks that it had not begun to the backlog."""
        self._backlog.give_back(call.task for call in untouched if call.task is not None)
        if handle.is_leaving:
            self._remove(handle)
        else:
            self._start(handle)
        self._feed(self._handles)

    def _start_failed(self, handle: WorkerHandle, cause: str) -> None:
        self._cause = cause
        _log.info("Worker %s did not start: %s", handle.worker, cause)
        handle.failed_starts += 1
        if handle.failed_starts >= _MAX_STARTS:
            _log.warning("A worker was given up after %d starts: %s", _MAX_STARTS, cause)
            self._remove(handle)
        else:
            self._start(handle)

    def _next_deadline(self) -> float | None:
        """Earliest time limit of a running task, by the monotonic clock."""
        if self._trial_timeout_s is None:
            return None
        begun = (handle.changed for handle in self._handles if handle.is_at_work)
        return min((moment + self._trial_timeout_s for moment in begun), default=None)

    def _end_overdue(self, results: list[Evaluation]) -> None:
        """Replaces workers whose task exceeded the time limit."""
        limit = self._trial_timeout_s
        if limit is None:
            return
        now = time.monotonic()
        for handle in [handle for handle in self._handles if handle.is_at_work]:
            first, *others = handle.calls
            # The thread that notes results may be late where this process is busy: Ray itself knows.
            if now - handle.changed < limit or ray.wait([first.reference], timeout=0)[0]:
                continue
            if first.task is not None:
                results.append(handle.failed(first.task, f"it ran longer than the limit of {limit:g} s", now))
            self._replace(handle, others)

    def _check_alive(self) -> None:
        """Raises an error if no worker is left, or if the setup fails in all of them."""
        refused = [handle.refused_starts for handle in self._handles]
        if not self._handles or (all(refused) and sum(refused) >= _MAX_STARTS):
            raise EvaluationError(f"No worker could start: {self._cause}")


def _kill(actor: Any) -> None:
    with suppress(RayError, ValueError):
        ray.kill(actor, no_restart=True)


def _wanted_memory(death: Exception) -> bool:
    """True if a worker probably ran out of memory.

    A kernel that ends it for that leaves no more than a broken connection. So do other sudden ends; Ray's text for them
    all names that kernel among the causes.
    """
    return isinstance(death, OutOfMemoryError) or KERNEL in str(death)
