"""Hands the dashboard what it may do, and puts it onto the service."""

from __future__ import annotations

import types
from collections.abc import Callable, Mapping
from typing import Any, Literal, Union, get_args, get_origin

from annotated_types import Ge, Gt, Le, Lt, MaxLen
from fastapi import FastAPI
from pydantic import ValidationError
from pydantic.fields import FieldInfo

from dashboards.app import Actions, FormField, RefusedError
from dashboards.app import mount as mount_pages
from ftp_core.errors import CoreError
from search.config.run_config import RunConfig
from search.errors import SearchError
from search.service.http.app import MountDashboard
from search.service.jobs.submitting import create_and_submit, resume_and_submit
from search.service.rules.problems import complaint, in_fields
from search.service.rules.requests import SUBMITTABLE, ResumeRequest, StudyRequest
from search.service.rules.settings import ServiceSettings
from studies import StudiesError, StudyBusyError, StudyExistsError, StudyNotFoundError
from studies.service.service_store import ServiceStore
from studies.service.submissions import NotSubmittedError

# What most who begin a study want to say.
_COMMON = ("model", "data", "trials", "cost", "target_sparsity", "max_latency_ms", "rounds", "seed")
# Of a list of values: what it is typed as.
_LISTS = (tuple, list)


def dashboard(settings: ServiceSettings) -> MountDashboard:
    """What `create_app` takes for its dashboard.

    Args:
        settings: How the service is set up.
    """

    def mount(app: FastAPI, store: ServiceStore, is_editor: Callable[[], bool]) -> Mapping[str, Any]:
        return mount_pages(app, store, is_editor, actions(store, settings))

    return mount


def actions(store: ServiceStore, settings: ServiceSettings) -> Actions:
    """What editors may do on the pages: the same as over the API, checked in the same way.

    Args:
        store: Where studies live.
        settings: How the service is set up.
    """

    def request(name: str, said: Mapping[str, Any]) -> StudyRequest:
        values = {field: _listed(value) if _is_list(field) else value for field, value in said.items()}
        return StudyRequest(name=name, **values)

    def check(name: str, said: Mapping[str, Any]) -> None:
        asked = request(name, said)
        RunConfig.checked(str, **asked.given())

    return Actions(
        check=_refusing(check),
        create=_refusing(lambda name, said: create_and_submit(request(name, said), store, settings)),
        stop=_refusing(store.request_stop),
        resume=_refusing(lambda name, said: resume_and_submit(name, ResumeRequest(**said), store, settings)),
        delete=_refusing(store.delete_study),
        fields=tuple(form_field(name) for name in (*_COMMON, *(one for one in SUBMITTABLE if one not in _COMMON))),
    )


def form_field(name: str) -> FormField:
    """The field of a form for a setting of a study."""
    info = StudyRequest.model_fields[name]
    kinds = [one for one in _alternatives(info.annotation) if one is not type(None)]
    is_choice = all(get_origin(one) is Literal for one in kinds)
    choices = tuple(str(value) for one in kinds for value in get_args(one)) if is_choice else ()
    kind: Any = "choice" if choices else "text"
    if not choices and kinds == [bool]:
        kind = "switch"
    elif not choices and kinds == [int]:
        kind = "integer"
    elif not choices and kinds == [float]:
        kind = "number"
    bounds = _bounds(info)
    return FormField(
        name=name,
        kind=kind,
        about=RunConfig.description(name),
        default=_default(info),
        choices=choices,
        least=bounds.get("least"),
        most=bounds.get("most"),
        longest=None if "longest" not in bounds else int(bounds["longest"]),
        is_common=name in _COMMON,
    )


def _refusing(act: Callable[..., None]) -> Callable[..., None]:
    """The same, but what is wrong is said as pages say it."""

    def refusing(*args: Any) -> None:
        try:
            act(*args)
        except ValidationError as error:
            first = error.errors()[0]
            field = str(first["loc"][0]) if first["loc"] else None
            # The API's places begin with the body, in which the field stands.
            raise RefusedError(complaint({**first, "loc": ("body", *first["loc"])}), field) from error
        except StudyNotFoundError as error:
            raise RefusedError("There is no such study: it may have been deleted.") from error
        except StudyExistsError as error:
            raise RefusedError("A study of this name exists: choose another name.", "name") from error
        except (StudyBusyError, NotSubmittedError) as error:
            raise RefusedError(str(error)) from error
        except StudiesError as error:
            # Its text names the database.
            raise RefusedError("The database does not answer as it should: try again later.") from error
        except (SearchError, CoreError) as error:
            text = in_fields(str(error))
            named = text.split(" ", 1)[0].rstrip(":")
            raise RefusedError(text, named if named in StudyRequest.model_fields else None) from error

    return refusing


def _alternatives(annotation: Any) -> tuple[Any, ...]:
    return get_args(annotation) if get_origin(annotation) in (Union, types.UnionType) else (annotation,)


def _is_list(name: str) -> bool:
    return name in StudyRequest.model_fields and any(
        get_origin(one) in _LISTS for one in _alternatives(StudyRequest.model_fields[name].annotation)
    )


def _listed(value: Any) -> Any:
    """A list that was typed: parts between commas."""
    return [part.strip() for part in value.split(",") if part.strip()] if isinstance(value, str) else value


def _bounds(info: FieldInfo) -> dict[str, float]:
    found: dict[str, float] = {}
    for one in info.metadata:
        if isinstance(one, (Ge, Gt)):
            found["least"] = float(getattr(one, "ge", getattr(one, "gt", 0)))
        elif isinstance(one, (Le, Lt)):
            found["most"] = float(getattr(one, "le", getattr(one, "lt", 0)))
        elif isinstance(one, MaxLen):
            found["longest"] = one.max_length
    return found


def _default(info: FieldInfo) -> str:
    value = info.get_default(call_default_factory=False)
    if value is None or info.default_factory is not None:
        return ""
    if isinstance(value, bool):
        return "on" if value else ""
    return ", ".join(map(str, value)) if isinstance(value, (tuple, list)) else str(value)
