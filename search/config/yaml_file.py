"""Reads YAML files of plain values without repeated keys, and keeps the line of each value for error messages."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from search.errors import ConfigError

Key = str | int


@dataclass(frozen=True)
class YamlFile:
    """A file that holds one mapping.

    Attributes:
        path: Path of the file, as it was named.
        values: Its content.
        lines: The line of each value, counted from 1, by the keys and positions that lead to it.
    """

    path: Path
    values: Mapping[str, Any]
    lines: Mapping[tuple[Key, ...], int] = field(default_factory=dict)

    def place(self, *keys: Key) -> str:
        """The place of a value, for an error: the file, and the line of the innermost of its keys that has one."""
        for n_keys in range(len(keys), 0, -1):
            if keys[:n_keys] in self.lines:
                return f"{self.path}, line {self.lines[keys[:n_keys]]}"
        return str(self.path)

    @property
    def folder(self) -> Path:
        """The folder that relative paths in it begin at, absolute."""
        return self.path.resolve().parent


def read_yaml(path: Path) -> YamlFile:
    """Reads a file that holds one mapping; an empty one holds an empty mapping.

    Raises:
        ConfigError: It cannot be read, is no YAML of plain values, is no mapping with text as keys, or has a key twice.
    """
    try:
        loader = _PlainLoader(path.read_text(encoding="utf-8"))
        node = loader.get_single_node()
        values = None if node is None else loader.construct_document(node)
    except (OSError, UnicodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise ConfigError(f"{path} cannot be read: {reason}.") from error
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = "" if mark is None else f", line {mark.line + 1}"
        raise ConfigError(f"{path}{line}: {', '.join(filter(None, (error.context, error.problem)))}.") from error
    except yaml.YAMLError as error:
        raise ConfigError(f"{path} is no YAML: {error}.") from error
    if values is None:
        return YamlFile(path, {})
    if not isinstance(values, dict) or not all(isinstance(key, str) for key in values):
        raise ConfigError(f"{path} holds no settings: expected one in each line, such as 'trials: 300'.")
    lines: dict[tuple[Key, ...], int] = {}
    _note_lines(node, (), lines)
    return YamlFile(path, values, lines)


class _PlainLoader(yaml.SafeLoader):  # type: ignore[misc]  # it comes without types
    """Refuses repeated keys, of which PyYAML takes the last, and references between values."""

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        if self.check_event(yaml.AliasEvent):
            problem = "a reference to another value: write the value itself"
            raise yaml.composer.ComposerError(None, None, problem, self.peek_event().start_mark)
        return super().compose_node(parent, index)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key, _ in node.value:
            if key.value in seen:
                problem = f"{key.value!r} is given a second time: keep one of them"
                raise yaml.constructor.ConstructorError(None, None, problem, key.start_mark)
            if isinstance(key.value, str):
                seen.add(key.value)
        mapping: dict[Any, Any] = super().construct_mapping(node, deep)
        return mapping


def _note_lines(node: yaml.Node, keys: tuple[Key, ...], lines: dict[tuple[Key, ...], int]) -> None:
    """Notes the lines of keys of mappings and of items of sequences."""
    inner: list[tuple[Key, yaml.Node, yaml.Node]]
    if isinstance(node, yaml.MappingNode):
        inner = [(key.value, key, value) for key, value in node.value if isinstance(key.value, str)]
    elif isinstance(node, yaml.SequenceNode):
        inner = [(position, item, item) for position, item in enumerate(node.value)]
    else:
        return
    for key, at, value in inner:
        lines[*keys, key] = at.start_mark.line + 1
        _note_lines(value, (*keys, key), lines)
