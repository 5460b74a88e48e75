"""Starts and joins Ray, and keeps it up for several pools."""

from __future__ import annotations

import logging
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import ray

from search.errors import EvaluationError
from search.evaluators.ray_address import check_address, check_home
from search.evaluators.ray_job import job_config

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
    """Ends or leaves Ray, unless it is kept up."""
    if not _kept:
        ray.shutdown()
        _let_ray_print(True)


def _let_ray_print(is_allowed: bool) -> None:
    """Allows or forbids Ray to report dead workers on standard output."""
    ray._private.worker._worker_logs_enabled = is_allowed
