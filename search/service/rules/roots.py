"""Confines paths of requests to the folders that the service was started with."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from search.config.run_config import RunConfig
from search.errors import ConfigError

DEMO = "demo"
# https://huggingface.co/docs/hub/repositories-settings: letters, digits, and these signs.
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]{0,95}(/[A-Za-z0-9][\w.-]{0,95})?")


@dataclass(frozen=True)
class Reach:
    """Files and models that a runner opens for the studies that it runs, whoever wrote them into the database.

    Attributes:
        roots: Folders below which models, data and results may lie, absolute and without symbolic links.
        out: Folder in which results may lie, too.
        hub: Whether models of the Hugging Face Hub may be loaded.
    """

    roots: tuple[Path, ...]
    out: Path
    hub: bool = False


def confined(field: str, value: str, roots: Sequence[Path]) -> Path:
    """A path of a request, with symbolic links resolved.

    Args:
        field: Name of the setting, for an error.
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
        if _holds(path.exists):
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
    if hub and _is_hub_id(value):
        # A relative path would win over the Hub where it is loaded.
        if not _holds(Path(value).exists):
            return value
        raise ConfigError(f"model is {value!r}: a folder of this name is in the way of the Hub's model.")
    path = confined("model", value, roots)
    if not _holds((path / "config.json").is_file):
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
    if not _holds(path.is_file):
        raise ConfigError(f"data is {value!r}: expected a JSONL file.")
    return str(path)


def checked_out(value: str, roots: Sequence[Path]) -> str:
    """A folder of results of a request, as a study keeps it.

    Raises:
        ConfigError: Requests may not name it, there is something already, or no folder can be there.
    """
    path = confined("out", value, roots)
    check_makeable(path)
    # A study overwrites what has the names of its files, such as another model.
    try:
        is_taken = path.exists() and any(path.iterdir())
    except OSError as error:
        raise _out_of_sight(path, error) from error
    if is_taken:
        raise ConfigError(f"out is {value!r}, where there is something already: expected a new or an empty folder.")
    return str(path)


def check_makeable(out: Path) -> None:
    """Refuses a folder of results that is none, and cannot be made.

    Args:
        out: The folder, absolute.

    Raises:
        ConfigError: It is a file, or lies below one; or what is there cannot be seen.
    """
    try:
        nearest = next(place for place in (out, *out.parents) if place.exists())
        is_folder = nearest.is_dir()
    except OSError as error:
        raise _out_of_sight(out, error) from error
    if not is_folder:
        raise ConfigError(f"out is {str(out)!r}, and {str(nearest)!r} is a file: expected a new or an empty folder.")


def check_reach(config: RunConfig, name: str, reach: Reach) -> None:
    """Refuses a study whose files a runner may not open; relative paths begin where the runner does, as when it runs.

    Args:
        config: Configuration of the study.
        name: Its name.
        reach: Files and models that the runner may open.

    Raises:
        ConfigError: One of its paths lies elsewhere, symbolic links resolved.
    """
    model, data, out = config.model, config.data, str(config.folder(name))
    writable = (*reach.roots, reach.out)
    is_known = model == DEMO or (reach.hub and _is_hub_id(model))
    # A relative one would be the Hub's wherever there is no such folder.
    if not is_known and not (Path(model).is_absolute() and _lies_below(model, reach.roots)):
        raise _outside("model", model, reach.roots)
    if data != DEMO and not _lies_below(data, reach.roots):
        raise _outside("data", data, reach.roots)
    if not _lies_below(out, writable):
        raise _outside("out", out, writable)


def _out_of_sight(out: Path, error: OSError) -> ConfigError:
    return ConfigError(
        f"out is {str(out)!r}, where the service cannot look ({error.strerror}): expected a new or an empty folder "
        "that it may write into."
    )


def _holds(question: Callable[[], bool]) -> bool:
    """The answer to a question on a path; no, where the service cannot look or the name is too long for a file."""
    try:
        return question()
    except OSError:
        return False


def _outside(field: str, value: str, folders: Sequence[Path]) -> ConfigError:
    return ConfigError(
        f"{field} is {value!r}, which lies below no folder that this runner was started with: expected a path below "
        f"{' or '.join(map(str, folders))}. Start a runner with its folder as --root."
    )


def _is_hub_id(value: str) -> bool:
    return _HUB_ID.fullmatch(value) is not None and ".." not in value


def _lies_below(value: str, folders: Sequence[Path]) -> bool:
    try:
        path = Path(value).resolve()
    except (OSError, RuntimeError, ValueError):  # a loop of links; a zero byte
        return False
    return any(path.is_relative_to(folder) for folder in folders)
