"""Starts and joins Ray, keeps it up for several pools, and reads its errors."""

from __future__ import annotations

import logging
import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import ray
from ray.job_config import JobConfig

from search.errors import EvaluationError
from search.evaluators.ray_address import check_address, check_home
from search.module_path import leading_folders

# Parts of Ray's texts on deaths: found only where the cause is unknown, and found before the cause.
KERNEL, _DETAIL = "OOM killer", "Worker exit detail: "
# Part of what it says if it could not start in the time that it gives itself.
_TOO_LATE = "timed out during startup"
# Addresses of the Rays that `cluster` keeps up: none, or one.
_kept: list[str | None] = []


@contextmanager
def cluster(address: str | None, n_cpus: int) -> Iterator[None]:
    """Context that keeps one Ray up for all pools and tunings inside; contexts inside it share that Ray.

    Args:
        address: Address of a cluster to join, `auto` or `host:port`, instead of the addresses of pools inside; None for
            a Ray of this process alone.
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


def cluster_address(address: str | None) -> str | None:
    """Returns the address of the cluster that a pool joins that is given an address; None for this machine alone."""
    return _kept[0] if _kept else address


def start_ray(address: str | None, n_cpus: int) -> bool:
    """Starts or joins Ray, unless one is kept up; True if its cores are shared with others. See `cluster`."""
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
        "job_config": _job_config(address),
    }
    if address is None:
        # Never a cluster that happens to be named in the environment.
        options |= {"address": "local", "num_cpus": max(1, n_cpus), "include_dashboard": False}
    else:
        options |= {"address": address}
    try:
        ray.init(**options)
    except Exception as error:
        # Ray raises errors of any kind here, plain ones if the machine is too busy for its time limits.
        said = next(iter(str(error).splitlines()), type(error).__name__)
        if _TOO_LATE in said:
            said = "its processes did not answer in time, as on a machine that is too busy: try again when it is quiet."
        raise EvaluationError(f"Ray could not start: {said}") from error
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
    """Ends or leaves Ray, unless it is kept up."""
    if not _kept:
        ray.shutdown()
        _let_ray_print(True)


def _let_ray_print(is_allowed: bool) -> None:
    """Allows or forbids Ray to report dead workers on standard output."""
    ray._private.worker._worker_logs_enabled = is_allowed


class SamePathJob(JobConfig):
    """A job whose workers import modules from where this process does.

    Ray puts the working directory first on their path, where a user's own `search.py` or `torch.py` would be taken for
    the real one.
    """

    def _get_proto_job_config(self) -> Any:
        # Each worker puts them at the front of its path, one after the other.
        self._py_driver_sys_path = leading_folders()[::-1]
        return super()._get_proto_job_config()  # type: ignore[no-untyped-call]


def _job_config(address: str | None) -> JobConfig | None:
    """The configuration of a job; None for Ray Client, whose server has its own path."""
    if address == "auto":
        address = os.environ.get("RAY_ADDRESS", address)
    return None if "://" in (address or "") else SamePathJob()


def cause_of(error: BaseException) -> str:
    """The last line of a Ray error, which is the one that the worker raised, or a short form of how it died."""
    if KERNEL in str(error):
        return "its process ended all at once: killed, perhaps for want of memory, or crashed"
    lines = [line for line in str(error).splitlines() if line.strip()]
    return lines[-1].strip().rpartition(_DETAIL)[2] if lines else type(error).__name__
