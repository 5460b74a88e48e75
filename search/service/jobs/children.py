"""The environment of processes that the service starts."""

from __future__ import annotations

import os

from search.config.run_config import STORAGE_VARIABLE
from search.module_path import leading_folders

PARENT_VARIABLE = "FTP_SEARCH_PARENT"


def environment(storage: str) -> dict[str, str]:
    """The environment of a process that works on a database, given by URL, and ends with this process."""
    return {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(leading_folders()),
        # Not an argument: the URL may hold a password, and all users of the machine can read arguments.
        STORAGE_VARIABLE: storage,
        PARENT_VARIABLE: str(os.getpid()),
    }
