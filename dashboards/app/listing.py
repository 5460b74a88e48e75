"""The part of the list of studies that a page shows: those that match, in order and in groups, a page at a time."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

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
# Rows of the list: groups stand in one row by default.
GROUPED, EACH = "groups", "each"
ROWS: Mapping[str, str] = {GROUPED: "grouped", EACH: "each study"}


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
class Wanted:
    """What an address asks for of a list; whatever it says is possible."""

    typed: str | None = None  # words that name, model, data, submitter, tags or note must all have
    state: str | None = None  # state that studies must be in; empty for any, as below
    order: str | None = None  # key of `ORDERS`
    page: str | None = None  # number of the page, from 1, as text; the nearest that exists is taken
    sweep: str | None = None  # sweep that studies must be of
    tag: str | None = None  # tag that they must have
    seeds: str | None = None  # name of a study that they must be equal to, but for the seed
    rows: str | None = None  # key of `ROWS`


@dataclass(frozen=True)
class Group:
    """Studies that stand in one row of the list: those of a sweep, or equal ones with several seeds."""

    kind: Literal["sweep", "seeds"]
    lines: Sequence[Line]

    @property
    def title(self) -> str:
        """Name of the sweep, or of the study with the first seed, whatever the order of the list."""
        if self.kind == "sweep":
            return str(self.lines[0].summary.labels.sweep)
        return min((line.seed or 0, line.summary.name) for line in self.lines)[1]

    @property
    def seeds(self) -> list[Any]:
        """The seeds of its studies, in order."""
        return sorted({line.seed for line in self.lines if line.seed is not None})

    @property
    def differs_by_seed(self) -> bool:
        """True if its studies are equal, but for the seed."""
        return len({line.but_for_seed for line in self.lines}) == 1 and len(self.seeds) > 1

    @property
    def tags(self) -> tuple[str, ...]:
        """The tags that all of its studies have."""
        tags = [line.summary.labels.tags for line in self.lines]
        return tuple(tag for tag in tags[0] if all(tag in own for own in tags))

    @property
    def states(self) -> list[tuple[RunState, int]]:
        """The number of its studies in each state that any is in."""
        counts = Counter(line.state for line in self.lines)
        return [(state, counts[state]) for state in RunState if counts[state]]


@dataclass(frozen=True)
class Listed:
    """A page of a list."""

    rows: Sequence[Line | Group]
    pages: Pages
    n: int  # studies that match
    n_all: int  # studies, whether they match or not

    @property
    def words(self) -> str:
        """What is shown of how many."""
        some = f"{self.n} of " if self.n != self.n_all else ""
        rows = f" in {self.pages.n} rows" if self.pages.n != self.n else ""
        return f"{some}{self.n_all} {'study' if self.n_all == 1 else 'studies'}{rows}{self.pages.words}"


def listed(lines: Sequence[Line], wanted: Wanted) -> Listed:
    """The page of a list, of every study, newest first."""
    words = (wanted.typed or "").casefold().split()
    like = next((line for line in lines if line.summary.name == wanted.seeds), None)
    matching = [line for line in lines if _matches(line, wanted, like) and _has(line, words)]
    by = ORDERS.get(wanted.order or "", ORDERS["newest"])[1]
    matching = matching if by is None else sorted(matching, key=by)
    rows = matching if wanted.rows == EACH or wanted.seeds else _grouped(matching, bool(wanted.sweep))
    pages = Pages.of(len(rows), wanted.page, AT_ONCE)
    return Listed(rows[pages.first : pages.first + AT_ONCE], pages, len(matching), len(lines))


def submitter(line: Line) -> str | None:
    """Name of the token with which a study was submitted; None if nobody had to say who they are."""
    return None if line.submission is None else line.submission.submitted_by


def _matches(line: Line, wanted: Wanted, like: Line | None) -> bool:
    labels = line.summary.labels
    return (
        (not wanted.state or line.state.value == wanted.state)
        and (not wanted.sweep or labels.sweep == wanted.sweep)
        and (not wanted.tag or wanted.tag in labels.tags)
        and (not wanted.seeds or (like is not None and _equal(line, like)))
    )


def _equal(line: Line, like: Line) -> bool:
    own, others = line.summary.labels.sweep, like.summary.labels.sweep
    return (own, line.but_for_seed) == (others, like.but_for_seed)


def _grouped(lines: Sequence[Line], within_sweep: bool) -> list[Line | Group]:
    """The rows of studies: each group where its first one would be."""
    members: dict[tuple[Literal["sweep", "seeds"], str], list[Line]] = {}
    for line in lines:
        members.setdefault(_key(line, within_sweep), []).append(line)
    groups = {key: Group(key[0], own) for key, own in members.items()}
    rows: list[Line | Group] = []
    for line in lines:
        group = groups[_key(line, within_sweep)]
        if len(group.lines) == 1 or (group.kind == "seeds" and len(group.seeds) < 2):
            rows.append(line)
        elif line is group.lines[0]:
            rows.append(group)
    # Nobody opens a sweep to see it as one row again.
    return list(lines) if within_sweep and len(rows) == 1 else rows


def _key(line: Line, within_sweep: bool) -> tuple[Literal["sweep", "seeds"], str]:
    sweep = line.summary.labels.sweep
    return ("seeds", line.but_for_seed) if sweep is None or within_sweep else ("sweep", sweep)


def _has(line: Line, words: Sequence[str]) -> bool:
    summary, labels = line.summary, line.summary.labels
    own = [summary.name, summary.model, summary.data, submitter(line) or "", *labels.tags, labels.note]
    text = "\n".join(own).casefold()
    return all(word in text for word in words)
