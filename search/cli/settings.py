"""Options of commands for the fields of `RunConfig`, with the names, defaults and help of the class."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperCommand

from search.config.file import anchored
from search.config.run_config import SETTINGS
from search.config.setting import Setting, option

# Paths that begin at the working directory; a model's may be an id.
_ANCHORED = tuple(field for field, setting in SETTINGS.items() if setting.about.is_path and field != "model")
_ARGUMENTS, _OPTIONS = "Arguments", "Options"


class GroupedCommand(TyperCommand):
    """A command whose help lists options below their headings (`rich_help_panel`); the others below "Options"."""

    def format_options(self, ctx: Any, formatter: Any) -> None:
        """Writes the parameters; headings in the order of their first options."""
        sections: dict[str, list[tuple[str, str]]] = {_ARGUMENTS: [], _OPTIONS: []}
        for parameter in self.get_params(ctx):
            record = parameter.get_help_record(ctx)
            if record is None:
                continue
            is_argument = parameter.param_type_name == "argument"
            heading = _ARGUMENTS if is_argument else getattr(parameter, "rich_help_panel", None) or _OPTIONS
            sections.setdefault(heading, []).append(record)
        for heading, records in sections.items():
            if records:
                with formatter.section(heading):
                    formatter.write_dl(records)


def with_settings(
    command: Callable[..., None], fields: Iterable[str], show_default: str | None = None
) -> Callable[..., None]:
    """A command with fields of `RunConfig` as options in place of its parameter `settings`, the given ones of them.

    `show_default` is shown as every default; None for the defaults of a new study.
    """

    def with_options(context: typer.Context, **given: Any) -> None:
        values = {field: given.pop(field) for field in fields}
        command(settings=_parsed({field: values[field] for field in fields if is_given(context, field)}), **given)

    parameters = [inspect.Parameter("context", inspect.Parameter.KEYWORD_ONLY, annotation=typer.Context)]
    for parameter in inspect.signature(command, eval_str=True).parameters.values():
        if parameter.name == "settings":
            parameters += _options(fields, show_default)
        else:
            parameters.append(parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY))
    # Typer reads the signature.
    with_options.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    with_options.__doc__ = command.__doc__
    return with_options


def is_given(context: typer.Context, parameter: str) -> bool:
    """Tells whether a parameter of a command has another value than its default."""
    source = context.get_parameter_source(parameter)
    return source is not None and source.name != "DEFAULT"


def _options(fields: Iterable[str], show_default: str | None) -> Iterator[inspect.Parameter]:
    for field in fields:
        setting = SETTINGS[field]
        is_switch, is_new = setting.type is bool, show_default is None
        declared = typer.Option(
            f"{option(field)}/--no-{option(field)[2:]}" if is_switch else option(field),
            metavar=setting.metavar,
            help=_help(field, is_new),
            rich_help_panel=setting.group,
            show_default=not is_switch if show_default is None else show_default,
        )
        yield inspect.Parameter(
            field,
            inspect.Parameter.KEYWORD_ONLY,
            default=_default(setting) if is_new else None,
            annotation=Annotated[(list[str] if setting.about.is_sources else setting.type) | None, declared],
        )


def _default(setting: Setting) -> Any:
    # What may be given several times is a list for Typer.
    return ([setting.default] if setting.default else []) if setting.about.is_sources else setting.default


def _help(field: str, is_new: bool) -> str:
    """Help of an option: the field's description and range; `is_new` if missing fields have their defaults."""
    setting = SETTINGS[field]
    rest, _, last = setting.description.rpartition(";")
    # The default of a new study says nothing of one that has begun.
    text = f"{rest}." if "if not given" in last and not is_new else setting.description
    return f"{text}  [{setting.range}]" if setting.range else text


def _parsed(values: Mapping[str, Any]) -> dict[str, Any]:
    """Values of fields; paths become absolute, since a study may be resumed from another directory."""
    fields = {field: SETTINGS[field].parsed(value) for field, value in values.items()}
    return anchored(fields, _ANCHORED, Path.cwd(), option)
