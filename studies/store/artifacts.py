"""A folder beside a database: weights that earlier versions kept as files named by their content, unfinished work."""

from __future__ import annotations

import hashlib
import os
import tempfile
from pathlib import Path

from sqlalchemy.engine import URL

from studies.errors import StorageError
from studies.sql.location import database_file

_FOLDER_VARIABLE = "FTP_SEARCH_ARTIFACTS"


def artifact_folder(url: URL) -> Path | None:
    """Where the artifacts of a database lie: `$FTP_SEARCH_ARTIFACTS`, or beside a SQLite file, or `./ftp-artifacts`.

    None for a database in memory: its artifacts are in memory too.
    """
    named = os.environ.get(_FOLDER_VARIABLE)
    if named:
        return Path(named)
    if url.get_backend_name() != "sqlite":
        return Path("ftp-artifacts").absolute()
    file = database_file(url)
    return None if file is None else file.absolute().with_name(f"{file.name}-artifacts")


class ArtifactStore:
    """A folder of files, each named by the SHA-256 of its content.

    Args:
        folder: The folder, made when the first file is; None keeps the files in memory.
    """

    def __init__(self, folder: Path | None) -> None:
        self._folder = folder
        self._memory: dict[str, bytes] = {}

    def put(self, content: bytes) -> str:
        """Keep a file; the same content twice is one file.

        Returns:
            Its hash.

        Raises:
            StorageError: It cannot be written.
        """
        sha256 = hashlib.sha256(content).hexdigest()
        if self._folder is None:
            self._memory[sha256] = content
            return sha256
        path = self._path(sha256)
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            # Written elsewhere, and moved when it is whole and on the disk: a name never stands for half a file.
            handle, partial = tempfile.mkstemp(prefix=".partial-", dir=self._folder)
            try:
                with os.fdopen(handle, "wb") as file:
                    file.write(content)
                    file.flush()
                    os.fsync(file.fileno())
                os.replace(partial, path)
            except BaseException:
                os.unlink(partial)
                raise
        except OSError as error:
            raise StorageError(
                f"Cannot write the artifact {path}: {error.strerror or error}. Make room or another folder for it, and "
                f"name that with {_FOLDER_VARIABLE}."
            ) from error
        return sha256

    def get(self, sha256: str) -> bytes:
        """The file with this hash.

        Raises:
            StorageError: It is missing, or its content is another.
        """
        content = self._memory.get(sha256) if self._folder is None else self._read(self._path(sha256))
        if content is None:
            raise StorageError(
                f"The artifact {self._path(sha256)} is missing: restore it, name its folder with {_FOLDER_VARIABLE}, "
                "or distil the router again."
            )
        if hashlib.sha256(content).hexdigest() != sha256:
            raise StorageError(
                f"The artifact {self._path(sha256)} was altered: its content no longer has the hash in its name. "
                "Restore it, or delete it and distil the router again."
            )
        return content

    def scratch(self, name: str) -> Path | None:
        """Where work that is not finished may lie, by name: the path of a file or a folder; None without a folder."""
        return None if self._folder is None else self._folder / "unfinished" / name

    def _path(self, sha256: str) -> Path:
        return (self._folder or Path("memory")) / f"{sha256}.safetensors"

    @staticmethod
    def _read(path: Path) -> bytes | None:
        try:
            return path.read_bytes()
        except FileNotFoundError:
            return None
        except OSError as error:
            raise StorageError(f"Cannot read the artifact {path}: {error.strerror or error}.") from error
