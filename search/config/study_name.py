"""Names of studies, which are also names of folders, arguments of commands, and parts of addresses."""

from __future__ import annotations

import shlex
import unicodedata

from search.config.run_config import DEFAULT_STORAGE
from search.errors import ConfigError

MAX_NAME_LENGTH = 200


def normalised(name: str) -> str:
    """A name in Unicode's form NFC: what looks the same to people is the same name."""
    return unicodedata.normalize("NFC", name)


def checked_study_name(name: str, called: str = "name") -> str:
    """The name of a new study, normalised.

    Args:
        name: Text to check.
        called: Name of the argument, for an error.

    Raises:
        ConfigError: It cannot be a folder's name, or an argument.
    """
    problem = None
    if not name.strip() or name in (".", ".."):
        problem = "a name"
    elif name != name.strip():
        problem = "a name without blanks at its ends"
    elif "/" in name or "\\" in name:
        problem = "a name without slashes"
    elif name.startswith("-"):
        problem = "a name that does not begin with a dash"
    elif not name.isprintable():
        problem = "a name of printable characters"
    elif len(normalised(name).encode()) > MAX_NAME_LENGTH:
        problem = f"at most {MAX_NAME_LENGTH} characters, of which those beyond English letters count as two to four"
    if problem is not None:
        raise ConfigError(f"{called} is {name!r}: expected {problem}.")
    return normalised(name)


def resume_command(storage: str, name: str, *options: str) -> str:
    """The shell command that resumes a study.

    Args:
        storage: URL of the database, without a password: what a terminal shows is often logged.
        name: Name of the study.
        options: Further options.
    """
    where = [] if storage == DEFAULT_STORAGE else ["--storage", storage]
    return shlex.join(["ftp-search", "resume", name, *options, *where])
