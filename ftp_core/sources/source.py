"""The sources that a user names as data, with their weights: what `--data` takes, read without loading anything."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from ftp_core.errors import DataError

Kind = Literal["demo", "self", "hf", "task", "path"]

DEMO, SELF = "demo", "self"
SEPARATOR = " + "
# A weight stands before the source that it is of.
_WEIGHTED = re.compile(r"(\d+(?:\.\d+)?)\s*:\s*(.+)", re.DOTALL)
# https://huggingface.co/docs/hub/repositories-settings: letters, digits, and these signs.
_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]{0,95}(/[A-Za-z0-9][\w.-]{0,95})?(:[^:/[\]]+(\[[^/[\]]*\])?){0,2}")


@dataclass(frozen=True)
class Source:
    """One source of examples.

    Attributes:
        kind: Kind of the source.
        name: Its path, or its name without the kind.
        weight: Its share of the examples, as a ratio to the others'.
    """

    kind: Kind
    name: str
    weight: float = 1.0

    def __str__(self) -> str:
        """The source as it is named, with its weight where that is not 1."""
        weight = "" if self.weight == 1 else f"{self.weight:g}:"
        return f"{weight}{self.label}"

    @property
    def label(self) -> str:
        """The source as it is named, without its weight."""
        return f"{self.kind}:{self.name}" if self.kind in ("hf", "task") else self.name

    @property
    def is_path(self) -> bool:
        """True for a file or folder of examples."""
        return self.kind == "path"

    @property
    def paths(self) -> tuple[str, ...]:
        """The file or folder that it is, or the files of tasks that it names."""
        if self.kind == "task":
            return tuple(filter(is_task_file, self.name.split(",")))
        return (self.name,) if self.is_path else ()

    def moved(self, place: Callable[[str], Path]) -> Source:
        """The same source, with its paths where `place` says.

        Raises:
            DataError: A path would be read as several sources.
        """
        names = self.name.split(",") if self.kind == "task" else [self.name]
        moved = [str(place(name)) if name in self.paths else name for name in names]
        for path in moved:
            if SEPARATOR in path or (self.kind == "task" and "," in path):
                raise DataError(f"The path {path!r} has {SEPARATOR!r} or a comma, which separate names: rename it.")
        return replace(self, name=",".join(moved))


@dataclass(frozen=True)
class Form:
    """Form in which rows and tasks become examples.

    Attributes:
        columns: Columns that make an example, such as `prompt=question,completion=answer`; empty to recognise them.
        chat: Write prompts as the chat template of the model's tokenizer does.
        fewshot: Solved examples before each prompt of a task; as many as the task itself says for None.
    """

    columns: str = ""
    fewshot: int | None = None
    chat: bool = False


AS_THEY_ARE = Form()


def parse_sources(text: str) -> tuple[Source, ...]:
    """The sources of a text such as `2:a.jsonl + self`.

    Raises:
        DataError: A source is empty, its weight is no positive number, or its name is none.
    """
    sources = []
    for part in text.split(SEPARATOR):
        name, weight, weighted = part.strip(), 1.0, _WEIGHTED.fullmatch(part.strip())
        if weighted:
            weight, name = float(weighted[1]), weighted[2]
            if not 0 < weight < 1e6:
                raise DataError(f"The weight of {name!r} is {weight:g}: expected a number above 0.")
        sources.append(_source(name, weight, text))
    return tuple(sources)


def joined(sources: Iterable[str | Source]) -> str:
    """The text that names several sources; the inverse of `parse_sources`."""
    return SEPARATOR.join(map(str, sources))


def is_task_file(name: str) -> bool:
    """True if the name of a task is the path of a YAML file."""
    return name.endswith((".yaml", ".yml"))


def _source(name: str, weight: float, text: str) -> Source:
    if not name:
        raise DataError(
            f"The data {text!r} names an empty source: expected one source, or several as SOURCE{SEPARATOR}SOURCE, "
            "each perhaps with its weight, as 2:SOURCE."
        )
    if name in (DEMO, SELF):
        return Source("demo" if name == DEMO else "self", name, weight)
    kind, _, rest = name.partition(":")
    if kind == "hf":
        if not _HUB_NAME.fullmatch(rest) or ".." in rest:
            raise DataError(f"{name!r} is no data set of the Hugging Face Hub: expected hf:DATASET[:CONFIG][:SPLIT].")
        return Source("hf", rest, weight)
    if kind == "task":
        names = [one.strip() for one in rest.split(",")]
        if not all(names):
            raise DataError(f"{name!r} names no task of lm-evaluation-harness: expected task:NAME or task:NAME,NAME.")
        return Source("task", ",".join(names), weight)
    return Source("path", name, weight)
