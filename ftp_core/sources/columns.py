"""Columns of a table that make an example, as a user names them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ftp_core.errors import DataError

_EXPECTED = (
    "expected prompt=COLUMN with completion=COLUMN, with choices=COLUMN (a list, or COLUMN+COLUMN+... for one column a "
    "choice) and label=COLUMN, or alone for plain text"
)


@dataclass(frozen=True)
class Columns:
    """Names of the columns of each part of an example.

    Attributes:
        prompt: Column of the prompt, taken as it is; of plain text if it is the only one.
        completion: Column of the completion; empty if there is none.
        choices: Column with a list of choices, or one column for each choice; none if there are no choices.
        label: Column that says which choice is right; empty if there are no choices.
    """

    prompt: str
    completion: str = ""
    choices: tuple[str, ...] = ()
    label: str = ""

    @classmethod
    def parsed(cls, text: str) -> Columns | None:
        """Columns from text such as `prompt=question,completion=answer`; None if it is empty.

        Raises:
            DataError: It names another part, one twice, none or too few.
        """
        if not text.strip():
            return None
        parts: dict[str, str] = {}
        for one in text.split(","):
            part, equals, column = (word.strip() for word in one.partition("="))
            if not equals or not column or part not in ("prompt", "completion", "choices", "label") or part in parts:
                raise DataError(f"--columns has {one.strip()!r}: {_EXPECTED}.")
            parts[part] = column
        if "prompt" not in parts or set(parts) - {"prompt"} not in ({"completion"}, {"choices", "label"}, set()):
            raise DataError(f"--columns is {text!r}: {_EXPECTED}.")
        choices = tuple(column.strip() for column in parts.get("choices", "").split("+") if column.strip())
        return cls(parts["prompt"], parts.get("completion", ""), choices, parts.get("label", ""))

    @property
    def names(self) -> tuple[str, ...]:
        """All columns that a row must have."""
        return tuple(filter(None, (self.prompt, self.completion, *self.choices, self.label)))

    @property
    def is_text(self) -> bool:
        """True if rows are plain text."""
        return not self.completion and not self.choices

    def check(self, row: Mapping[str, Any]) -> None:
        """Raise `DataError` if a row lacks one of the columns."""
        for name in self.names:
            if name not in row:
                raise DataError(f"has no column {name!r}, which --columns names; it has {', '.join(map(repr, row))}.")
