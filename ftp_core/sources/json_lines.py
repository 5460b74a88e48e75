"""Examples from JSON Lines files."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ftp_core.errors import DataError
from ftp_core.sources.columns import Columns
from ftp_core.sources.rows import FORMS, examples_of, type_name
from ftp_core.text.data import Example

_EXPECTED = f"one JSON object with {FORMS}"


def load_jsonl(path: str | os.PathLike[str], columns: Columns | None = None) -> list[Example]:
    """Read examples from a JSON Lines file in UTF-8.

    A line has one of the forms of `ftp_core.sources.rows.example_of`, and a file may mix them; other keys than these
    and "group" are ignored, and so are blank lines.

    Args:
        path: The file.
        columns: Keys that make an example; None to recognise them.

    Returns:
        One example a line, in the file's order; lines of plain text come last, in windows.

    Raises:
        DataError: The file cannot be read or has no example, or a line has none of the forms; says which line and why.
    """
    examples = list(examples_of(_rows(path), columns))
    if not examples:
        raise DataError(f"{path}: holds no example; expected on each line {_EXPECTED}.")
    return examples


def _rows(path: str | os.PathLike[str]) -> Iterator[tuple[str, dict[str, Any]]]:
    try:
        with Path(path).open("rb") as lines:
            # Bytes, because text files end lines at \r, too.
            for number, line in enumerate(lines, 1):
                content = line.removeprefix(b"\xef\xbb\xbf") if number == 1 else line
                if content.strip():
                    place = f"{path}, line {number}"
                    try:
                        row = _parsed(content)
                    except DataError as error:
                        raise DataError(f"{place}: {error}") from None
                    yield place, row
    except OSError as error:
        raise unreadable(path, error) from error


def check_readable(path: Path) -> None:
    """Raise `DataError` if a file of examples cannot be opened."""
    try:
        path.open("rb").close()
    except OSError as error:
        raise unreadable(path, error) from error


def unreadable(path: str | os.PathLike[str], error: OSError) -> DataError:
    """The error of a file that cannot be opened."""
    return DataError(f"{path}: cannot be read ({error.strerror or error}); expected a JSON Lines file.")


def _parsed(line: bytes) -> dict[str, Any]:
    try:
        row = json.loads(line.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise DataError(f"not UTF-8 (byte {error.start + 1} of the line): save the file as UTF-8.") from None
    except json.JSONDecodeError as error:
        raise DataError(f"not JSON ({error.msg} at column {error.colno}); expected {_EXPECTED}.") from None
    except (ValueError, RecursionError):  # numbers of thousands of digits; thousands of nested brackets
        raise DataError(f"JSON beyond what Python reads; expected {_EXPECTED}.") from None
    if not isinstance(row, dict):
        raise DataError(f"a JSON {type_name(row)} where an object was expected; expected {_EXPECTED}.")
    return row
