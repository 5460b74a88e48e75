"""The page that creates a study: a form that checks each field after input."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any
from unicodedata import normalize

from dash import ALL, ClientsideFunction, Dash, Input, Output, State, dcc, html, no_update

from dashboards.app.actions import Actions, FormField, RefusedError
from dashboards.app.addresses import NAMESPACE, NOTHING_ASKED, Asked
from dashboards.app.pages.manage import NOT_AN_EDITOR
from dashboards.app.parts import nothing, study_address
from studies import StudiesError

_ON = "on"
# Id of a field, or of the place beside it.
_Id = Mapping[str, str]


class NewPage:
    """The form."""

    def __init__(self, actions: Actions, is_editor: Callable[[], bool]) -> None:
        self._actions = actions
        self._is_editor = is_editor
        self._fields = (
            FormField("name", "text", "Unique in this service.", is_common=True, longest=200),
            *actions.fields,
        )

    def layout(self, _: str, __: Asked = NOTHING_ASKED) -> Any:
        """The page."""
        if not self._is_editor():
            return nothing("New study", NOT_AN_EDITOR)
        common = [_labelled(one) for one in self._fields if one.is_common]
        others = [_labelled(one) for one in self._fields if not one.is_common]
        return html.Div(
            [
                html.H1("New study"),
                html.P("Empty fields have their defaults, which are shown in grey.", className="soft"),
                html.Div(common, className="fields"),
                html.Details([html.Summary("More settings"), html.Div(others, className="fields")]),
                html.Div(id="new-said", role="alert", className="said"),
                html.Button("Create and submit", id="create", className="button", type="button"),
                dcc.Location(id="new-url", refresh="callback-nav"),
                dcc.Store(id="new-described"),
            ],
            className="form",
        )

    def register(self, dash: Dash) -> None:
        """Adds the callbacks."""
        values = {"type": "field", "name": ALL}
        said = Output({"type": "field-said", "name": ALL}, "children")
        dash.callback(
            said,
            Input(values, "value"),
            State(values, "id"),
            State({"type": "field-said", "name": ALL}, "id"),
            prevent_initial_call=True,
        )(self._checked)
        dash.callback(
            Output("new-said", "children"),
            Output({"type": "field-said", "name": ALL}, "children", allow_duplicate=True),
            Output("new-url", "href"),
            Input("create", "n_clicks"),
            State(values, "value"),
            State(values, "id"),
            State({"type": "field-said", "name": ALL}, "id"),
            prevent_initial_call=True,
        )(self._create)
        # Dash's inputs take no ARIA attributes.
        dash.clientside_callback(
            ClientsideFunction(NAMESPACE, "described"),
            Output("new-described", "data"),
            Input({"type": "field-said", "name": ALL}, "children"),
            State({"type": "field-said", "name": ALL}, "id"),
        )

    def settings(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """The settings of a form, without empty fields; raises `RefusedError` for text that is not a number."""
        said: dict[str, Any] = {}
        for one in self._fields:
            value = values.get(one.name)
            if one.kind == "switch":
                if bool(value) != (one.default == _ON):
                    said[one.name] = bool(value)
            elif isinstance(value, str) and value.strip() and one.kind in ("integer", "number"):
                said[one.name] = _number(one, value.strip())
            elif value is not None and str(value).strip():
                said[one.name] = value if one.kind != "text" else str(value).strip()
        return said

    def check(self, values: Mapping[str, Any]) -> RefusedError | None:
        """The first mistake in a form, as far as it can be checked at once; None if there is none."""
        try:
            settings = self.settings(values)
            # A missing name is no mistake until the form is submitted.
            self._actions.check(str(settings.pop("name", "")) or "a-name", settings)
        except RefusedError as error:
            return error
        return None

    def create(self, values: Mapping[str, Any]) -> RefusedError | str:
        """Creates the study of a form; returns its name, or the error."""
        if not self._is_editor():
            return RefusedError(NOT_AN_EDITOR)
        try:
            settings = self.settings(values)
            # As the service keeps it, for the address.
            name = normalize("NFC", str(settings.pop("name", "")))
            if not name:
                return RefusedError("name is missing: give the study one.", "name")
            self._actions.create(name, settings)
        except RefusedError as error:
            return error
        except StudiesError as error:
            return RefusedError(str(error))
        return name

    def _checked(self, values: Sequence[Any], fields: Sequence[_Id], places: Sequence[_Id]) -> list[str]:
        error = self.check(_by_name(values, fields))
        return [str(error) if error is not None and place["name"] == error.field else "" for place in places]

    def _create(
        self, n_clicks: int | None, values: Sequence[Any], fields: Sequence[_Id], places: Sequence[_Id]
    ) -> tuple[Any, list[Any], Any]:
        if not n_clicks:
            return no_update, [no_update] * len(places), no_update
        outcome = self.create(_by_name(values, fields))
        if isinstance(outcome, str):
            return "", [""] * len(places), study_address(outcome)
        beside = [str(outcome) if place["name"] == outcome.field else "" for place in places]
        return str(outcome), beside, no_update


def _by_name(values: Sequence[Any], fields: Sequence[_Id]) -> dict[str, Any]:
    return {field["name"]: value for field, value in zip(fields, values, strict=True)}


def _number(field: FormField, text: str) -> float | int:
    try:
        return int(text) if field.kind == "integer" else float(text)
    except ValueError:
        expected = "a whole number" if field.kind == "integer" else "a number"
        raise RefusedError(f"{field.name} is {text!r}: expected {expected}.", field.name) from None


def _labelled(field: FormField) -> html.Div | html.Fieldset:
    place = {"type": "field", "name": field.name}
    words = field.name.replace("_", " ")
    about = html.Small(field.about, id=f"about-{field.name}")
    said = html.Div(id={"type": "field-said", "name": field.name}, className="error", role="status")
    if field.kind == "switch":
        control: Any = dcc.Checklist([{"label": words, "value": _ON}], [_ON] * (field.default == _ON), id=place)
        return html.Div([control, about, said], className="field")
    if field.kind == "choice":
        control = dcc.RadioItems(list(field.choices), field.default or None, id=place, className="choices")
        return html.Fieldset([html.Legend(words), control, about, said], className="field")
    numeric = field.kind in ("integer", "number")
    control = dcc.Input(
        id=place,
        # A number input would drop other text silently.
        type="text",
        inputMode="numeric" if numeric else "verbatim",
        placeholder=field.default,
        maxLength=field.longest or (30 if numeric else 4096),
        debounce=True,
        autoComplete="off",
        spellCheck=False,
    )
    return html.Div([html.Label([html.Span(words, className="name-of"), control]), about, said], className="field")
