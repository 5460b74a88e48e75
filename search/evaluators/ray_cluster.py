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
from search.evaluators.ray_address import check_address
from search.evaluators.ray_home import check_home
from search.evaluators.ray_job import job_config

# Addresses of the Rays that `cluster` keeps up: none, or one.
_kept: list[str | None] = []


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
