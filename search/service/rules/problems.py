"""Errors as problem details (RFC 9457)."""

from __future__ import annotations

import logging
import re
from collections.abc import Container, Iterable, Mapping, Sequence
from html import escape
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, JSONResponse, Response
from pydantic import BaseModel, Field
from starlette.exceptions import HTTPException
from starlette.routing import Match, Mount

from ftp_core.errors import CoreError
from search.config.run_config import RunConfig
from search.errors import BusyError, DeadlineError, SearchError, UnfinishedError
from search.service.rules.plain_pages import is_opened, plain_page
from studies import StorageError, StudiesError, StudyBusyError, StudyExistsError, StudyNotFoundError
from studies.service.submissions import NotSubmittedError

MEDIA_TYPE = "application/problem+json"
_MAX_SHOWN = 100
# Options of the command line in a message.
_OPTION = re.compile(r"--([a-z][a-z-]*[a-z])")

# Error of FastAPI for bodies that are not text or are nested too deeply.
_UNREADABLE = "There was an error parsing the body"
_NO_JSON = "The body is no JSON object: expected one, with the Content-Type application/json."
_METHODS = ("GET", "POST", "PUT", "PATCH", "DELETE")
# What was expected, by the kind of pydantic's error.
_EXPECTED = {
    **dict.fromkeys(("string_type", "string_unicode"), "text"),
    **dict.fromkeys(("int_type", "int_parsing", "int_from_float"), "a whole number"),
    **dict.fromkeys(("int_parsing_size", "finite_number"), "a smaller number"),
    **dict.fromkeys(("float_type", "float_parsing"), "a number"),
    **dict.fromkeys(("bool_type", "bool_parsing"), "true or false"),
    **dict.fromkeys(("tuple_type", "list_type"), "a list"),
    **{"string_too_long": "at most {max_length} characters", "string_too_short": "text that is not empty"},
    "too_long": "at most {max_length} items",
}

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

    def http_error(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        if error.status_code == HTTPStatus.NO_CONTENT:
            return Response(status_code=HTTPStatus.NO_CONTENT)
        status, detail, headers = error.status_code, error.detail, error.headers
        if status == HTTPStatus.NOT_FOUND and detail == HTTPStatus.NOT_FOUND.phrase:
            detail = "There is nothing at this address: /api/v1/openapi.json lists what there is."
        if status == HTTPStatus.BAD_REQUEST and detail == _UNREADABLE:
            status, detail = HTTPStatus.UNPROCESSABLE_ENTITY, _NO_JSON
        if status == HTTPStatus.METHOD_NOT_ALLOWED:
            methods = ", ".join(_allowed(app, request.scope["path"]))
            detail, headers = f"This address answers {methods} alone.", {"Allow": methods}
        return _shown(request, problem(status, detail, headers))

    def invalid(request: Request, error: Exception) -> Response:
        assert isinstance(error, RequestValidationError)
        found = " ".join(map(complaint, told(error.errors())[:10]))
        return _shown(request, problem(HTTPStatus.UNPROCESSABLE_ENTITY, found))

    def known(request: Request, error: Exception) -> Response:
        return _shown(request, problem_of(error, request))

    app.add_exception_handler(HTTPException, http_error)
    app.add_exception_handler(RequestValidationError, invalid)
    for kind in (StudiesError, SearchError, CoreError):
        app.add_exception_handler(kind, known)
    app.add_exception_handler(Exception, known)


def _allowed(app: FastAPI, path: str) -> list[str]:
    """The methods that an address answers."""

    def answers(method: str) -> bool:
        asked = {"type": "http", "method": method, "path": path, "root_path": "", "headers": []}
        return any(route.matches(asked)[0] is Match.FULL for route in app.routes if not isinstance(route, Mount))

    # What is mounted are files.
    allowed = [method for method in _METHODS if answers(method)] or ["GET"]
    return ["GET", "HEAD", *allowed[1:]] if allowed[0] == "GET" else allowed


def _shown(request: Request, response: Response) -> Response:
    """A problem as it is, or as a page where a browser opens an address."""
    if not is_opened(request.method, request.headers):
        return response
    found = Problem.model_validate_json(bytes(response.body))
    headers = {name: value for name, value in response.headers.items() if not name.startswith("content-")}
    content = f'<p role="alert">{escape(found.detail)}</p>\n<p><a href="/">All studies</a></p>'
    return HTMLResponse(plain_page(found.title, content), found.status, headers)


def problem_of(error: Exception, request: Request) -> Response:
    """The response to an error; defects are logged and not described."""
    if isinstance(error, StudyNotFoundError):
        return problem(404, "There is no such study: GET /api/v1/studies lists all.")
    if isinstance(error, StudyExistsError):
        return problem(409, "A study of this name exists: choose another name, resume it, or delete it first.")
    if isinstance(error, (StudyBusyError, NotSubmittedError, UnfinishedError)):
        return problem(409, str(error))
    if isinstance(error, BusyError):
        return problem(503, str(error), {"Retry-After": "10"})
    if isinstance(error, DeadlineError):
        return problem(504, str(error))
    if isinstance(error, StorageError):
        # Its text names the database.
        _log.error("%s %s: %s", request.method, request.url.path, error)
        return problem(503, "The database does not answer as it should: try again later.", {"Retry-After": "10"})
    if isinstance(error, (SearchError, CoreError)):
        return problem(422, in_fields(str(error)))
    _log.error("%s %s failed", request.method, request.url.path, exc_info=error)
    return problem(500, "The service failed, which is a defect: its log says where.")


def in_fields(text: str, fields: Container[str] = RunConfig.model_fields) -> str:
    """A message of the command line with names of fields in place of options."""

    def field(found: re.Match[str]) -> str:
        name = found.group(1).replace("-", "_")
        return name if name in fields else found.group()

    return _OPTION.sub(field, text)


def told(errors: Iterable[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Errors of pydantic without those that only follow from others."""
    return [error for error in errors if error["type"] != "default_factory_not_called"]


def complaint(error: Mapping[str, Any]) -> str:
    """A sentence about a wrong field, from an error of pydantic whose location begins with the part of the request."""
    place: Sequence[Any] = error["loc"]
    name = ".".join(map(str, place[1:])) or f"the {place[0]}"
    kind = error["type"]
    if kind == "missing":
        return f"{name} is missing."
    if kind == "extra_forbidden":
        return f"{name} is unknown."
    if kind == "json_invalid" or tuple(place) == ("body",):
        return _NO_JSON
    shown = repr(error.get("input"))
    shown = shown if len(shown) <= _MAX_SHOWN else shown[:_MAX_SHOWN] + "…"
    if kind in _EXPECTED:
        expected = f"expected {_EXPECTED[kind].format(**error.get('ctx', {}))}"
    else:
        expected = error["msg"].removeprefix("Value error, ").replace("Input should be", "expected")
    return f"{name} is {shown}: {expected[:1].lower()}{expected[1:]}."
