"""Operations on the files of studies: reports, and pruned models as archives that are written while they are sent."""

from __future__ import annotations

import io
import os
import re
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated
from urllib.parse import quote

from fastapi import APIRouter
from fastapi import Path as PathParameter
from fastapi.responses import Response, StreamingResponse
from starlette.exceptions import HTTPException

from search.config.run_config import RunConfig
from search.service.http.parameters import StudyName
from search.service.http.responses import FileAnswer, Files
from search.service.rules.problems import described
from studies.service.service_store import ServiceStore

_CHUNK_BYTES = 2**18
# A report that is opened in the browser may run its scripts, but neither send requests nor be framed.
_REPORT_POLICY = (
    "sandbox allow-scripts; default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; "
    "img-src data: blob:"
)
_TYPES = {
    ".html": "text/html; charset=utf-8",
    ".md": "text/markdown; charset=utf-8",
    ".csv": "text/csv; charset=utf-8",
    ".json": "application/json",
}
_ELSEWHERE = "it is written by the runner at the end, into a folder that may be on another machine."
_BINARY = {"schema": {"type": "string", "format": "binary"}}


def add_files(router: APIRouter, store: ServiceStore) -> None:
    """Adds the operations to a router."""
    problems = described(401, 404, 422)

    def folder(name: str) -> Path:
        return RunConfig.stored(store.studies.get(name).config).folder(name)

    def report_files(name: str) -> list[Path]:
        # Until then, the folder may hold the report of a deleted study of this name.
        if not store.runs.has_finished(name, "report"):
            return []
        return [path for path in _regular_files(folder(name)) if path.suffix in _TYPES]

    @router.get("/studies/{name}/report", responses=problems, tags=["files"])
    def list_report(name: StudyName) -> Files:
        """List the files of a study's report, once it has been written."""
        return Files(items=[FileAnswer(name=path.name, bytes=path.stat().st_size) for path in report_files(name)])

    @router.get(
        "/studies/{name}/report/{file}",
        response_class=Response,
        responses={**problems, 200: {"description": "The file.", "content": {"application/octet-stream": _BINARY}}},
        tags=["files"],
    )
    def get_report(
        name: StudyName,
        file: Annotated[str, PathParameter(max_length=200, description="Name of the file, such as report.html.")],
    ) -> Response:
        """Download a file of a study's report."""
        try:
            found = next(path for path in report_files(name) if path.name == file)
            content = _opened(found)
        except (StopIteration, OSError):
            raise HTTPException(404, f"The report has no such file here: {_ELSEWHERE}") from None
        headers = {**attachment(f"{name}-{file}"), "Content-Security-Policy": _REPORT_POLICY}
        pieces = iter(lambda: content.read(_CHUNK_BYTES), b"")
        return StreamingResponse(pieces, media_type=_TYPES[found.suffix], headers=headers)

    @router.get(
        "/studies/{name}/model",
        response_class=Response,
        responses={
            **problems,
            **described(409),
            200: {"description": "A ZIP archive.", "content": {"application/zip": _BINARY}},
        },
        tags=["files"],
    )
    def get_model(name: StudyName) -> Response:
        """Download the pruned model as a ZIP archive of a folder that transformers loads."""
        if not store.runs.has_finished(name, "export"):
            raise HTTPException(409, "The study has not exported its model: wait until it has finished.")
        model = folder(name) / "model"
        # The study itself writes no links.
        files = [] if model.is_symlink() else _regular_files(model)
        if not files:
            raise HTTPException(404, f"There is no model here: {_ELSEWHERE}")
        inner = re.sub(r"[^\w.-]", "_", name, flags=re.ASCII)
        return StreamingResponse(zipped(files, inner), media_type="application/zip", headers=attachment(f"{name}.zip"))


def attachment(file: str) -> dict[str, str]:
    """A header that makes browsers save a file instead of opening it as a page of the service."""
    return {"Content-Disposition": f"attachment; filename*=UTF-8''{quote(file, safe='')}"}


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


def _regular_files(folder: Path) -> list[Path]:
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
            with _opened(path) as content, archive.open(entry, "w", force_zip64=True) as member:
                while chunk := content.read(_CHUNK_BYTES):
                    member.write(chunk)
                    yield outlet.taken()
    yield outlet.taken()


def _opened(path: Path) -> io.BufferedReader:
    """A file opened for reading; raises `OSError` if it is missing or a link."""
    return os.fdopen(os.open(path, os.O_RDONLY | os.O_NOFOLLOW), "rb")
