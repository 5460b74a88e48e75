"""Plain text as examples: cut into windows, the beginning of each is a prompt and the rest its completion."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from pathlib import Path

from ftp_core.errors import DataError
from ftp_core.text.data import Example

# Characters of a window: in English about 200 tokens of prompt and 64 of completion.
PROMPT_CHARACTERS, COMPLETION_CHARACTERS = 800, 256
# Characters in which a place between words is looked for; texts without white space are cut within.
_REACH = 80
_SUFFIXES = (".txt", ".md")


def windows(texts: Iterable[str]) -> Iterator[Example]:
    """Cut texts into windows that do not overlap; short texts are joined by line breaks, and the last rest is left out.

    A window is cut where a word begins, so that its parts with their white space are the text.
    """
    rest, whole = "", PROMPT_CHARACTERS + COMPLETION_CHARACTERS + 2 * _REACH
    for text in texts:
        if not text.strip():
            continue
        rest += text if text.endswith("\n") else text + "\n"
        start = 0
        while len(rest) - start >= whole:
            middle = _between_words(rest, start + PROMPT_CHARACTERS)
            end = _between_words(rest, middle + COMPLETION_CHARACTERS)
            if rest[start:middle].strip() and rest[middle:end].strip():
                yield Example(rest[start:middle], rest[middle:end])
            start = end
        rest = rest[start:]


def _between_words(text: str, place: int) -> int:
    """The first place from one on where white space begins, at most `_REACH` characters on; the place if there is none.

    White space goes to the continuation, as tokenizers put it with the next word.
    """
    for one in range(place, place + _REACH):
        if text[one].isspace() and not text[one - 1].isspace():
            return one
    return place


def text_files(path: Path) -> list[Path]:
    """The files of plain text in a folder and those below it, by name; the file itself if it is one."""
    if not path.is_dir():
        return [path]
    return sorted(file for file in path.rglob("*") if file.suffix.lower() in _SUFFIXES and file.is_file())


def is_text_file(path: Path) -> bool:
    """True if a file's name ends like that of plain text."""
    return path.suffix.lower() in _SUFFIXES


def load_text(path: str | os.PathLike[str]) -> list[Example]:
    """Read a file of plain text in UTF-8, or all of a folder (`.txt` and `.md`), in windows.

    Raises:
        DataError: A file cannot be read, is not UTF-8, or there is not text enough for one window.
    """
    files = text_files(Path(path))
    examples = [example for file in files for example in windows([_read(file)])]
    if not examples:
        raise DataError(
            f"{path}: too short; expected at least {PROMPT_CHARACTERS + COMPLETION_CHARACTERS + 2 * _REACH} characters "
            f"of text in {'a file' if Path(path).is_dir() else 'it'}, which make a prompt and its completion."
        )
    return examples


def _read(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"{file}: not UTF-8 (byte {error.start + 1}): save the file as UTF-8.") from None
    except OSError as error:
        raise DataError(f"{file}: cannot be read ({error.strerror or error}); expected a file of text.") from error
