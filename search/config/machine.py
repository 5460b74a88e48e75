"""Counts what this machine can compute with, without loading torch."""

from __future__ import annotations

import os
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from ftp_core.cpu_limits import n_cores

_DRIVER = Path("/proc/driver/nvidia/gpus")


def n_gpus() -> int:
    """GPUs that torch is likely to find: none without a driver, or where torch was built without CUDA."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    try:
        if version("torch").endswith("+cpu") or visible in ("", "-1"):
            return 0
        here = len(list(_DRIVER.iterdir()))
    except (PackageNotFoundError, OSError):
        return 0
    return here if visible is None else min(here, len(visible.split(",")))


def default_workers(device: str) -> int:
    """Workers that a device has if their number is not given.

    Args:
        device: `auto`, `cpu`, `cuda`, `cuda:N` or `mps`.
    """
    if device == "cpu":
        return n_cores()
    if device in ("auto", "cuda"):
        return n_gpus() or n_cores()
    # One device, which several processes would share.
    return 1
