"""Checks the tags and notes that people give studies: short text in Unicode's form NFC, fit for lists and terminals."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable, Sequence

from search.config.study_name import normalised
from search.errors import ConfigError
from studies.records.labels import Labels

MAX_TAGS = 20
MAX_TAG_LENGTH = 40
MAX_NOTE_LENGTH = 2000
# Control characters, and halves of characters, which no database takes.
_UNFIT = ("Cc", "Cs")


def checked_labels(tags: Sequence[str], note: str, sweep: str | None = None) -> Labels:
    """Labels of a study of which tags and note are checked; see `checked_tags` and `checked_note`."""
    return Labels(checked_tags(tags), checked_note(note), None if sweep is None else normalised(sweep))


def checked_tags(tags: Iterable[str]) -> tuple[str, ...]:
    """Tags without repetitions, normalised.

    Raises:
        ConfigError: One is no short text of printable characters without commas, or there are too many.
    """
    found = tuple(dict.fromkeys(map(_checked_tag, tags)))
    if len(found) > MAX_TAGS:
        raise ConfigError(f"tags are {len(found)}: expected at most {MAX_TAGS}.")
    return found


def checked_note(note: str) -> str:
    """A note without blanks at its ends, normalised.

    Raises:
        ConfigError: It is too long, or has characters that cannot be shown.
    """
    found = normalised(note.replace("\r\n", "\n")).strip()
    if len(found) > MAX_NOTE_LENGTH:
        raise ConfigError(f"note has {len(found)} characters: expected at most {MAX_NOTE_LENGTH}.")
    unfit = next((one for one in found if unicodedata.category(one) in _UNFIT and one not in "\n\t"), None)
    if unfit is not None:
        raise ConfigError(f"note has the character {unfit!r}: expected text of one or more lines.")
    return found


def _checked_tag(tag: str) -> str:
    problem = None
    if not tag.strip():
        problem = "text that is not empty"
    elif tag != tag.strip():
        problem = "text without blanks at its ends"
    elif "," in tag:
        problem = "text without commas, which separate tags"
    elif not tag.isprintable():
        problem = "printable characters"
    elif len(normalised(tag)) > MAX_TAG_LENGTH:
        problem = f"at most {MAX_TAG_LENGTH} characters"
    if problem is not None:
        raise ConfigError(f"tags have {tag!r}: expected {problem}.")
    return normalised(tag)
