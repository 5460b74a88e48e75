"""Confines the paths of requests to the folders that the service may use."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from ftp_core.errors import DataError
from ftp_core.loading.gguf_files import SUFFIX
from ftp_core.loading.model_source import NAMED
from ftp_core.sources.source import Source, joined, parse_sources
from search.config.run_config import RunConfig
from search.errors import ConfigError

DEMO = "demo"
# https://huggingface.co/docs/hub/repositories-settings: letters, digits, and these signs.
_TASK = re.compile(r"[A-Za-z0-9][\w-]*")
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
    if value in NAMED:
        return value
    if hub and _is_hub_id(value):
        # The loader prefers a folder to a model of the Hub.
        if not _holds(Path(value).exists):
            return value
        raise ConfigError(f"model is {value!r}: a folder of this name is in the way of the Hub's model.")
    path = confined("model", value, roots)
    is_gguf = path.suffix == SUFFIX and _holds(path.is_file)
    if not is_gguf and not _holds((path / "config.json").is_file):
        raise ConfigError(
            f"model is {value!r}: expected a directory with config.json and safetensors weights, or a GGUF file."
        )
    return str(path)


def checked_data(value: str, roots: Sequence[Path], hub: bool, field: str = "data") -> str:
    """Data of a request, as a study keeps it; raises `ConfigError` if a source is not allowed or not there."""
    try:
        sources = parse_sources(value)
        return joined(_checked_source(source, roots, hub, field) for source in sources)
    except DataError as error:
        raise ConfigError(f"{field} is {value!r}: {error}") from error


def _checked_source(source: Source, roots: Sequence[Path], hub: bool, field: str) -> Source:
    if source.is_path:
        path = confined(field, source.name, roots)
        if not _holds(lambda: path.is_file() or path.is_dir()):
            raise ConfigError(f"{field} is {source.label!r}: expected a file or a folder of examples.")
        if not _all_below(str(path), roots):
            raise ConfigError(f"{field} is {source.label!r}: files of this folder lie elsewhere; copy them into it.")
        return source.moved(lambda _: path)
    _check_named(source, hub, field)
    return source


def _check_named(source: Source, hub: bool, field: str) -> None:
    """Raises `ConfigError` for a source by name that is loaded from the Hub, or could be a file, and is not allowed."""
    if source.kind in ("demo", "self"):
        return
    if source.paths or (source.kind == "task" and not all(map(_TASK.fullmatch, source.name.split(",")))):
        # Such a file may execute Python, and reads whatever files it names.
        raise ConfigError(f"{field} is {source.label!r}: expected names of tasks; their files may execute code.")
    if not hub:
        raise ConfigError(
            f"{field} is {source.label!r}: expected files below the folders of the service, which was started without "
            "--hub."
        )
    if source.kind == "hf" and _holds(Path(source.name.partition(":")[0]).exists):
        raise ConfigError(f"{field} is {source.label!r}: a folder of this name is in the way of the Hub's data set.")


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


def check_reach(config: RunConfig, name: str, reach: Reach | None) -> None:
    """Raises `ConfigError` for a study whose files lie out of a runner's reach, symbolic links resolved."""
    check_model_reach(config, reach)
    if reach is None:
        return
    data, out = config.data, str(config.folder(name))
    writable = (*reach.roots, reach.out)
    for field, value in (("data", data), ("test_data", config.test_data)):
        for source in parse_sources(value) if value else ():
            if not source.is_path:
                _check_named(source, reach.hub, field)
            elif not _all_below(source.name, reach.roots):
                raise _outside(field, source.name, reach.roots)
    if not _lies_below(out, writable):
        raise _outside("out", out, writable)


def check_model_reach(config: RunConfig, reach: Reach | None) -> None:
    """Raises `ConfigError` for a model that lies out of a process's reach, or that a folder hides.

    Args:
        config: Configuration of its study.
        reach: Reach of the process; None for any file.
    """
    model = config.model
    if model not in NAMED and not os.path.isabs(model) and _holds(Path(model).exists):
        raise ConfigError(f"The model is {model!r}, and a folder of this name is in the way: start elsewhere.")
    if reach is None:
        return
    is_known = model in NAMED or (reach.hub and _is_hub_id(model))
    # A relative path would name a model of the Hub if the folder is missing.
    if not is_known and not (Path(model).is_absolute() and _lies_below(model, reach.roots)):
        raise _outside("model", model, reach.roots)
    if config.adapter is not None and not _lies_below(config.adapter, reach.roots):
        raise _outside("adapter", config.adapter, reach.roots)


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
        f"{field} is {value!r}, which lies below no folder that this process was started with: expected a path below "
        f"{' or '.join(map(str, folders))}. Start it with that folder as --root."
    )


def _is_hub_id(value: str) -> bool:
    return _HUB_ID.fullmatch(value) is not None and ".." not in value


def _lies_below(value: str, folders: Sequence[Path]) -> bool:
    try:
        path = Path(value).resolve()
    except (OSError, RuntimeError, ValueError):  # a loop of links; a zero byte
        return False
    return any(path.is_relative_to(folder) for folder in folders)


def _all_below(value: str, folders: Sequence[Path]) -> bool:
    """True if a file, or a folder with everything in it, lies below one of some folders, wherever links lead."""
    try:
        inside = [str(file) for file in Path(value).resolve().rglob("*")]
    except (OSError, RuntimeError, ValueError):  # a loop of links; a zero byte
        return False
    return all(_lies_below(one, folders) for one in (value, *inside))
