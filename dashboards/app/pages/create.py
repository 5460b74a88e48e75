"""The page that creates a study: a form that checks all fields after each input, and keeps what was typed."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any
from unicodedata import normalize

from dash import ALL, ClientsideFunction, Dash, Input, Output, State, ctx, dcc, html, no_update

from dashboards.app.actions import Actions, FormField, RefusedError
from dashboards.app.addresses import NAMESPACE, NOTHING_ASKED, Asked
from dashboards.app.pages.manage import NOT_AN_EDITOR, study_key
from dashboards.app.parts import nothing, study_address
from studies import StudiesError

_ON = "on"
_NAMELESS = "name is missing: give the study one."
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
            FormField("tags", "text", "Short texts to find it by, separated by commas.", is_common=True, longest=1000),
            FormField("note", "text", "Note on the study.", is_common=True, longest=2000),
        )

    def layout(self, _: str, asked: Asked = NOTHING_ASKED) -> Any:
        """The page; filled in with the settings of the study that an address names as `like`."""
        if not self._is_editor():
            return nothing("New study", NOT_AN_EDITOR)
        like, said = (asked.get("like") or [""])[-1], ""
        filled: Mapping[str, Any] = {}
        try:
            # No database takes text with zero bytes.
            filled = self._actions.filled(like.replace("\0", "")) if like else {}
        except RefusedError as error:
            like, said = "", str(error)
        offered = self._actions.offered()
        labelled = {
            one.name: _labelled(one, offered.get(one.name, ()), filled.get(one.name), like) for one in self._fields
        }
        common = [labelled[one.name] for one in self._fields if one.is_common]
        groups = dict.fromkeys(one.group for one in self._fields if not one.is_common)
        others: list[Any] = []
        for group in groups:
            own = [labelled[one.name] for one in self._fields if not one.is_common and one.group == group]
            about = self._actions.groups.get(group, "")
            others += [html.H2(group), html.P(about, className="soft"), html.Div(own, className="fields")]
        return html.Div(
            [
                html.H1("New study"),
                html.P(
                    [
                        f"Settings are those of {like}. " if like else "",
                        "Empty fields have their defaults. What is typed stays until the form is emptied.",
                    ],
                    className="soft",
                ),
                html.Div(common, className="fields"),
                html.Details([html.Summary("More settings"), *others], open=bool(like)),
                html.Div(said, id="new-said", role="alert", className="said"),
                html.Div(
                    [
                        html.Button("Create and submit", id="create", className="button", type="button"),
                        html.Button("Empty the form", id="empty", className="quiet", type="button"),
                    ],
                    className="acts",
                ),
                dcc.Location(id="new-url", refresh="callback-nav"),
                dcc.Store(id="new-described"),
            ],
            className="form",
        )

    def register(self, dash: Dash) -> None:
        """Adds the callbacks."""
        values = {"type": "field", "name": ALL}
        # One callback, so that what it says as a field is left does not come after what creating says.
        dash.callback(
            Output("new-said", "children"),
            Output({"type": "field-said", "name": ALL}, "children"),
            Output("new-url", "href"),
            Input(values, "value"),
            Input("create", "n_clicks"),
            Input(values, "n_submit"),
            State(values, "id"),
            State({"type": "field-said", "name": ALL}, "id"),
            prevent_initial_call=True,
        )(self._changed)
        dash.callback(
            Output(values, "value"), Input("empty", "n_clicks"), State(values, "id"), prevent_initial_call=True
        )(self._emptied)
        # Dash's inputs take no ARIA attributes.
        dash.clientside_callback(
            ClientsideFunction(NAMESPACE, "described"),
            Output("new-described", "data"),
            Input({"type": "field-said", "name": ALL}, "children"),
            State({"type": "field-said", "name": ALL}, "id"),
        )

    def settings(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """The settings of a form, without empty fields; raises `RefusedError` for text that is not a number."""
        settings, errors = self._read(values)
        for error in errors:
            raise error
        return settings

    def mistakes(self, values: Mapping[str, Any], is_whole: bool = False) -> dict[str, str]:
        """All mistakes in a form by field, as far as they can be found at once; those of no field under "".

        Args:
            values: Values by field.
            is_whole: Takes a missing name for a mistake, too, as it is once the form is submitted.
        """
        if not self._is_editor():
            # What lies on the service's disk is for editors alone.
            return {"": NOT_AN_EDITOR}
        settings, errors = self._read(values)
        found = {error.field or "": str(error) for error in errors}
        name = str(settings.pop("name", "")) or None
        if is_whole and name is None:
            found["name"] = _NAMELESS
        while True:
            try:
                self._actions.check(name, settings)
                return found
            except RefusedError as error:
                found.setdefault(error.field or "", str(error))
                if error.field == "name" and name is not None:
                    name = None
                elif error.field in settings:
                    # Without that one, what else is wrong?
                    del settings[error.field]
                else:
                    return found

    def _read(self, values: Mapping[str, Any]) -> tuple[dict[str, Any], list[RefusedError]]:
        """The settings of a form, and the errors of fields that cannot be read."""
        said: dict[str, Any] = {}
        errors: list[RefusedError] = []
        for one in self._fields:
            value = values.get(one.name)
            if one.kind == "switch":
                if bool(value) != (one.default == _ON):
                    said[one.name] = bool(value)
            elif isinstance(value, str) and value.strip() and one.kind in ("integer", "number"):
                try:
                    said[one.name] = _number(one, value.strip())
                except RefusedError as error:
                    errors.append(error)
            elif value is not None and str(value).strip():
                said[one.name] = value if one.kind != "text" else str(value).strip()
        return said, errors

    def create(self, values: Mapping[str, Any]) -> RefusedError | str:
        """Creates the study of a form; returns its name, or the error."""
        if not self._is_editor():
            return RefusedError(NOT_AN_EDITOR)
        try:
            settings = self.settings(values)
            # As the service keeps it, for the address.
            name = normalize("NFC", str(settings.pop("name", "")))
            if not name:
                return RefusedError(_NAMELESS, "name")
            self._actions.create(name, settings)
        except RefusedError as error:
            return error
        except StudiesError as error:
            return RefusedError(str(error))
        return name

    def _changed(
        self,
        values: Sequence[Any],
        n_clicks: int | None,
        n_submits: Sequence[int | None],
        fields: Sequence[_Id],
        places: Sequence[_Id],
    ) -> tuple[Any, list[Any], Any]:
        by_name = _by_name(values, fields)
        was_submitted = any(one.endswith((".n_clicks", ".n_submit")) for one in ctx.triggered_prop_ids)
        mistakes = self.mistakes(by_name, is_whole=bool(n_clicks) or any(n_submits))
        said: Any = no_update
        if was_submitted and not mistakes:
            outcome = self.create(by_name)
            if isinstance(outcome, str):
                return "", [""] * len(places), study_address(outcome)
            mistakes = {outcome.field or "": str(outcome)}
        if was_submitted or not mistakes:
            said = html.Ul([html.Li(one) for one in mistakes.values()]) if mistakes else ""
        return said, [mistakes.get(place["name"], "") for place in places], no_update

    def _emptied(self, n_clicks: int | None, fields: Sequence[_Id]) -> list[Any]:
        known = {one.name: _first(one) for one in self._fields}
        return [known.get(field["name"]) if n_clicks else no_update for field in fields]


def _by_name(values: Sequence[Any], fields: Sequence[_Id]) -> dict[str, Any]:
    return {field["name"]: value for field, value in zip(fields, values, strict=True)}


def _number(field: FormField, text: str) -> float | int:
    try:
        return int(text) if field.kind == "integer" else float(text)
    except ValueError:
        expected = "a whole number" if field.kind == "integer" else "a number"
        raise RefusedError(f"{field.name} is {text!r}: expected {expected}.", field.name) from None


def _first(field: FormField) -> Any:
    """The value of a field that nobody has touched."""
    if field.kind == "switch":
        return [_ON] * (field.default == _ON)
    return (field.default or None) if field.kind == "choice" else ""


def _labelled(field: FormField, offered: Sequence[str], filled: Any, like: str) -> html.Div | html.Fieldset:
    """A field, with values that may be chosen, and its value if it is as in another study."""
    place = {"type": "field", "name": field.name}
    words = field.name.replace("_", " ")
    # A placeholder is gone once something is typed.
    default = f" Default: {field.default}{f' {field.unit}' if field.unit else ''}." if field.default else ""
    about = html.Small(f"{field.about}{default if field.kind != 'switch' else ''}", id=f"about-{field.name}")
    # What was typed into the empty form is not that into another study's.
    kept: Any = {"persistence": study_key(like) if like else True, "persistence_type": "session"}
    first: Any = _first(field) if filled is None else [_ON] * filled if field.kind == "switch" else filled
    said = html.Div(id={"type": "field-said", "name": field.name}, className="error", role="status")
    if field.kind == "switch":
        control: Any = dcc.Checklist([{"label": words, "value": _ON}], first, id=place, **kept)
        return html.Div([control, about, said], className="field")
    if field.kind == "choice":
        control = dcc.RadioItems(list(field.choices), first, id=place, className="choices", **kept)
        return html.Fieldset([html.Legend(words), control, about, said], className="field")
    numeric = field.kind in ("integer", "number")
    control = dcc.Input(
        first,
        id=place,
        # A number input would drop other text silently.
        type="text",
        inputMode="numeric" if numeric else "verbatim",
        placeholder=field.default,
        maxLength=field.longest or (30 if numeric else 4096),
        debounce=True,
        autoComplete="off",
        spellCheck=False,
        **kept,
    )
    options = []
    if offered:
        control.list = f"offered-{field.name}"
        options.append(html.Datalist([html.Option(value=one) for one in offered], id=control.list))
    # Some names end in the unit.
    words = f"{words} [{field.unit}]" if field.unit and words.split()[-1] != field.unit else words
    return html.Div(
        [html.Label([html.Span(words, className="name-of"), control]), *options, about, said],
        className="field",
    )
