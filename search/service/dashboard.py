"""Adds the dashboard to the service, with the actions of its editors."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from secrets import token_hex
from typing import Any, Literal, TypeVar

from fastapi import FastAPI
from pydantic import ValidationError

from dashboards.app import Actions, FormField, RefusedError
from dashboards.app import mount as mount_pages
from ftp_core.errors import CoreError, DataError
from search.comparison.methods import method_names
from search.comparison.plan import listed
from search.config.run_config import HEADINGS, SETTINGS, SUBMITTABLE
from search.errors import SearchError
from search.service.http.app import MountDashboard
from search.service.jobs.prompt_process import PromptProcess
from search.service.jobs.submitting import (
    check_new,
    compare_and_submit,
    create_and_submit,
    measure_and_submit,
    resume_and_submit,
)
from search.service.rules.offers import offered
from search.service.rules.problems import complaint, in_fields, told
from search.service.rules.requests import (
    ComparisonRequest,
    LabelsRequest,
    PromptRequest,
    ResumeRequest,
    StudyRequest,
)
from search.service.rules.settings import ServiceSettings
from search.stages.origin import exported_schedule
from studies import StudiesError, StudyBusyError, StudyExistsError, StudyNotFoundError
from studies.service.service_store import ServiceStore
from studies.service.submissions import NotSubmittedError

_T = TypeVar("_T")

_KINDS: dict[Any, Literal["integer", "number", "switch", "text"]] = {
    bool: "switch",
    int: "integer",
    float: "number",
    str: "text",
}

# Units by the placeholder of the command line.
_UNITS = {"S": "s", "MS": "ms"}


def dashboard(settings: ServiceSettings) -> MountDashboard:
    """The function that adds the dashboard, for `create_app`."""

    def mount(
        app: FastAPI, store: ServiceStore, is_editor: Callable[[], bool], prompts: PromptProcess
    ) -> Mapping[str, Any]:
        return mount_pages(app, store, is_editor, actions(store, settings, prompts))

    return mount


def actions(store: ServiceStore, settings: ServiceSettings, prompts: PromptProcess) -> Actions:
    """Actions of editors on the pages: those of the API, checked in the same way."""

    def request(name: str, said: Mapping[str, Any]) -> StudyRequest:
        settings = {field: SETTINGS[field].parsed(value) for field, value in said.items() if field in SETTINGS}
        others = _labels({field: value for field, value in said.items() if field not in SETTINGS})
        return StudyRequest(name=name, **settings, **others)

    def check(name: str | None, said: Mapping[str, Any]) -> None:
        # A name that nobody has given stands for one that is missing.
        check_new(request(name or f"unnamed {token_hex(8)}", said), store, settings)

    def label(name: str, said: Mapping[str, str]) -> None:
        store.studies.label(name, **LabelsRequest(**_labels(said)).given())

    def filled(name: str) -> dict[str, Any]:
        config = store.studies.get(name).config
        # Each study has a folder of results of its own.
        others = [setting for field, setting in SETTINGS.items() if field in {*SUBMITTABLE} & config.keys() - {"out"}]
        given = {one.name: one.written(config[one.name]) for one in others}
        changed = {field: value for field, value in given.items() if value != SETTINGS[field].written_default}
        tags = store.studies.get(name).labels.tags
        return changed | ({"tags": ", ".join(tags)} if tags else {})

    def prompt(name: str, trial: int, text: str, new_tokens: int) -> dict[str, Any]:
        asked = PromptRequest(text=text, new_tokens=new_tokens)
        return prompts.answer(name, trial, asked.text, asked.new_tokens)

    def compare(name: str, methods: Sequence[str], said: Mapping[str, str]) -> None:
        typed = {field: listed(text) if field in ("budgets", "shapes") else text for field, text in said.items()}
        asked = {"methods": methods, **{field: value for field, value in typed.items() if value or field == "match"}}
        compare_and_submit(name, ComparisonRequest.model_validate(asked), store)

    return Actions(
        check=_refusing(check),
        create=_refusing(lambda name, said: create_and_submit(request(name, said), store, settings)),
        stop=_refusing(store.queue.request_stop),
        resume=_refusing(lambda name, said: resume_and_submit(name, ResumeRequest(**said), store, settings)),
        delete=_refusing(store.delete_study),
        label=_refusing(label),
        measure=_refusing(lambda name, trial: measure_and_submit(name, trial, False, store, settings)),
        select=_refusing(lambda name, trial: measure_and_submit(name, trial, True, store, settings)),
        export=_refusing(lambda name, trial: exported_schedule(store, name, trial)),
        prompt=_refusing(prompt),
        compare=_refusing(compare),
        methods=method_names(),
        fields=tuple(map(form_field, SUBMITTABLE)),
        filled=_refusing(filled),
        groups=HEADINGS,
        offered=lambda: offered(settings.roots),
    )


def _labels(said: Mapping[str, Any]) -> dict[str, Any]:
    """Labels as requests give them, from text as people type it."""
    if "tags" not in said:
        return dict(said)
    return {**said, "tags": [part.strip() for part in said["tags"].split(",") if part.strip()]}


def form_field(name: str) -> FormField:
    """Form field for a setting of a study."""
    setting = SETTINGS[name]
    default = {None: "", False: "", True: "on"} if setting.type is bool else {None: ""}
    return FormField(
        name=name,
        kind="choice" if setting.choices else _KINDS[setting.type],
        about=setting.description,
        default=default.get(setting.default, str(setting.default)),
        choices=setting.choices,
        longest=setting.about.longest,
        is_common=setting.about.is_common,
        group=setting.group,
        unit=_UNITS.get(setting.about.metavar or "", ""),
    )


def _refusing(act: Callable[..., _T]) -> Callable[..., _T]:
    """The action with its errors as `RefusedError`, in the words of the form."""

    def refusing(*args: Any) -> _T:
        try:
            return act(*args)
        except ValidationError as error:
            first = told(error.errors())[0]
            field = str(first["loc"][0]) if first["loc"] else None
            # As in errors of the API, locations begin with the body.
            raise RefusedError(complaint({**first, "loc": ("body", *first["loc"])}), field) from error
        except StudyNotFoundError as error:
            raise RefusedError("There is no such study: it may have been deleted.") from error
        except StudyExistsError as error:
            raise RefusedError("A study of this name exists: choose another name.", "name") from error
        except (StudyBusyError, NotSubmittedError) as error:
            raise RefusedError(str(error)) from error
        except DataError as error:
            # Nothing but the contents of data.
            raise RefusedError(in_fields(str(error)), "data") from error
        except StudiesError as error:
            # Its text names the database.
            raise RefusedError("The database does not answer as it should: try again later.") from error
        except (SearchError, CoreError) as error:
            text = in_fields(str(error))
            named = text.split(" ", 1)[0].rstrip(":")
            raise RefusedError(text, named if named in StudyRequest.model_fields else None) from error

    return refusing
