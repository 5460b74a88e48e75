"""Completes the OpenAPI document by what no operation declares itself: problems, access, summaries, examples, 304."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI

from search.service.auth.access import CSRF_HEADER, OPEN, SESSION_COOKIE
from search.service.http.examples import ANSWERS, OF_OPERATIONS
from search.service.rules.problems import Problem, described

_SCHEMES: dict[str, Any] = {
    "token": {"type": "http", "scheme": "bearer", "description": "A secret that `ftp-search token add` printed."},
    "session": {
        "type": "apiKey",
        "in": "cookie",
        "name": SESSION_COOKIE,
        "description": f"The session of a browser. What changes something repeats `csrf` of GET /api/v1/session in the "
        f"header {CSRF_HEADER}.",
    },
}
# The empty one: on the machine itself nothing is needed until there is a token.
_ANY_ACCESS: list[dict[str, list[str]]] = [{"token": []}, {"session": []}, {}]
_METHODS = ("get", "post", "put", "patch", "delete")


def complete_document(app: FastAPI) -> None:
    """Makes an application describe itself completely."""
    made = app.openapi

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            document = made()
            document["components"]["schemas"]["Problem"] = Problem.model_json_schema()
            document["components"]["securitySchemes"] = _SCHEMES
            for path, operations in document["paths"].items():
                for method in _METHODS:
                    if method in operations:
                        _complete(operations[method], method, path)
        return app.openapi_schema or {}

    app.openapi = openapi  # type: ignore[method-assign]


def _complete(operation: dict[str, Any], method: str, path: str) -> None:
    summary, _, more = operation.pop("description", operation["summary"]).partition("\n\n")
    operation["summary"] = " ".join(summary.split()).removesuffix(".")
    if more:
        operation["description"] = more
    responses = operation["responses"]
    for status, response in responses.items():
        body = response.get("content", {}).get("application/json")
        if status.startswith("2") and body is not None:
            example = OF_OPERATIONS.get((method, path)) or ANSWERS.get(
                body["schema"].get("$ref", "").rpartition("/")[-1]
            )
            # An example that is missing is no reason to answer nothing at all.
            body |= {} if example is None else {"example": example}
    is_open = (method.upper(), path) in OPEN
    operation["security"] = [] if is_open else _ANY_ACCESS
    if not is_open:
        # Whoever sends too many wrong tokens has to wait.
        responses |= {str(status): one for status, one in described(401, 429).items()}
    if method == "get" and "application/json" in responses["200"].get("content", {}):
        responses["304"] = {"description": "The ETag that `If-None-Match` gives is still the answer's."}
