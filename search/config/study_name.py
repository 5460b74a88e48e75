"""What a study may be called: its name is also a folder's, an argument of commands, and a part of addresses."""

from __future__ import annotations

import shlex

from search.config.run_config import DEFAULT_STORAGE
from search.errors import ConfigError

MAX_NAME_BYTES = 200


def check_study_name(name: str, called: str = "name") -> None:
    """Refuse what cannot be a name.

    Args:
        name: The name.
        called: What whoever gave it calls it.

    Raises:
        ConfigError: It cannot be a folder's name, or an argument.
    """
    problem = None
    if not name.strip() or name in (".", ".."):
        problem = "a name"
    elif "/" in name or "\\" in name:
        problem = "a name without slashes"
    elif name.startswith("-"):
        problem = "a name that does not begin with a dash"
    elif not name.isprintable():
        problem = "a name of printable characters"
    elif len(name.encode()) > MAX_NAME_BYTES:
        problem = f"a name of at most {MAX_NAME_BYTES} bytes"
    if problem is not None:
        raise ConfigError(f"{called} is {name!r}: expected {problem}.")


def resume_command(storage: str, name: str, *options: str) -> str:
    """The command that goes on with a study, as a shell takes it.

    Args:
        storage: The database as it is shown, without a password: what a terminal shows is often logged.
        name: The study.
        options: More of the command line.
    """
    where = [] if storage == DEFAULT_STORAGE else ["--storage", storage]
    return shlex.join(["ftp-search", "resume", name, *options, *where])
