"""Tables as values, which pages and Markdown show alike."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

from studies.analysis.retention import Interval

# How a figure is set: as it is, muted since it shows no difference, or as bad news.
Tone = Literal["", "unclear", "bad"]


class Cell(NamedTuple):
    """A cell of a table."""

    text: str
    detail: str = ""  # an interval or a condition, set smaller
    tone: Tone = ""


class Column(NamedTuple):
    """A column's heading, and what its numbers are in."""

    title: str
    unit: str = ""


@dataclass(frozen=True)
class Row:
    """A line of a table."""

    cells: tuple[Cell, ...]
    colour: str = ""  # colour of the dot before it; empty for none
    marked: bool = False  # highlights the row


@dataclass(frozen=True)
class Table:
    """Rows under headings, with what to know before reading them."""

    columns: tuple[Column, ...]
    rows: tuple[Row, ...]
    reading: str = ""  # how to read the numbers, in sentences


UNKNOWN = Cell("–")
_LARGE = 1000.0


def row(texts: Sequence[str], *, marked: bool = False) -> Row:
    """A line of plain cells."""
    return Row(tuple(Cell(text) for text in texts), marked=marked)


def bracketed(interval: Interval | None, form: str) -> str:
    """An interval as text; empty where there is none."""
    return "" if interval is None else f"[{interval[0]:{form}}, {interval[1]:{form}}]"


def counted(number: int, thing: str, things: str | None = None) -> str:
    """A number of things in words: "1 router", "2 routers"."""
    return f"{number} {thing if number == 1 else things or thing + 's'}"


def duration(seconds: float) -> str:
    """A duration with the two units that matter: "0.4 s", "12 s", "3 min 20 s", "2 h 5 min"."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def perplexity_text(value: float) -> str:
    """A perplexity; that of a model that only guesses has too many digits before the point for more behind it."""
    return f"{value:.3f}" if value < _LARGE else f"{value:.3g}"


def kl_text(value: float) -> str:
    """A KL with enough digits to tell small ones apart."""
    return f"{value:.4f}" if abs(value) >= 0.001 or abs(value) < 5e-8 else f"{value:.1e}"
