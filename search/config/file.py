"""Configuration files: `RunConfig` as commented YAML, written and read."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml

from ftp_core.errors import DataError
from ftp_core.loading.model_source import NAMED
from ftp_core.sources.source import SEPARATOR, joined, parse_sources
from search.config.groups import CONFIG_VERSION
from search.config.run_config import OF_NEW_STUDIES, SETTINGS, RunConfig
from search.config.setting import option
from search.config.yaml_file import YamlFile, read_yaml
from search.errors import ConfigError

PATHS = tuple(field for field, setting in SETTINGS.items() if setting.about.is_path)
_WIDTH = 100


def config_text() -> str:
    """A configuration file with every field at its default, and what it means above it."""
    lines = [
        "# Settings of `ftp-search run --config FILE` and `ftp-search search --config FILE`.",
        "# Options on the command line override them. Relative paths begin at this file's folder.",
        *("", f"# {RunConfig.model_fields['version'].description}", f"version: {CONFIG_VERSION}"),
    ]
    heading = ""
    for name in OF_NEW_STUDIES:
        setting = SETTINGS[name]
        if setting.group != heading:
            heading = setting.group
            lines += ["", f"# ---- {heading} ----"]
        choices = f" One of {', '.join(setting.choices)}." if setting.choices else ""
        values = f" [{setting.range}]" if setting.range else ""
        meaning = f"{setting.description}{choices}{values}"
        lines += ["", *textwrap.wrap(meaning, _WIDTH, initial_indent="# ", subsequent_indent="# ")]
        line = f"{name}: {_as_yaml(setting.info.get_default(call_default_factory=True, validated_data={}))}"
        # What depends on the machine is not fixed by where the file was written.
        lines.append(line if setting.info.default_factory is None else f"# {line}")
    return "\n".join(lines) + "\n"


def _as_yaml(value: Any) -> str:
    """A default as YAML, which JSON is, too; text without quotes where that is still text."""
    return value if isinstance(value, str) and yaml.safe_load(value) == value else json.dumps(value)


@dataclass(frozen=True)
class Settings:
    """Fields of a configuration that a file gives.

    Attributes:
        file: The file.
        values: The fields, with absolute paths.
    """

    file: YamlFile
    values: Mapping[str, Any]

    def called(self, field: str) -> str:
        """The name of a field, with the place where it stands."""
        return f"{self.file.place(field)}: {field}"


def read_settings(path: Path) -> Settings:
    """Reads the fields that a configuration file gives; their values are not checked yet.

    Raises:
        ConfigError: It is no such file, or of another version.
    """
    file = read_yaml(path)
    version = file.values.get("version", CONFIG_VERSION)
    if version != CONFIG_VERSION:
        raise ConfigError(
            f"{file.place('version')}: version is {version!r}, and this program reads {CONFIG_VERSION}: compare with "
            "what `ftp-search config` writes."
        )
    settings = Settings(file, file.values)
    return replace(settings, values=anchored(file.values, PATHS, file.folder, settings.called))


def configured(path: Path | None, options: Mapping[str, Any]) -> RunConfig:
    """The configuration of a file, overridden by options of the command line.

    Args:
        path: The file; None for the defaults.
        options: The fields that the command line gives.

    Raises:
        ConfigError: The file cannot be read, or a value is out of range; the message says where it was given.
    """
    if path is None:
        return RunConfig.checked(**options)
    settings = read_settings(path)

    def called(field: str) -> str:
        return option(field) if field in options else settings.called(field)

    return RunConfig.checked(called, **{**settings.values, **options})


def anchored(
    values: Mapping[str, Any], paths: Collection[str], folder: Path, called: Callable[[str], str]
) -> dict[str, Any]:
    """Fields with paths that begin at a folder made absolute.

    Args:
        values: Fields of a configuration.
        paths: Names of the fields that are paths.
        folder: Folder that relative paths begin at, absolute.
        called: Name of a field in an error.

    Raises:
        ConfigError: A path names the home of a user who does not exist.
    """
    absolute = dict(values)
    for field in paths:
        value = values.get(field)
        if SETTINGS[field].about.is_sources and isinstance(value, (str, list, tuple)):
            # None of them are a fault of one field, and the default of another.
            absolute[field] = _anchored_sources(value, folder, called(field)) if value else ""
            continue
        if not isinstance(value, str) or not value or (value in NAMED and field != "out"):
            continue
        path = _anchored(value, folder, called(field))
        # What is no directory there may be a model's id.
        if field != "model" or value.startswith((".", "/", "~")) or path.exists():
            absolute[field] = str(path.resolve())
    return absolute


def _anchored(value: str, folder: Path, called: str) -> Path:
    try:
        return folder / Path(value).expanduser()
    except RuntimeError as error:
        raise ConfigError(f"{called} is {value!r}: {error} Write the path in full.") from error


def _anchored_sources(value: str | Sequence[str], folder: Path, called: str) -> str:
    text = value if isinstance(value, str) else SEPARATOR.join(map(str, value))
    try:
        return joined(
            source.moved(lambda name: _anchored(name, folder, called).resolve()) for source in parse_sources(text)
        )
    except DataError as error:
        raise ConfigError(f"{called} is {text!r}: {error}") from error
