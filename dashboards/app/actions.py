"""What pages may ask for that changes something: handed in by the service, which checks and does it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal


class RefusedError(Exception):
    """What was asked for is not done; the text says why, in terms of the form.

    Args:
        text: What was wrong, what was expected, and what to do.
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
        kind: What may be typed or chosen.
        about: What it means, in a sentence.
        default: What holds if it is left empty, as text; empty for nothing.
        choices: What may be chosen.
        longest: Most characters.
        is_common: Whether it is shown at once, and not behind "More settings".
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
    """What editors may do; each raises `RefusedError` if it is not done.

    Attributes:
        check: Whether settings by name are right, as far as that can be told at once.
        create: Create a study of a name with settings, and hand it to the workers.
        stop: Stop a study.
        resume: Let a study go on with changed settings.
        delete: Delete a study.
        fields: Of the form; the study's name is not among them.
    """

    check: Callable[[str, Mapping[str, Any]], None]
    create: Callable[[str, Mapping[str, Any]], None]
    stop: Callable[[str], None]
    resume: Callable[[str, Mapping[str, Any]], None]
    delete: Callable[[str], None]
    fields: tuple[FormField, ...] = ()
