"""The part of the list of studies that a page shows: those that match, in order, a page at a time."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from dashboards.app.data_source import Line
from studies.service.submissions import RunState

AT_ONCE = 25
# Orders by value of their choice: words, and what studies are sorted by; the list comes newest first.
ORDERS: Mapping[str, tuple[str, Callable[[Line], Any] | None]] = {
    "newest": ("newest first", None),
    "oldest": ("oldest first", lambda line: line.summary.created_at),
    "name": ("name", lambda line: line.summary.name.casefold()),
    "state": ("state", lambda line: (line.state.is_at_rest, list(RunState).index(line.state))),
    "trials": ("most trials", lambda line: -line.summary.n_trials),
    "kl": ("lowest KL", lambda line: math.inf if line.best is None else line.best[0]),
}


@dataclass(frozen=True)
class Listed:
    """A page of a list."""

    lines: Sequence[Line]
    n_matching: int  # studies on all pages
    n_all: int  # studies, whether they match or not
    page: int  # number of the page, from 1
    n_pages: int

    @property
    def words(self) -> str:
        """What is shown of how many."""
        some = f"{self.n_matching} of " if self.n_matching != self.n_all else ""
        pages = f", page {self.page} of {self.n_pages}" if self.n_pages > 1 else ""
        return f"{some}{self.n_all} {'study' if self.n_all == 1 else 'studies'}{pages}"


def listed(lines: Sequence[Line], typed: str | None, state: str | None, order: str | None, page: str | None) -> Listed:
    """The page of a list.

    Args:
        lines: Every study, newest first.
        typed: Words that the name, the model, the data or the submitter must all have.
        state: State that studies must be in; empty for any.
        order: Key of `ORDERS`.
        page: Number of the page, from 1, as text; the nearest that exists is taken.
    """
    words = (typed or "").casefold().split()
    matching = [one for one in lines if (not state or one.state.value == state) and _has(one, words)]
    by = ORDERS.get(order or "", ORDERS["newest"])[1]
    matching = matching if by is None else sorted(matching, key=by)
    n_pages = max(1, math.ceil(len(matching) / AT_ONCE))
    asked = int(page) if page and page.isdecimal() and len(page) < 10 else 1
    number = min(max(1, asked), n_pages)
    first = (number - 1) * AT_ONCE
    return Listed(matching[first : first + AT_ONCE], len(matching), len(lines), number, n_pages)


def _has(line: Line, words: Sequence[str]) -> bool:
    by = None if line.submission is None else line.submission.submitted_by
    text = "\n".join([line.summary.name, line.summary.model, line.summary.data, by or ""]).casefold()
    return all(word in text for word in words)
