"""Actions of pages that change something: handed in by the service, which checks and does them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
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
    """A field of the form that creates a study."""

    name: str
    kind: Literal["text", "integer", "number", "choice", "switch"]  # kind of value that may be typed or chosen
    about: str  # meaning, in a sentence
    default: str = ""  # value if it is left empty, as text; empty for none
    choices: tuple[str, ...] = ()  # values that may be chosen
    longest: int | None = None  # most characters that may be typed
    is_common: bool = False  # shown at once, and not behind "More settings"
    group: str = ""  # heading that it stands below there
    unit: str = ""  # unit of its number; empty for none


@dataclass(frozen=True)
class Actions:
    """Actions of editors on a study of a name; each raises `RefusedError` if it is not done."""

    # Checks a name and settings as creating does, apart from the contents of data; None for no name yet.
    check: Callable[[str | None, Mapping[str, Any]], None]
    create: Callable[[str, Mapping[str, Any]], None]  # creates it with settings, and hands it to the runners
    stop: Callable[[str], None]
    resume: Callable[[str, Mapping[str, Any]], None]  # lets it go on with changed settings
    delete: Callable[[str], None]
    label: Callable[[str, Mapping[str, str]], None]  # changes tags, which commas separate, and the note
    measure: Callable[[str, int], None]  # lets a finished one go on to measure a trial, too
    select: Callable[[str, int], None]  # the same, and to select that trial
    export: Callable[[str, int], Mapping[str, Any]]  # the schedule of a trial with its settings, as plain values
    # A prompt under a trial's schedule, by its text and most new tokens, for `dashboards.report.prompts.own_prompt`.
    prompt: Callable[[str, int, str, int], Mapping[str, Any]]
    # Other methods, by name, beside a finished study's schedules: what was said of "budgets" and "shapes", which commas
    # separate, of "seeds", and of "match", "latency" or "flops"; empty text is nothing said.
    compare: Callable[[str, Sequence[str], Mapping[str, str]], None]
    # Values of the form for the settings of a study that are no defaults: true or false, or text.
    filled: Callable[[str], Mapping[str, Any]]
    methods: tuple[str, ...] = ()  # names of all other methods
    fields: tuple[FormField, ...] = ()  # fields of the form; the study's name is not among them
    groups: Mapping[str, str] = field(default_factory=dict)  # what the fields below each heading are about
    offered: Callable[[], Mapping[str, Sequence[str]]] = dict  # some of the possible values, by field
