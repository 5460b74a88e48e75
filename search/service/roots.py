"""Where requests may read and write: below folders that whoever started the service named, and nowhere else."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from search.errors import ConfigError

DEMO = "demo"
# https://huggingface.co/docs/hub/repositories-settings: letters, digits, and these signs.
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]{0,95}(/[A-Za-z0-9][\w.-]{0,95})?")


def confined(field: str, value: str, roots: Sequence[Path]) -> Path:
    """A path of a request, with symbolic links resolved.

    Args:
        field: What to call it in an error.
        value: The path; a relative one begins at any of the roots.
        roots: Folders below which it must lie, resolved.

    Raises:
        ConfigError: It lies elsewhere. Whether there is anything is not said.
    """
    refused = ConfigError(
        f"{field} is {value!r}: expected a path below a folder that the service was started with (--root)."
        if roots
        else f"{field} is {value!r}: expected {DEMO!r}, as the service was started without --root."
    )
    if "\0" in value:
        raise refused
    given = Path(value)
    candidates = [given] if given.is_absolute() else [root / given for root in roots]
    found = []
    for candidate in candidates:
        try:
            path = candidate.resolve()
        except (OSError, RuntimeError):  # a loop of links; a name that no file can have
            continue
        if any(path.is_relative_to(root) for root in roots):
            found.append(path)
    for path in found:
        if path.exists():
            return path
    if not found:
        raise refused
    return found[0]


def checked_model(value: str, roots: Sequence[Path], hub: bool) -> str:
    """A model of a request, as a study keeps it.

    Raises:
        ConfigError: Requests may not name it, or it is no directory of a model.
    """
    if value == DEMO:
        return value
    if hub and _HUB_ID.fullmatch(value) and ".." not in value:
        # A relative path would win over the Hub where it is loaded.
        if not Path(value).exists():
            return value
        raise ConfigError(f"model is {value!r}: a folder of this name is in the way of the Hub's model.")
    path = confined("model", value, roots)
    if not (path / "config.json").is_file():
        raise ConfigError(f"model is {value!r}: expected a directory with config.json and safetensors weights.")
    return str(path)


def checked_data(value: str, roots: Sequence[Path]) -> str:
    """Data of a request, as a study keeps it.

    Raises:
        ConfigError: Requests may not name it, or it is no file.
    """
    if value == DEMO:
        return value
    path = confined("data", value, roots)
    if not path.is_file():
        raise ConfigError(f"data is {value!r}: expected a JSONL file.")
    return str(path)
