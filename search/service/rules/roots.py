"""Confines the paths of requests to the folders that the service may use."""

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
    """Files and models that a runner may open for the studies that it runs."""

    roots: tuple[Path, ...]  # folders of models, data and results, absolute and without symbolic links
    out: Path  # folder in which results may lie, too
    hub: bool = False  # models of the Hugging Face Hub may be loaded


def confined(field: str, value: str, roots: Sequence[Path]) -> Path:
    """A path of a request below resolved roots, at any of which a relative one starts, with symbolic links resolved.

    Raises:
        ConfigError: It lies elsewhere; the error does not reveal whether it exists.
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
    """A model of a request, as a study keeps it; raises `ConfigError` if it is not allowed or not a model."""
    if value == DEMO:
        return value
    if hub and _is_hub_id(value):
        # The loader prefers a folder to a model of the Hub.
        if not _holds(Path(value).exists):
            return value
        raise ConfigError(f"model is {value!r}: a folder of this name is in the way of the Hub's model.")
    path = confined("model", value, roots)
    if not _holds((path / "config.json").is_file):
        raise ConfigError(f"model is {value!r}: expected a directory with config.json and safetensors weights.")
    return str(path)


def checked_data(value: str, roots: Sequence[Path]) -> str:
    """Data of a request, as a study keeps it; raises `ConfigError` if it is not allowed or not a file."""
    if value == DEMO:
        return value
    path = confined("data", value, roots)
    if not _holds(path.is_file):
        raise ConfigError(f"data is {value!r}: expected a JSONL file.")
    return str(path)


def checked_out(value: str, roots: Sequence[Path]) -> str:
    """A folder of results of a request; raises `ConfigError` if it is not allowed, not empty, or cannot be created."""
    path = confined("out", value, roots)
    check_makeable(path)
    # A study would overwrite files that have the names of its own.
    try:
        is_taken = path.exists() and any(path.iterdir())
    except OSError as error:
        raise _out_of_sight(path, error) from error
    if is_taken:
        raise ConfigError(f"out is {value!r}, where there is something already: expected a new or an empty folder.")
    return str(path)


def check_makeable(out: Path) -> None:
    """Raises `ConfigError` unless an absolute path is a folder or can become one."""
    try:
        nearest = next(place for place in (out, *out.parents) if place.exists())
        is_folder = nearest.is_dir()
    except OSError as error:
        raise _out_of_sight(out, error) from error
    if not is_folder:
        raise ConfigError(f"out is {str(out)!r}, and {str(nearest)!r} is a file: expected a new or an empty folder.")


def check_reach(config: RunConfig, name: str, reach: Reach) -> None:
    """Raises `ConfigError` for a study whose files lie out of a runner's reach, symbolic links resolved."""
    model, data, out = config.model, config.data, str(config.folder(name))
    writable = (*reach.roots, reach.out)
    is_known = model == DEMO or (reach.hub and _is_hub_id(model))
    # A relative path would name a model of the Hub if the folder is missing.
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
    """The answer to a question about a path; False where the service may not look or the name is too long."""
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
