"""The least harm at a cost: what each gene should skip, exactly, where the harms of genes add up."""

from __future__ import annotations

import math

import numpy as np

from search.problem.gene_costs import CostSums, Counts, Floats

# Units that savings are counted in: more are more exact, and take longer.
_UNITS, _UNITS_OF_RUNS = 1500, 300
# Tries to make up for what rounding to units lost.
_MOST_TRIES = 12


def least_harm(
    harms: Floats, savings: Counts, total: int, relief: Floats | None = None, exactly: bool = True
) -> list[int] | None:
    """Index of each gene with which harms sum up to the least, and savings to a total; None if none can.

    Dynamic programming from the last gene to the first, over what they save and, with relief, over their lowest index
    (N genes, L indices, T + 1 totals).

    Args:
        harms: Harm of each gene at each index `[N, L]`.
        savings: Cost that it saves there, at least 0 `[N, L]`.
        total: Sum of savings T.
        relief: Harm of each gene that is spared by the lowest index from there to the last gene `[N, L]`.
        exactly: False if savings may be more than the total.
    """
    n_genes, n_indices = harms.shape
    n_lowest = 1 if relief is None else n_indices
    steps = np.arange(total + 1)
    least = np.full((n_lowest, total + 1), np.inf)
    least[-1, 0] = 0.0
    # By gene, lowest index from there on, and total: its index, and the lowest one of those behind it.
    chosen = np.zeros((2, n_genes, n_lowest, total + 1), dtype=np.int16)
    for gene in reversed(range(n_genes)):
        left = steps - savings[gene][:, None]
        there = np.maximum(left, 0)
        lost = (left < 0) & exactly
        if relief is None:
            own = harms[gene][:, None] + least[0][there]
            own[lost] = np.inf
            chosen[0, gene, 0], least = own.argmin(0), own.min(0)[None]
            continue
        # Either this gene is the lowest, and those behind are any that are no lower; or one of those behind it is.
        behind = np.minimum.accumulate(least[::-1])[::-1]
        from_behind = _places_of_lowest(least)
        every = np.arange(n_indices)[:, None]
        best = harms[gene][:, None] + behind[every, there]
        best[lost] = np.inf
        index, lowest = np.repeat(every, total + 1, axis=1), from_behind[every, there]
        for higher in range(1, n_indices):
            other = harms[gene, higher] + least[:higher, there[higher]]
            other[:, lost[higher]] = np.inf
            better = other < best[:higher]
            np.copyto(best[:higher], other, where=better)
            index[:higher][better] = higher
            np.copyto(lowest[:higher], every[:higher], where=better)
        chosen[0, gene], chosen[1, gene] = index, lowest
        least = best - relief[gene][:, None]
    lowest_one = int(least[:, total].argmin())
    if not math.isfinite(least[lowest_one, total]):
        return None
    indices, rest = [], total
    for gene in range(n_genes):
        indices.append(int(chosen[0, gene, lowest_one, rest]))
        lowest_one = int(chosen[1, gene, lowest_one, rest])
        rest = max(0, rest - int(savings[gene, indices[-1]]))
    return indices


def _places_of_lowest(least: Floats) -> Counts:
    """`[L, T]` For each row the row from there on whose number is the lowest."""
    places = np.empty(least.shape, dtype=np.int64)
    places[-1] = len(least) - 1
    lowest = least[-1].copy()
    for row in range(len(least) - 2, -1, -1):
        is_lower = least[row] <= lowest
        places[row] = np.where(is_lower, row, places[row + 1])
        np.minimum(lowest, least[row], out=lowest)
    return places


def least_harm_within(harms: Floats, costs: CostSums, most: float, relief: Floats | None = None) -> list[int] | None:
    """Index of each gene with which harms sum up to the least, and costs to at most a limit; None if none can.

    It is exact but for the rounding of savings to a 1,500th of what has to be saved (a 300th with relief); the limit
    is kept by true costs. Where both genes of a block cost less together, both are chosen at once.

    Args:
        harms: As for `least_harm`; without skipping there is none.
        costs: Changes of the cost by genes.
        most: The most that they may add up to.
        relief: As for `least_harm`.
    """
    if costs.together is None:
        return _within(harms, costs.alone, most, relief)
    assert relief is None, "genes of halves are not nested"
    n_indices = harms.shape[1]
    harms = (harms[0::2, :, None] + harms[1::2, None, :]).reshape(len(harms) // 2, -1)
    places = _places_of_best(harms, both := costs.of_blocks())
    blocks = np.arange(len(places))[:, None]
    found = _within(harms[blocks, places], both[blocks, places], most, None)
    if found is None:
        return None
    return [index for block, place in enumerate(found) for index in divmod(int(places[block, place]), n_indices)]


def _places_of_best(harms: Floats, costs: Floats) -> Counts:
    """`[N, P]` For each row the places at which less harm costs more; 0 first, and again where a row has fewer."""
    rows = []
    for harm, cost in zip(harms, costs, strict=True):
        cheapest_first = np.lexsort((harm, cost))
        least_before = np.minimum.accumulate(np.concatenate([[np.inf], harm[cheapest_first][:-1]]))
        best = cheapest_first[harm[cheapest_first] < least_before]
        rows.append([0, *(int(place) for place in best[::-1] if place)])
    longest = max(map(len, rows), default=0)
    return np.array([row + [0] * (longest - len(row)) for row in rows], dtype=np.int64).reshape(len(rows), longest)


def _within(harms: Floats, costs: Floats, most: float, relief: Floats | None) -> list[int] | None:
    saved = costs[:, :1] - costs
    # Skipping little may cost more than it saves, as tokens have to be gathered: then it is no choice.
    harms, saved = np.where(saved < 0, np.inf, harms), np.maximum(saved, 0.0)
    needed = float(costs[:, 0].sum()) - most
    if needed <= 0:
        return [0] * len(costs)
    unit = needed / (_UNITS if relief is None else _UNITS_OF_RUNS)
    counts, total = np.rint(saved / unit).astype(np.int64), round(needed / unit)
    for _ in range(_MOST_TRIES):
        found = least_harm(harms, counts, total, relief, exactly=False)
        if found is None:
            break
        lacking = needed - float(saved[np.arange(len(found)), found].sum())
        if lacking <= 1e-9 * needed:
            return found
        total += max(1, math.ceil(lacking / unit))
    fastest = [int(index) for index in saved.argmax(1)]
    return fastest if float(saved.max(1).sum()) >= needed * (1 - 1e-9) else None
