"""Folders as ZIP archives, written while they are sent: neither the archive nor a file is whole in memory."""

from __future__ import annotations

import io
import os
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path

_CHUNK_BYTES = 2**18


class _Outlet(io.RawIOBase):
    """A file that can only be written, and hands out what was."""

    def __init__(self) -> None:
        self._pieces: list[bytes] = []

    def writable(self) -> bool:
        return True

    def write(self, content: bytes) -> int:  # type: ignore[override]  # zipfile writes bytes
        self._pieces.append(bytes(content))
        return len(content)

    def taken(self) -> bytes:
        content = b"".join(self._pieces)
        self._pieces.clear()
        return content


def regular_files(folder: Path) -> list[Path]:
    """The files right below a folder, by name: no hidden ones, and nothing that a link points to."""
    try:
        found = sorted(folder.iterdir())
    except OSError:
        return []
    return [path for path in found if path.is_file() and not path.is_symlink() and not path.name.startswith(".")]


def zipped(paths: Sequence[Path], folder: str) -> Iterator[bytes]:
    """An archive of files, piece by piece, stored as they are: weights hardly get smaller.

    Args:
        paths: The files.
        folder: In which they lie in the archive.
    """
    outlet = _Outlet()
    with zipfile.ZipFile(outlet, "w", zipfile.ZIP_STORED) as archive:
        for path in paths:
            entry = zipfile.ZipInfo.from_file(path, f"{folder}/{path.name}", strict_timestamps=False)
            with opened(path) as content, archive.open(entry, "w", force_zip64=True) as member:
                while chunk := content.read(_CHUNK_BYTES):
                    member.write(chunk)
                    yield outlet.taken()
    yield outlet.taken()


def opened(path: Path) -> io.BufferedReader:
    """A file to read, which a link may not have taken the place of meanwhile.

    Raises:
        OSError: One has, or there is no file.
    """
    return os.fdopen(os.open(path, os.O_RDONLY | os.O_NOFOLLOW), "rb")
