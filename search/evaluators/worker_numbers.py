"""Checks of the number of workers."""

from __future__ import annotations

import os

from search.errors import ConfigError, EvaluationError

# Workers wait for each other now and then, so that a few more than cores may be of use.
_PER_CORE = 4


def check_numbers(n_workers: int, n_gpu_workers: int) -> None:
    """Raises `ConfigError` if there are no workers."""
    if n_workers < 0 or n_gpu_workers < 0 or n_workers + n_gpu_workers == 0:
        raise ConfigError(
            f"{n_workers} workers on CPUs and {n_gpu_workers} on GPUs evaluate nothing: give at least one of them."
        )


def most_on_this_machine() -> int:
    """Most CPU workers of one machine: more would wait for each other and for memory."""
    return _PER_CORE * (os.cpu_count() or 1)


def check_fit(n_workers: int, address: str | None) -> None:
    """Raises `ConfigError` if this machine has far fewer cores than workers; a cluster's `address` waives the check."""
    most = most_on_this_machine()
    if address is None and n_workers > most:
        raise ConfigError(
            f"--workers is {n_workers}, but this machine has {os.cpu_count()} cores, of which each worker uses one: "
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
