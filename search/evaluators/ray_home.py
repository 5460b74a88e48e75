"""Finds out soon whether Ray can write where it will."""

from __future__ import annotations

import os
from pathlib import Path

from search.errors import EvaluationError

# Where Ray finds the token by which its processes know each other, unless it makes one below the home folder.
_TOKEN_VARIABLES = ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH")


def check_home() -> None:
    """Check that a Ray of this machine can keep its token in the user's home folder.

    Raises:
        EvaluationError: It cannot.
    """
    has_token = any(os.environ.get(variable) for variable in _TOKEN_VARIABLES)
    if has_token or os.environ.get("RAY_AUTH_MODE", "").lower() == "disabled":
        return
    folder = Path("~/.ray").expanduser()
    if os.access(folder / "auth_token", os.R_OK):
        return
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if not os.access(folder, os.W_OK | os.X_OK):
            raise PermissionError(None, "Permission denied")
    except OSError as error:
        raise EvaluationError(
            f"Ray cannot keep its token in {folder} ({error.strerror}): set HOME to a folder that can be written to."
        ) from error
