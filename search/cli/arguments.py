"""Checks the names and folders that a command is given, before any work starts."""

from __future__ import annotations

import os
from pathlib import Path

from ftp_core.loading.model_source import DEMO, locate
from ftp_core.text.data import check_readable
from search.config.run_config import RunConfig
from search.errors import ConfigError
from search.evaluators.ray_address import check_address
from search.evaluators.ray_home import check_home
from search.evaluators.worker_numbers import check_fit


def check_writable(folder: Path) -> None:
    """Where a study's files go must be a folder, or become one.

    Raises:
        ConfigError: It is a file, or cannot be made.
    """
    existing = folder
    while not existing.exists():
        existing = existing.parent
    if not existing.is_dir():
        raise ConfigError(f"{existing} is a file: expected a folder to write to; choose another with --out.")
    if not os.access(existing, os.W_OK | os.X_OK):
        raise ConfigError(f"The folder {existing} is not writable: choose another with --out.")


def check_new_file(called: str, file: Path, overwrite: bool) -> None:
    """Where a file is written there must be none, unless it is to be replaced.

    Args:
        called: Name of the argument.
        file: Path of the file.
        overwrite: Whether a file that is there is to be replaced.

    Raises:
        ConfigError: It cannot be written, or is there.
    """
    if file.is_dir() or not file.parent.is_dir():
        raise ConfigError(f"{called} is {str(file)!r}: expected a file in a folder that exists.")
    if not overwrite and os.path.lexists(file):
        raise ConfigError(f"{file} exists already: choose another name, or replace it with --overwrite.")


def check_inputs(config: RunConfig) -> None:
    """Look at model, data, workers and cluster without loading torch, transformers and Ray, which takes seconds.

    The rest is found out later.

    Raises:
        ConfigError: This machine has not the cores for so many workers.
        CoreError: There is no such model, it cannot skip tokens, or the data cannot be opened.
        EvaluationError: No Ray cluster answers.
    """
    check_where(config)
    locate(config.model)
    if config.data != DEMO:
        check_readable(Path(config.data))


def check_where(config: RunConfig) -> None:
    """Look at workers and cluster without loading Ray.

    Raises:
        ConfigError: This machine has not the cores for so many workers.
        EvaluationError: No Ray cluster answers, or a Ray of this machine has no home folder to write to.
    """
    check_fit(config.workers, config.ray_address)
    if config.ray_address is None:
        check_home()
    check_address(config.ray_address)


def whole_numbers(text: str, called: str, example: str) -> tuple[int, ...]:
    """Whole numbers from text such as `0,1,-1`.

    Args:
        text: The text.
        called: Name of the option.
        example: Numbers as they could be given, for an error.

    Raises:
        ConfigError: One of them is no whole number.
    """
    try:
        return tuple(int(part) for part in text.split(",") if part.strip())
    except ValueError:
        raise ConfigError(f"{called} is {text!r}: expected whole numbers with commas, such as {example}.") from None


def share_list(text: str) -> tuple[float, ...]:
    """Shares from text such as `0.25,1`.

    Raises:
        ConfigError: One of them is no number.
    """
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError:
        raise ConfigError(f"--fidelities is {text!r}: expected numbers with commas, such as 0.25,1.") from None
