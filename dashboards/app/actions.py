"""Actions of pages that change something: handed in by the service, which checks and does them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal


class RefusedError(Exception):
    """An action is refused; the text says why, in terms of the form.

    Args:
        text: The mistake, what was expected, and what to do.
        field: The field that was wrong, if it is one.
    """

    def __init__(self, text: str, field: str | None = None) -> None:
        super().__init__(text)
        self.field = field


@dataclass(frozen=True)
class FormField:
    """A field of the form that creates a study.

    Attributes:
        name: The setting.
        kind: Kind of value that may be typed or chosen.
        about: Meaning, in a sentence.
        default: Value if it is left empty, as text; empty for none.
        choices: Values that may be chosen.
        longest: Most characters.
        is_common: Shown at once, and not behind "More settings".
    """

    name: str
    kind: Literal["text", "integer", "number", "choice", "switch"]
    about: str
    default: str = ""
    choices: tuple[str, ...] = ()
    longest: int | None = None
    is_common: bool = False


@dataclass(frozen=True)
class Actions:
    """Actions of editors; each raises `RefusedError` if it is not done.

    Attributes:
        check: Check settings by name, as far as that can be done at once.
        create: Create a study of a name with settings, and hand it to the runners.
        stop: Stop a study.
        resume: Let a study go on with changed settings.
        delete: Delete a study.
        fields: Fields of the form; the study's name is not among them.
    """

    check: Callable[[str, Mapping[str, Any]], None]
    create: Callable[[str, Mapping[str, Any]], None]
    stop: Callable[[str], None]
    resume: Callable[[str, Mapping[str, Any]], None]
    delete: Callable[[str], None]
    fields: tuple[FormField, ...] = ()
