"""Cuts a search set into the parts that trials are evaluated on, and says what of an evaluation they take."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from search.errors import ConfigError

# Share of the search set that ablations are evaluated on, and fewest items of it.
_OF_ABLATIONS, _FEWEST_ITEMS = 0.25, 8


def part_ends(n_items: int, fidelities: Sequence[float]) -> list[int]:
    """The bounds of the parts of a search set: 0, and the number of items up to each fidelity.

    Args:
        n_items: Items in the set.
        fidelities: Shares of the set, ascending and ending with 1.

    Raises:
        ConfigError: They are no such shares, or a part would have no item.
    """
    shares = [0.0, *fidelities]
    if shares[-1] != 1.0 or any(not one < other for one, other in pairwise(shares)):
        raise ConfigError(
            f"--fidelities are {', '.join(f'{share:g}' for share in fidelities) or 'none'}, but must be ascending "
            "shares of the search set above 0, of which the last is 1: give for example 0.25, 1."
        )
    ends = [round(share * n_items) for share in shares]
    if any(start == end for start, end in pairwise(ends)):
        raise ConfigError(
            f"A search set of {n_items} items cannot be cut at {', '.join(f'{share:g}' for share in fidelities)}: each "
            "part needs an item. Give more items or fewer fidelities."
        )
    return ends


def ablation_fidelity(n_items: int, fidelities: Sequence[float]) -> float:
    """Share of a search set that ablations are evaluated on: a quarter or a little more, or the first fidelity.

    Args:
        n_items: Items in the set.
        fidelities: Those of other trials.
    """
    if fidelities[0] < 1.0:
        return fidelities[0]
    return 1.0 if n_items <= _FEWEST_ITEMS else max(_FEWEST_ITEMS, round(_OF_ABLATIONS * n_items)) / n_items


def evaluations_of(indices: Sequence[int], fidelity: float) -> float:
    """Whole evaluations that an ablation takes: what is before the first gene that skips is known from others.

    Args:
        indices: Grid index of each gene.
        fidelity: Share of the search set; an evaluation of the whole set counts as a whole one.
    """
    first = next((gene for gene, index in enumerate(indices) if index), 0)
    return 1.0 if fidelity == 1.0 else fidelity * (1 - first / len(indices))
