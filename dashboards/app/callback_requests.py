"""Checks the requests of callbacks: that a page could have sent them, and that arguments have the annotated types."""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from typing import Annotated, Any

from dash._utils import stringify_id
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, JsonValue, TypeAdapter, ValidationError

# The wildcard ALL in the ids of Dash's callbacks.
_ANY = ["ALL"]
# Whole numbers beyond it are none to browsers.
_MAX_NUMBER = 2**53


class MalformedError(Exception):
    """No page sends such a request; the text says what is wrong with it."""


def _sendable(value: JsonValue) -> JsonValue:
    """A value; raises `ValueError` for what no browser's components hold, and no database takes."""
    if isinstance(value, str) and "\0" in value:
        raise ValueError("text holds a zero byte")
    if isinstance(value, (int, float)) and not abs(value) <= _MAX_NUMBER:
        raise ValueError("a number is too large")
    for part in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        _sendable(part)
    return value


class _Property(BaseModel):
    """One property of a component, with its value."""

    model_config = ConfigDict(strict=True)

    id: str | dict[str, str | int | float | bool]
    property: str
    value: Annotated[JsonValue, AfterValidator(_sendable)] = None


_Properties = _Property | list[_Property]


class _CallbackRequest(BaseModel):
    """What a browser sends for a callback, as far as it counts."""

    model_config = ConfigDict(strict=True)

    output: str
    outputs: _Properties | list[_Properties]
    inputs: list[_Properties]
    state: list[_Properties] = []
    changed: list[str] = Field([], alias="changedPropIds")


def checked_request(content: bytes, callbacks: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """The body of a request, as Dash reads it.

    Args:
        content: Body as it was sent.
        callbacks: Callbacks of Dash by their output.

    Raises:
        MalformedError: A component is not the callback's, or an argument has another type than its annotation.
    """
    try:
        request = _CallbackRequest.model_validate_json(content)
    except ValidationError as error:
        raise MalformedError("it has another form") from error
    callback = callbacks.get(request.output, {})
    if "callback" not in callback:
        raise MalformedError("there is no callback with its output")
    arguments = [*request.inputs, *request.state]
    _check_places(callback, request.outputs, arguments)
    values = [[part.value for part in one] if isinstance(one, list) else one.value for one in arguments]
    for (name, kind), value in zip(_kinds(callback["callback"]).items(), values, strict=True):
        try:
            kind.validate_python(value, strict=True)
        except ValidationError as error:
            raise MalformedError(f"its argument {name} has another type") from error
    body = request.model_dump()
    inputs = [part for one in body["inputs"] for part in (one if isinstance(one, list) else [one])]
    # What is no input of the callback has not triggered it.
    known = {f"{stringify_id(part['id'])}.{part['property']}" for part in inputs}
    return {**body, "changedPropIds": [one for one in request.changed if one in known]}


def _check_places(callback: Mapping[str, Any], outputs: Any, arguments: list[Any]) -> None:
    """Raises `MalformedError` unless outputs and arguments are the properties that a callback names."""
    is_many = isinstance(callback["output"], Sequence)
    named = callback["output"] if is_many else [callback["output"]]
    wanted = [*(one.to_dict() for one in named), *callback["inputs"], *callback["state"]]
    given = [*(outputs if is_many and isinstance(outputs, list) else [outputs]), *arguments]
    if len(given) != len(wanted):
        raise MalformedError("the callback has other outputs, inputs or states")
    # Components of each pattern: all lists of one request are of the same ones.
    matched: dict[str, list[Any]] = {}
    for place, one in zip(wanted, given, strict=True):
        pattern: str | dict[str, Any] = json.loads(place["id"]) if place["id"].startswith("{") else place["id"]
        is_list = isinstance(pattern, dict) and _ANY in pattern.values()
        parts = one if is_list and isinstance(one, list) else [one]
        ids = [part.id for part in parts if isinstance(part, _Property) and _is_of(part, pattern, place["property"])]
        if is_list != isinstance(one, list) or len(ids) != len(parts) or matched.setdefault(place["id"], ids) != ids:
            raise MalformedError(f"{place['id']}.{place['property']} is expected where it says something else")


def _is_of(part: _Property, pattern: str | dict[str, Any], name: str) -> bool:
    """True if a property belongs to a component that matches an id, and an id that is told is the component's own."""
    # Where several callbacks have the same output, browsers add to its name.
    if part.property.partition("@")[0] != name or (name == "id" and part.value != part.id):
        return False
    if not isinstance(pattern, dict) or not isinstance(part.id, dict):
        return part.id == pattern
    own = part.id
    return own.keys() == pattern.keys() and all(expected in (_ANY, own[key]) for key, expected in pattern.items())


@lru_cache
def _kinds(function: Callable[..., Any]) -> dict[str, TypeAdapter[Any]]:
    """The types of a callback's arguments by name."""
    parameters = inspect.signature(function, eval_str=True).parameters.values()
    return {one.name: TypeAdapter(one.annotation) for one in parameters}
