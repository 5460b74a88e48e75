"""The module search path of Ray's workers."""

from __future__ import annotations

import os
from typing import Any

from ray.job_config import JobConfig

from search.module_path import leading_folders


class SamePathJob(JobConfig):
    """A job whose workers import modules from where this process does.

    Ray puts the working directory first on their path, where a user's own `search.py` or `torch.py` would be taken for
    the real one.
    """

    def _get_proto_job_config(self) -> Any:
        # Each worker puts them at the front of its path, one after the other.
        self._py_driver_sys_path = leading_folders()[::-1]
        return super()._get_proto_job_config()  # type: ignore[no-untyped-call]


def job_config(address: str | None) -> JobConfig | None:
    """Makes the configuration of a job on a cluster; None for Ray Client, whose server has its own path.

    Args:
        address: Address as `ray.init` takes it.
    """
    if address == "auto":
        address = os.environ.get("RAY_ADDRESS", address)
    return None if "://" in (address or "") else SamePathJob()
