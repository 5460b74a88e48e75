"""Checks the names and folders that a command is given, before any work starts."""

from __future__ import annotations

import os
from pathlib import Path

from search.errors import ConfigError


def check_new_file(called: str, file: Path, overwrite: bool) -> None:
    """Refuses a file that cannot be written, or that exists and is not to be replaced.

    Args:
        called: Name of the argument.
        file: Path of the file.
        overwrite: Whether an existing file is replaced.

    Raises:
        ConfigError: It cannot be written, or exists.
    """
    if file.is_dir() or not file.parent.is_dir():
        raise ConfigError(f"{called} is {str(file)!r}: expected a file in a folder that exists.")
    if not overwrite and os.path.lexists(file):
        raise ConfigError(f"{file} exists already: choose another name, or replace it with --overwrite.")
