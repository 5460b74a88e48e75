"""ZIP archives that are written while they are sent, a chunk in memory at a time."""

from __future__ import annotations

import io
import os
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path

_CHUNK_BYTES = 2**18


class _Outlet(io.BytesIO):
    """A stream of which `zipfile` only writes the end, so that what was written can be taken away."""

    def seekable(self) -> bool:
        return False

    def tell(self) -> int:
        raise io.UnsupportedOperation

    def taken(self) -> bytes:
        content = self.getvalue()
        self.seek(0)
        self.truncate()
        return content


def regular_files(folder: Path) -> list[Path]:
    """The files directly in a folder, by name, without hidden ones and links."""
    try:
        found = sorted(folder.iterdir())
    except OSError:
        return []
    return [path for path in found if path.is_file() and not path.is_symlink() and not path.name.startswith(".")]


def zipped(paths: Sequence[Path], folder: str) -> Iterator[bytes]:
    """Yields the pieces of an archive with files in one folder, uncompressed: weights hardly get smaller."""
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
    """A file opened for reading; raises `OSError` if it is missing or a link."""
    return os.fdopen(os.open(path, os.O_RDONLY | os.O_NOFOLLOW), "rb")
