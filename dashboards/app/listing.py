"""The part of the list of studies that a page shows: those that match, in order, a page at a time, and their sweeps."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dashboards.app.data_source import Line
from studies.service.submissions import RunState

AT_ONCE = 25
# Orders by value of their choice: words, and what studies are sorted by; the list comes newest first.
ORDERS: Mapping[str, tuple[str, Callable[[Line], Any] | None]] = {
    "newest": ("newest first", None),
    "oldest": ("oldest first", lambda line: line.summary.created_at),
    "changed": ("last changed first", lambda line: -line.changed_at.timestamp()),
    "name": ("name", lambda line: line.summary.name.casefold()),
    "by": ("submitter", lambda line: (not submitter(line), (submitter(line) or "").casefold())),
    "state": ("state", lambda line: (line.state.is_at_rest, list(RunState).index(line.state))),
    "trials": ("most trials", lambda line: -line.summary.n_trials),
    "kl": ("lowest KL", lambda line: math.inf if line.best is None else line.best[0]),
}
# The last parts of the names of a sweep's studies: `ftp-search sweep` appends model, target and seed.
_SEED = re.compile(r"-s\d+$")
_TARGET = re.compile(r"-((t|flops|speedup)[\d.]+(e-?\d+)?|any)$")


@dataclass(frozen=True)
class Pages:
    """The pages of a list, and the one that is shown."""

    n: int  # what the pages have together
    number: int  # number of the page, from 1
    n_pages: int
    first: int  # place of the first one of the page

    @classmethod
    def of(cls, n: int, page: str | None, at_once: int) -> Pages:
        """The page of a number that an address gives as text; the nearest that exists is taken."""
        n_pages = max(1, math.ceil(n / at_once))
        asked = int(page) if page and page.isdecimal() and len(page) < 10 else 1
        number = min(max(1, asked), n_pages)
        return cls(n, number, n_pages, (number - 1) * at_once)

    @property
    def is_first(self) -> bool:
        """True if no page comes before it."""
        return self.number == 1

    @property
    def is_last(self) -> bool:
        """True if no page comes after it."""
        return self.number == self.n_pages

    @property
    def words(self) -> str:
        """Which page of how many it is; empty if there is one alone."""
        return f", page {self.number} of {self.n_pages}" if self.n_pages > 1 else ""


@dataclass(frozen=True)
class Listed:
    """A page of a list."""

    lines: Sequence[Line]
    pages: Pages
    n_all: int  # studies, whether they match or not

    @property
    def words(self) -> str:
        """What is shown of how many."""
        some = f"{self.pages.n} of " if self.pages.n != self.n_all else ""
        return f"{some}{self.n_all} {'study' if self.n_all == 1 else 'studies'}{self.pages.words}"


def listed(
    lines: Sequence[Line],
    typed: str | None,
    state: str | None,
    order: str | None,
    page: str | None,
    sweep: str | None = None,
) -> Listed:
    """The page of a list.

    Args:
        lines: Every study, newest first.
        typed: Words that the name, the model, the data or the submitter must all have.
        state: State that studies must be in; empty for any.
        order: Key of `ORDERS`.
        page: Number of the page, from 1, as text; the nearest that exists is taken.
        sweep: Sweep that studies must be of; empty for any.
    """
    of_sweep = {name for name, own in sweeps(lines).items() if own == sweep}
    words = (typed or "").casefold().split()
    matching = [
        one
        for one in lines
        if (not state or one.state.value == state) and (not sweep or one.summary.name in of_sweep) and _has(one, words)
    ]
    by = ORDERS.get(order or "", ORDERS["newest"])[1]
    matching = matching if by is None else sorted(matching, key=by)
    pages = Pages.of(len(matching), page, AT_ONCE)
    return Listed(matching[pages.first : pages.first + AT_ONCE], pages, len(lines))


def sweeps(lines: Sequence[Line]) -> dict[str, str]:
    """The sweep of each study that is of one, as far as names tell: studies whose models, targets or seeds differ."""
    stems = {line.summary.name: _stem(line.summary.name, line.summary.model) for line in lines}
    n_studies = Counter(stems.values())
    return {name: stem for name, stem in stems.items() if stem != name and n_studies[stem] > 1}


def submitter(line: Line) -> str | None:
    """Name of the token with which a study was submitted; None if nobody had to say who they are."""
    return None if line.submission is None else line.submission.submitted_by


def _stem(name: str, model: str) -> str:
    """The name of a study without its parts for model, target and seed."""
    stem = _TARGET.sub("", _SEED.sub("", name))
    label = re.sub(r"[^\w.-]+", "-", Path(model).name).strip("-.")
    return stem.removesuffix(f"-{label}") or name


def _has(line: Line, words: Sequence[str]) -> bool:
    text = "\n".join([line.summary.name, line.summary.model, line.summary.data, submitter(line) or ""]).casefold()
    return all(word in text for word in words)
