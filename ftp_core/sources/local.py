"""Files and folders as examples, by the endings of their names."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from ftp_core.errors import DataError
from ftp_core.sources.columns import Columns
from ftp_core.sources.json_lines import check_readable, load_jsonl
from ftp_core.sources.plain_text import is_text_file, load_text
from ftp_core.text.data import Example

_TABLES = {".parquet": "parquet", ".csv": "csv", ".tsv": "tsv", ".json": "json", ".arrow": "arrow"}
_COMPRESSED = (".gz", ".bz2", ".xz", ".zst")
# Files of folders that `datasets.save_to_disk` writes.
_ON_DISK = ("dataset_dict.json", "state.json")


def load_path(path: str | os.PathLike[str], columns: Columns | None = None) -> list[Example]:
    """Read examples from a file or a folder.

    - `.txt` and `.md`: plain text, cut into windows.
    - `.parquet`, `.csv`, `.tsv`, `.json`, `.arrow`: tables, read by `datasets`; `.jsonl` with an ending of compression,
      too.
    - Any other: JSON Lines.
    - A folder: what `datasets.save_to_disk` wrote, or files of one of these kinds.

    Raises:
        DataError: It cannot be read, or holds no example.
    """
    place = Path(path).expanduser()
    if not place.is_dir():
        return _load_file(place, columns)
    if any((place / name).is_file() for name in _ON_DISK):
        from ftp_core.sources.tables import load_table

        return load_table(place, "disk", columns)
    if all(map(is_text_file, files_in(place))):
        return load_text(place)
    return [example for file in files_in(place) for example in _load_file(file, columns)]


def _load_file(file: Path, columns: Columns | None) -> list[Example]:
    reader = _reader(file)
    if reader == "text":
        return load_text(file)
    if reader == "lines":
        return load_jsonl(file, columns)
    check_readable(file)
    # The library takes a second to load, and not everybody has it.
    from ftp_core.sources.tables import load_table

    return load_table(file, reader, columns)


def _reader(file: Path) -> str:
    if is_text_file(file):
        return "text"
    if file.suffix.lower() in _COMPRESSED:
        return _TABLES.get(Path(file.stem).suffix.lower(), "json")
    return _TABLES.get(file.suffix.lower(), "lines")


def files_in(folder: Path) -> list[Path]:
    """The files of examples in a folder and those below it, which are of the kind that most are of, by name.

    Raises:
        DataError: There is none.
    """
    kinds = Counter(_reader(file) for file in _known(folder))
    if not kinds:
        raise DataError(
            f"{folder}: a folder without files of examples; expected .jsonl, .parquet, .csv, .tsv, .json, .arrow, .txt "
            "or .md, or what datasets.save_to_disk wrote."
        )
    most = max(kinds, key=lambda kind: (kinds[kind], kind))
    return [file for file in _known(folder) if _reader(file) == most]


def is_examples_file(file: Path) -> bool:
    """True if a file's name is one that a folder of examples has for them."""
    ending = Path(file.stem).suffix if file.suffix.lower() in _COMPRESSED else file.suffix
    is_readme = file.stem.lower() in ("readme", "license")
    return not is_readme and (ending.lower() in (*_TABLES, ".jsonl") or is_text_file(file))


def _known(folder: Path) -> Iterator[Path]:
    for file in sorted(folder.rglob("*")):
        is_hidden = any(part.startswith(".") for part in file.relative_to(folder).parts)
        if not is_hidden and is_examples_file(file):
            yield file


def check_path(path: str | os.PathLike[str]) -> None:
    """Raise `DataError` if a file of examples cannot be opened, or a folder holds none."""
    place = Path(path).expanduser()
    if not place.is_dir():
        check_readable(place)
    elif not any((place / name).is_file() for name in _ON_DISK):
        files_in(place)
