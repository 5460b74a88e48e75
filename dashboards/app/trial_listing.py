"""The part of a study's trials that a table shows: those that meet conditions, in an order, a page at a time."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dashboards.analysis.axes import OFFERED, SPARSITY, Axis, Floats
from dashboards.analysis.tables import UNKNOWN, counted, duration
from dashboards.analysis.trials import Found, Places
from dashboards.app.listing import Pages
from studies.records.trial_columns import STATES

AT_ONCE = 15
FRONT = "front"
# Choices of which trials are shown: words by value.
SHOWN: Mapping[str, str] = {
    "": "all",
    FRONT: "on the front",
    "comparable": "comparable",
    **{state.value: state.value for state in STATES},
}
_COMPARES: Mapping[str, Callable[[Floats, float], NDArray[np.bool_]]] = {
    "<=": np.less_equal,
    ">=": np.greater_equal,
    "<": np.less,
    ">": np.greater,
    "=": lambda values, number: np.isclose(values, number, rtol=1e-6, atol=0.0),
}
_CONDITION = re.compile(r"(?P<name>[^<>=]+)(?P<sign><=|>=|<|>|=)(?P<number>[^<>=%]+)(?P<percent>%?)")
_EXAMPLE = "KL < 0.1, overall sparsity >= 30%"


class ConditionError(ValueError):
    """A condition cannot be read; the text says what was expected."""


@dataclass(frozen=True)
class TrialColumn:
    """A column of the table.

    Attributes:
        name: Name in addresses and in conditions.
        title: Heading, which conditions may also name.
        values: Values of all trials, to sort and compare by, in the unit that people read; NaN where unknown.
        text: Text of the trial at a place.
        unit: Unit beside the heading.
        is_share: Conditions may give it in percent.
        is_number: Conditions may name it.
    """

    name: str
    title: str
    values: Callable[[Found], Floats]
    text: Callable[[Found, int], str]
    unit: str = ""
    is_share: bool = False
    is_number: bool = True


def _quantity(name: str) -> TrialColumn:
    axis = Axis(name)

    def text(found: Found, place: int) -> str:
        value = float(found.values(name)[place])
        return axis.text(value).removesuffix(f" {axis.unit}") if np.isfinite(value) else UNKNOWN.text

    return TrialColumn(
        name, axis.title, lambda found: axis.shown(found.values(name)), text, axis.unit, is_share=axis.is_share
    )


def _share(value: float) -> str:
    return f"{value:.1%}" if np.isfinite(value) else UNKNOWN.text


def _proposer_ranks(found: Found) -> Floats:
    names = found.columns.proposers
    ranks = np.array([sorted(names).index(name) for name in names], dtype=float)
    return ranks[found.columns.proposer] if len(found) else np.empty(0)


def columns_to_choose(objectives: Sequence[str]) -> dict[str, TrialColumn]:
    """The columns of a study's table by name, in their order.

    Args:
        objectives: Names of the study's objectives.
    """
    quantities = dict.fromkeys([*objectives, *OFFERED])
    columns = [
        TrialColumn(
            "number",
            "trial",
            lambda found: found.columns.number.astype(float),
            lambda found, place: str(found.columns.number[place]),
        ),
        TrialColumn(
            "state",
            "state",
            lambda found: found.columns.state.astype(float),
            lambda found, place: STATES[found.columns.state[place]].value,
            is_number=False,
        ),
        *map(_quantity, quantities),
        TrialColumn(
            "flops_saved",
            "FLOPs saved",
            lambda found: found.flops_saved,
            lambda found, place: _share(float(found.flops_saved[place])),
            is_share=True,
        ),
        TrialColumn(
            "proposer",
            "proposed by",
            _proposer_ranks,
            lambda found, place: found.columns.proposers[found.columns.proposer[place]],
            is_number=False,
        ),
        TrialColumn(
            "round",
            "refinement",
            lambda found: found.columns.round.astype(float),
            lambda found, place: str(found.columns.round[place]),
        ),
        TrialColumn(
            "fidelity",
            "share of the search set",
            lambda found: found.columns.fidelity,
            lambda found, place: f"{found.columns.fidelity[place]:.0%}",
            is_share=True,
        ),
        TrialColumn(
            "seconds",
            "evaluation",
            lambda found: found.columns.seconds,
            lambda found, place: duration(float(found.columns.seconds[place])),
        ),
    ]
    return {column.name: column for column in columns}


def first_columns(objectives: Sequence[str]) -> list[str]:
    """The columns of a table of which nobody has chosen any; that of the front always comes last."""
    return list(dict.fromkeys(["number", "state", *objectives, SPARSITY, "flops_saved", "proposer"]))


@dataclass(frozen=True)
class Chosen:
    """What somebody asks of the table; see `SHOWN` and `columns_to_choose`.

    Attributes:
        shown: Which trials, a key of `SHOWN`.
        proposer: Name of the proposer; empty for any.
        conditions: Comparisons of columns with numbers, between commas.
        order: Name of the column to sort by, behind a hyphen for the highest first.
        page: Number of the page, from 1, as text.
    """

    shown: str = ""
    proposer: str = ""
    conditions: str = ""
    order: str = "number"
    page: str = "1"


@dataclass(frozen=True)
class ListedTrials:
    """A page of the table."""

    places: list[int]  # places of its trials among all
    pages: Pages
    n_all: int  # trials, whether they match or not

    @property
    def words(self) -> str:
        """What is shown of how many."""
        some = f"{self.pages.n:,} of ".replace(",", "\u202f") if self.pages.n != self.n_all else ""
        return f"{some}{counted(self.n_all, 'trial')}{self.pages.words}"


def listed_trials(found: Found, chosen: Chosen, front: Places) -> ListedTrials:
    """The page of a table of trials that have ended.

    Args:
        found: Trials of the study.
        chosen: What is asked for.
        front: Places of the trials on the front.

    Raises:
        ConditionError: A condition cannot be read.
    """
    columns = columns_to_choose(found.objectives)
    kept = np.ones(len(found), dtype=bool)
    if chosen.shown == FRONT:
        kept = np.isin(np.arange(len(found)), front)
    elif chosen.shown == "comparable":
        kept = found.columns.comparable
    elif chosen.shown in SHOWN and chosen.shown:
        kept = found.columns.state == [state.value for state in STATES].index(chosen.shown)
    if chosen.proposer:
        names = found.columns.proposers
        kept = kept & (found.columns.proposer == (names.index(chosen.proposer) if chosen.proposer in names else -1))
    for part in filter(str.strip, (chosen.conditions or "").split(",")):
        kept = kept & _meets(part, columns, found)
    places = np.flatnonzero(kept)
    column, is_descending = columns.get(chosen.order.removeprefix("-")), chosen.order.startswith("-")
    values = (column or columns["number"]).values(found)[places]
    # Trials of the same value, and those without one at the end, stay in the order of their numbers.
    places = places[np.argsort(-values if is_descending else values, kind="stable")]
    pages = Pages.of(len(places), chosen.page, AT_ONCE)
    return ListedTrials(places[pages.first : pages.first + AT_ONCE].tolist(), pages, len(found))


def _meets(text: str, columns: Mapping[str, TrialColumn], found: Found) -> NDArray[np.bool_]:
    """[n] True for the trials that meet a condition; those without its value do not."""
    parts = _CONDITION.fullmatch(text.strip())
    if parts is None:
        raise ConditionError(f"The condition {text.strip()!r} cannot be read: expected the likes of {_EXAMPLE}.")
    said = parts["name"].strip().casefold().replace("_", " ")
    numbers = [one for one in columns.values() if one.is_number]
    named = [one for one in numbers if said in _names(one)]
    # A word of a title is enough where it is of one column alone.
    named = named or [one for one in numbers if any(said in name for name in _names(one))]
    if len(named) != 1:
        known = ", ".join(one.title for one in named or numbers)
        raise ConditionError(f"{parts['name'].strip()!r} names no single column to compare: expected one of {known}.")
    [column] = named
    try:
        number = float(parts["number"])
    except ValueError:
        raise ConditionError(f"{parts['number'].strip()!r} is no number: expected the likes of {_EXAMPLE}.") from None
    if parts["percent"] and not column.is_share:
        raise ConditionError(f"The {column.title} is no share: compare it with a number without %.")
    if column.is_share and not parts["percent"] and abs(number) > 1:
        raise ConditionError(f"The {column.title} is a share: compare it with {number:g}% or {number / 100:g}.")
    return _COMPARES[parts["sign"]](column.values(found), number / 100 if parts["percent"] else number)


def _names(column: TrialColumn) -> set[str]:
    """What a condition may call a column."""
    return {title.casefold().replace("_", " ") for title in (column.name, column.title)}
