"""One description of each field of a configuration: command line, files, HTTP and forms are made of it."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin

from annotated_types import Ge, Gt, Le, Lt
from pydantic.fields import FieldInfo

from search.errors import ConfigError

_METAVARS = {int: "N", float: "X", str: "TEXT"}
_WORDS = {int: "whole numbers", float: "numbers"}


@dataclass(frozen=True)
class About:
    """Properties of a field beside its type, bounds, default and docstring, given in its annotation.

    Attributes:
        metavar: Placeholder of its value in the command line's help; None for the usual one of its type.
        example: Several values, separated by commas, as the command line takes them.
        most: Largest number that a request may give.
        longest: Most characters, or items, that a request may give.
        is_path: Whether it names a file or a folder.
        is_sources: Whether it names sources of examples, of which there may be several.
        is_common: Whether a form shows it at once.
        can_change: Whether a study that has begun may go on with another value.
        in_requests: Whether a request may give it.
        of_trials: Whether it names trials, of which a new study has none.
    """

    metavar: str | None = None
    example: str = ""
    most: float | None = None
    longest: int | None = None
    is_path: bool = False
    is_sources: bool = False
    is_common: bool = False
    can_change: bool = False
    in_requests: bool = True
    of_trials: bool = False


def option(field: str) -> str:
    """The command line's name of a field."""
    return "--" + field.replace("_", "-")


@dataclass(frozen=True)
class Setting:
    """A field of a configuration, described.

    Attributes:
        name: Name of the field.
        group: Heading that the field stands below.
        info: Type, bounds, default and docstring.
    """

    name: str
    group: str
    info: FieldInfo

    @cached_property
    def about(self) -> About:
        """Properties beside type and bounds."""
        return next((one for one in self.info.metadata if isinstance(one, About)), About())

    @property
    def description(self) -> str:
        """The meaning of the field, as one line."""
        return " ".join((self.info.description or "").split())

    @cached_property
    def types(self) -> tuple[Any, ...]:
        """The types that a value may have; None, which stands for no value, is left out."""
        annotation: Any = self.info.annotation
        alternatives = get_args(annotation) if get_origin(annotation) in (Union, UnionType) else (annotation,)
        return tuple(one for one in alternatives if one is not NoneType)

    @property
    def type(self) -> Any:
        """The type that one text or number is read as: bool, int, float, or str for everything else."""
        return self.types[0] if self.types in ((bool,), (int,), (float,)) else str

    @property
    def choices(self) -> tuple[str, ...]:
        """The values to choose from; empty where others are allowed."""
        literals = [get_args(one) for one in self.types if get_origin(one) is Literal]
        return tuple(map(str, sum(literals, ()))) if len(literals) == len(self.types) else ()

    @property
    def item(self) -> Any:
        """The type of the items of a list; None where the field is no list."""
        if get_origin(self.types[0]) is not tuple:
            return None
        item = get_args(self.types[0])[0]
        return getattr(item, "__origin__", item)

    @property
    def metavar(self) -> str | None:
        """The placeholder of the value in the command line's help."""
        if self.about.metavar is not None:
            return self.about.metavar
        if self.item is not None:
            return f"{_METAVARS[self.item]},{_METAVARS[self.item]},..."
        words = (_METAVARS.get(one) or "|".join(map(str, get_args(one))) for one in self.types)
        return "|".join(words) or None

    @property
    def range(self) -> str:
        """The range of a number, such as `x>=1` or `0<x<=1`; empty where it has none."""
        low = high = above = ""
        for constraint in self.info.metadata:
            match constraint:
                case Ge(ge=limit):
                    low, above = f"{limit:g}<=", f">={limit:g}"
                case Gt(gt=limit):
                    low, above = f"{limit:g}<", f">{limit:g}"
                case Le(le=limit):
                    high = f"<={limit:g}"
                case Lt(lt=limit):
                    high = f"<{limit}"
        return f"{low}x{high}" if high else f"x{above}" if above else ""

    @property
    def default(self) -> Any:
        """The default; None where it depends on the machine, too. A list is text with commas."""
        value = self.info.default if self.info.default_factory is None else None
        return ",".join(f"{one:g}" for one in value) if isinstance(value, tuple) else value

    @property
    def written_default(self) -> Any:
        """The default as a person types it; None where it depends on the machine, too."""
        return None if self.info.default_factory else self.written(self.info.default)

    def written(self, value: Any) -> Any:
        """The inverse of `parsed`: a value as a person types it, or as it is if it is true or false."""
        if isinstance(value, (list, tuple)):
            return ", ".join(map(str, value))
        return value if isinstance(value, bool) else "" if value is None else str(value)

    def parsed(self, text: Any) -> Any:
        """A value as a person types it: for a list, text with commas becomes its items; anything else stays as it is.

        Raises:
            ConfigError: An item is no number.
        """
        if self.item is None or not isinstance(text, str):
            return text
        try:
            return tuple(self.item(part) for part in text.split(",") if part.strip())
        except ValueError:
            raise ConfigError(
                f"{option(self.name)} is {text!r}: expected {_WORDS[self.item]} with commas, such as "
                f"{self.about.example}."
            ) from None
