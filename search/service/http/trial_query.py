"""Selects and sorts the trials of a study as the parameters of a request say."""

from __future__ import annotations

from collections.abc import Sequence
from difflib import get_close_matches
from typing import Annotated, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, Field
from starlette.exceptions import HTTPException

from search.service.http.parameters import MAX_NUMBER
from studies.records.trial_columns import STATES, TrialColumns

Floats = NDArray[np.float64]
# A limit on a value, such as `kl:0.2`.
Bound = Annotated[str, Field(max_length=200, pattern=r"^[^:]+:[-+]?[0-9.]+([eE][-+]?[0-9]+)?$")]
Bounds = Annotated[list[Bound], Field(max_length=10)]


class TrialQuery(BaseModel):
    """Parameters of a list of trials."""

    state: Literal["finished", "pruned", "failed"] | None = Field(None, description="Only trials of this state.")
    proposer: str | None = Field(None, max_length=64, description="Only trials of this proposer.")
    round: int | None = Field(
        None, ge=0, le=MAX_NUMBER, description="Only trials of this refinement; 0 for the first search."
    )
    front: bool | None = Field(None, description="Only non-dominated trials; or, if false, only the others.")
    at_most: Bounds = Field(
        [], description="Only trials with at most this value, such as `kl:0.2`; for each value that is limited."
    )
    at_least: Bounds = Field([], description="Only trials with at least this value, such as `flops:1e9`.")
    sort: str | None = Field(
        None,
        min_length=1,
        max_length=64,
        description="Value to sort by, ascending, or with - before it descending: an objective, a metric, or "
        "overall_sparsity, seconds, fidelity or constraint_violation. Trials without it come last. By number if "
        "not given.",
    )
    after: int = Field(-1, ge=-1, le=MAX_NUMBER, description="Number of the last item received, if not sorted.")
    offset: int = Field(0, ge=0, le=MAX_NUMBER, description="Number of items to skip, if sorted.")
    limit: int = Field(100, ge=1, le=1000, description="Most items to return.")


def asked_page(
    query: TrialQuery, columns: TrialColumns, objectives: Sequence[str], front: Sequence[int]
) -> tuple[list[int], int | None]:
    """The numbers of the trials that a query asks for, in its order.

    Args:
        query: The query.
        columns: Trials of the study.
        objectives: Names of its objectives.
        front: Numbers of the non-dominated trials, which are looked at only if the query asks for them.

    Returns:
        The numbers, and `after`, or `offset` for sorted ones, of the next page; None at the end.

    Raises:
        HTTPException: A value or number is unknown, or pages are asked for in two ways.
    """
    if query.sort is None and query.offset:
        raise HTTPException(422, "offset goes with sort: give after, the number of the last trial received.")
    if query.sort is not None and query.after != -1:
        raise HTTPException(422, "after goes with trials by number: give offset, the number of sorted ones to skip.")
    asked = np.ones(len(columns), bool)
    if query.state is not None:
        asked &= columns.state == [state.value for state in STATES].index(query.state)
    if query.proposer is not None:
        names = columns.proposers
        asked &= columns.proposer == (names.index(query.proposer) if query.proposer in names else -1)
    if query.round is not None:
        asked &= columns.round == query.round
    if query.front is not None:
        asked &= np.isin(columns.number, front) == query.front
    for name, limit, sign in [
        *((*_bound("at_most", one), 1) for one in query.at_most),
        *((*_bound("at_least", one), -1) for one in query.at_least),
    ]:
        asked &= sign * _value(name, columns, objectives) <= sign * limit
    if query.sort is None:
        asked &= columns.number > query.after
        numbers = columns.number[asked].tolist()
        page = numbers[: query.limit]
        return page, page[-1] if len(numbers) > len(page) else None
    values = _value(query.sort.removeprefix("-"), columns, objectives)[asked]
    # What is not a number is sorted last either way.
    order = np.lexsort((columns.number[asked], -values if query.sort.startswith("-") else values))
    ends = query.offset + query.limit
    return columns.number[asked][order][query.offset : ends].tolist(), ends if len(order) > ends else None


def _bound(parameter: str, text: str) -> tuple[str, float]:
    name, _, number = text.rpartition(":")
    try:
        return name, float(number)
    except ValueError:
        raise HTTPException(422, f"{parameter} is {text!r}: expected a value and a number, such as kl:0.2.") from None


def _value(name: str, columns: TrialColumns, objectives: Sequence[str]) -> Floats:
    """A value of each trial by its name; NaN where one has none."""
    if name in objectives:
        return columns.values[:, list(objectives).index(name)]
    others: dict[str, Floats] = {
        **columns.metrics,
        **{one: getattr(columns, one) for one in ("overall_sparsity", "seconds", "fidelity", "constraint_violation")},
    }
    if name not in others:
        known = [*objectives, *others]
        close = get_close_matches(name, known, 1)
        hint = f"did you mean {close[0]}?" if close else f"expected one of {', '.join(known)}."
        raise HTTPException(422, f"Trials have no value {name!r}: {hint}")
    return others[name]
