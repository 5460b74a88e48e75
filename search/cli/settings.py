"""Options for the fields of `RunConfig`: names, defaults and help are those of the class."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from types import NoneType
from typing import Annotated, Any, Literal, get_args, get_origin

import typer

from search.cli.arguments import share_list, whole_numbers
from search.config.file import SETTINGS, anchored, section_of
from search.config.run_config import RunConfig, option

_METAVARS = {
    "seconds": "S",
    "sampler": "NAMES",
    "fidelities": "X,X,...",
    "warm_start": "STUDY",
    "keep_first": "N|system",
    "seed": "S",
    "max_latency_ms": "MS",
    **dict.fromkeys(("dense_blocks", "latency_length", "new_tokens"), "N,N,..."),
    "ray_address": "HOST:PORT",
    "trial_timeout": "S",
    "out": "DIR",
}
_METAVARS_OF_TYPES = {int: "N", float: "X", str: "TEXT"}
# Fields of several values are one text on the command line.
_LISTS: Mapping[str, Callable[[str], tuple[Any, ...]]] = {
    "dense_blocks": partial(whole_numbers, called="--dense-blocks", example="0,1,-1"),
    "latency_length": partial(whole_numbers, called="--latency-length", example="512,2048"),
    "new_tokens": partial(whole_numbers, called="--new-tokens", example="16,64"),
    "fidelities": share_list,
}


def with_settings(
    command: Callable[..., None], fields: Sequence[str] = SETTINGS, show_default: str | None = None
) -> Callable[..., None]:
    """A command that takes fields of `RunConfig` as options.

    Args:
        command: Its parameter `settings` becomes these options, and is handed those that were really given.
        fields: Names of the fields.
        show_default: What to call their defaults; None for the defaults of a new study.
    """

    def with_options(context: typer.Context, **given: Any) -> None:
        values = {field: given.pop(field) for field in fields}
        source = {field: context.get_parameter_source(field) for field in fields}
        command(settings=_parsed({field: values[field] for field in fields if _was_given(source[field])}), **given)

    parameters = [inspect.Parameter("context", inspect.Parameter.KEYWORD_ONLY, annotation=typer.Context)]
    for parameter in inspect.signature(command, eval_str=True).parameters.values():
        if parameter.name == "settings":
            parameters += _options(fields, show_default)
        else:
            parameters.append(parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY))
    # Typer reads what to parse from here.
    with_options.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    with_options.__doc__ = command.__doc__
    return with_options


def _was_given(source: Any) -> bool:
    return source is not None and source.name != "DEFAULT"


def _options(fields: Sequence[str], show_default: str | None) -> Iterator[inspect.Parameter]:
    for field in fields:
        info = RunConfig.model_fields[field]
        kind: Any = next((one for one in get_args(info.annotation) if one is not NoneType), info.annotation)
        metavar = _METAVARS.get(field)
        if get_origin(info.annotation) is Literal:
            kind, metavar = str, "|".join(get_args(info.annotation))
        elif field in _LISTS or any(get_origin(one) is Literal for one in get_args(info.annotation)):
            kind = str
        flags = f"{option(field)}/--no-{option(field)[2:]}" if kind is bool else option(field)
        declared = typer.Option(
            flags,
            metavar=metavar or _METAVARS_OF_TYPES.get(kind),
            help=setting_help(field, is_new=show_default is None),
            rich_help_panel=section_of(field),
            show_default=kind is not bool if show_default is None else show_default,
        )
        default = info.default if show_default is None and info.default_factory is None else None
        if isinstance(default, tuple):
            default = ",".join(f"{one:g}" for one in default)
        yield inspect.Parameter(
            field, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=Annotated[kind | None, declared]
        )


def setting_help(field: str, is_new: bool = False) -> str:
    """The help of an option for a field: its meaning, and its range.

    Args:
        field: Name of the field.
        is_new: Whether the option is of a new study, so that the field has its default where nothing is given.
    """
    text, values = RunConfig.description(field), RunConfig.value_range(field)
    rest, _, last = text.rpartition(";")
    # What a new study has where nothing is given is not what a study has that was begun otherwise.
    text = f"{rest}." if "if not given" in last and not is_new else text
    return f"{text}  [{values}]" if values else text


def _parsed(values: Mapping[str, Any]) -> dict[str, Any]:
    """Options as fields: lists read, and paths absolute, since a study may be resumed from another directory."""
    fields = {field: _LISTS[field](value) if field in _LISTS else value for field, value in values.items()}
    return anchored(fields, ("data", "out"), Path.cwd(), option)
