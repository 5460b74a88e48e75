"""Errors as problem details (RFC 9457)."""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping, Sequence
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
from pydantic import BaseModel, Field
from starlette.exceptions import HTTPException

from ftp_core.errors import CoreError
from search.config.run_config import RunConfig
from search.errors import SearchError
from studies import StorageError, StudiesError, StudyBusyError, StudyExistsError, StudyNotFoundError
from studies.service.submissions import NotSubmittedError

MEDIA_TYPE = "application/problem+json"
_MAX_SHOWN = 100
# Options of the command line in a message.
_OPTION = re.compile(r"--([a-z][a-z-]*[a-z])")

# Error of FastAPI for bodies that are not text or are nested too deeply.
_UNREADABLE = "There was an error parsing the body"
_NO_JSON = "The body is no JSON."

_log = logging.getLogger(__name__)


class Problem(BaseModel):
    """A problem with a request."""

    type: str = Field("about:blank", description="Always about:blank; the status is the kind of problem.")
    title: str = Field(description="The status in words.")
    status: int
    detail: str = Field(description="What was wrong, what was expected, and what to do.")


def problem(status: int, detail: str, headers: Mapping[str, str] | None = None) -> Response:
    """A response with problem details."""
    found = Problem(type="about:blank", title=HTTPStatus(status).phrase, status=status, detail=detail)
    return JSONResponse(found.model_dump(), status, headers, media_type=MEDIA_TYPE)


def described(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """The problems of an operation, for the OpenAPI document."""
    content = {MEDIA_TYPE: {"schema": {"$ref": "#/components/schemas/Problem"}}}
    return {status: {"description": HTTPStatus(status).phrase, "content": content} for status in statuses}


def answer_with_problems(app: FastAPI) -> None:
    """Makes an application answer every error with problem details."""

    def http_error(_: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        if error.status_code == HTTPStatus.NO_CONTENT:
            return Response(status_code=HTTPStatus.NO_CONTENT)
        detail = error.detail
        if error.status_code == HTTPStatus.NOT_FOUND and detail == HTTPStatus.NOT_FOUND.phrase:
            detail = "There is nothing at this address: /api/v1/openapi.json lists what there is."
        if error.status_code == HTTPStatus.BAD_REQUEST and detail == _UNREADABLE:
            return problem(HTTPStatus.UNPROCESSABLE_ENTITY, _NO_JSON)
        return problem(error.status_code, detail, error.headers)

    def invalid(_: Request, error: Exception) -> Response:
        assert isinstance(error, RequestValidationError)
        return problem(HTTPStatus.UNPROCESSABLE_ENTITY, " ".join(complaint(one) for one in error.errors()[:10]))

    def known(request: Request, error: Exception) -> Response:
        return problem_of(error, request)

    app.add_exception_handler(HTTPException, http_error)
    app.add_exception_handler(RequestValidationError, invalid)
    for kind in (StudiesError, SearchError, CoreError):
        app.add_exception_handler(kind, known)
    app.add_exception_handler(Exception, known)


def problem_of(error: Exception, request: Request) -> Response:
    """The response to an error; defects are logged and not described."""
    if isinstance(error, StudyNotFoundError):
        return problem(404, "There is no such study: GET /api/v1/studies lists all.")
    if isinstance(error, StudyExistsError):
        return problem(409, "A study of this name exists: choose another name, resume it, or delete it first.")
    if isinstance(error, (StudyBusyError, NotSubmittedError)):
        return problem(409, str(error))
    if isinstance(error, StorageError):
        # Its text names the database.
        _log.error("%s %s: %s", request.method, request.url.path, error)
        return problem(503, "The database does not answer as it should: try again later.", {"Retry-After": "10"})
    if isinstance(error, (SearchError, CoreError)):
        return problem(422, in_fields(str(error)))
    _log.error("%s %s failed", request.method, request.url.path, exc_info=error)
    return problem(500, "The service failed, which is a defect: its log says where.")


def in_fields(text: str) -> str:
    """A message of the command line with names of fields in place of options."""

    def field(found: re.Match[str]) -> str:
        name = found.group(1).replace("-", "_")
        return name if name in RunConfig.model_fields else found.group()

    return _OPTION.sub(field, text)


def complaint(error: Mapping[str, Any]) -> str:
    """A sentence about a wrong field, from an error of pydantic whose location begins with the part of the request."""
    place: Sequence[Any] = error["loc"]
    name = ".".join(map(str, place[1:])) or f"the {place[0]}"
    kind = error["type"]
    if kind == "missing":
        return f"{name} is missing."
    if kind == "extra_forbidden":
        return f"{name} is unknown."
    if kind == "json_invalid":
        return _NO_JSON
    shown = repr(error.get("input"))
    shown = shown if len(shown) <= _MAX_SHOWN else shown[:_MAX_SHOWN] + "…"
    expected = error["msg"].removeprefix("Value error, ").replace("Input should be", "expected")
    return f"{name} is {shown}: {expected[:1].lower()}{expected[1:]}."
