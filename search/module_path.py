"""The module search path that child processes share with this one."""

from __future__ import annotations

import os
import sys
import sysconfig


def leading_folders() -> list[str]:
    """Lists the absolute folders that this process searches for modules before Python's own library.

    A child that searches them first, and not the working directory as `python -m` and Ray have it, imports the same
    packages as this process, whatever files lie there. What follows Python's library, it finds by itself.
    """
    library = sysconfig.get_path("stdlib")
    path = [os.path.abspath(folder) for folder in sys.path]
    first = path.index(library) if library in path else len(path)
    return [folder for folder in path[:first] if os.path.exists(folder)]
