"""The log of the program on standard error, and its level."""

from __future__ import annotations

import logging
import os
import sys
from typing import Annotated

import typer

from search.errors import ConfigError

LOG_VARIABLE = "FTP_SEARCH_LOG"
LEVELS = ("debug", "info", "warning", "error")
_PACKAGES = ("ftp_core", "studies", "search", "dashboards")

LogLevel = Annotated[
    str | None,
    typer.Option(
        "--log-level",
        metavar="|".join(LEVELS),
        envvar=LOG_VARIABLE,
        help="Log the program and Ray to standard error; may also follow the command.",
    ),
]


def is_debugging() -> bool:
    """Tells whether `--debug` was given, with which tracebacks of errors are shown."""
    return "--debug" in sys.argv


def log_to_stderr() -> None:
    """Logs warnings of all libraries to standard error."""
    # With the offset from UTC, since logs of several machines may be merged.
    logging.basicConfig(
        format="%(asctime)s %(levelname)s %(name)s: %(message)s", datefmt="%Y-%m-%d %H:%M:%S%z", level=logging.WARNING
    )


def set_log_level(level: str) -> None:
    """Sets the level of the program's own messages, in this process and in those that it starts."""
    if level.lower() not in LEVELS:
        raise ConfigError(f"--log-level, or {LOG_VARIABLE}, is {level!r}: expected one of {', '.join(LEVELS)}.")
    log_to_stderr()
    for name in _PACKAGES:
        logging.getLogger(name).setLevel(level.upper())
    os.environ[LOG_VARIABLE] = level
    os.environ["TRANSFORMERS_VERBOSITY"] = level.lower()
