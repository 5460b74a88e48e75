"""Moves grid indices until they keep limits on cost, and close to those that are targets."""

from __future__ import annotations

import random
from collections.abc import Sequence
from functools import cached_property

import numpy as np

from search.problem.cost_limit import CostLimit
from search.problem.gene_costs import CostSums, GeneCosts
from search.problem.trial import GridIndices

# How often moves are repeated where the tables are off, each time with limits corrected by how much.
_MOST_CORRECTIONS = 4


class Limited:
    """The limits of a space.

    Args:
        limits: Limits on the cost of schedules.
        costs: Costs of genes, for each of the limits.
        free: Genes that may skip.
        n_genes: Number of all genes.
        even: Indices of the sum that all must have; None for any.
    """

    def __init__(
        self,
        limits: Sequence[CostLimit],
        costs: Sequence[GeneCosts],
        free: Sequence[int],
        n_genes: int,
        even: GridIndices | None,
    ) -> None:
        self._limits = tuple(limits)
        self._costs = tuple(costs)
        self._free = tuple(free)
        self._n_genes = n_genes
        self._even = even
        self._rows = [one.sums.rows for one in costs]
        # Whether what a gene costs depends on the other one of its block.
        self._has_pairs = [one.sums.together is not None for one in costs]

    def violation(self, indices: Sequence[int]) -> float:
        """By how much indices break the limits, as shares; 0 if they keep them."""
        pairs = zip(self._limits, self._costs, strict=True)
        return sum(limit.violation(costs.of(indices)) for limit, costs in pairs)

    @cached_property
    def cheapest(self) -> GridIndices:
        """Indices that cost about the least that the other constraints allow; always the same ones."""
        if self._even is not None:
            return self._exchanged(self._even, None)
        least, free = self._lowest, set(self._free)
        if all(costs.is_additive for costs in self._costs):
            return least
        top = self._weighted.alone.shape[1] - 1
        return min(least, tuple(top * (gene in free) for gene in range(self._n_genes)), key=self.violation)

    def kept(self, indices: Sequence[int], rng: random.Random) -> GridIndices:
        """Nearby indices that keep the limits; the cheapest where that fails."""
        is_additive = all(costs.is_additive for costs in self._costs)
        if not is_additive and self.violation(indices) == 0 and not self._can_give_back(indices):
            return tuple(indices)
        corrections, best = [0.0] * len(self._limits), None
        for _ in range(_MOST_CORRECTIONS):
            most = [limit.most - correction for limit, correction in zip(self._limits, corrections, strict=True)]
            moved = self._moved(indices, most, rng)
            if self.violation(moved) == 0 and (best is None or self._excess(moved) > self._excess(best)):
                best = moved
            if is_additive:
                break
            corrections = [costs.of(moved) - costs.tabled(moved) for costs in self._costs]
        if best is None:
            return self.cheapest
        return best if is_additive else self._filled(best, rng)

    @cached_property
    def _is_filled(self) -> bool:
        """True if steps are given back up to a limit, as to a target, and no sum of indices is asked for."""
        return self._even is None and any(limit.is_target for limit in self._limits)

    def _can_give_back(self, indices: Sequence[int]) -> bool:
        """True if a gene could skip a step less by true costs."""
        if not self._is_filled:
            return False
        givers = (gene for gene in self._free if indices[gene])
        return any(self.violation([*indices[:one], indices[one] - 1, *indices[one + 1 :]]) == 0 for one in givers)

    def _filled(self, indices: GridIndices, rng: random.Random) -> GridIndices:
        """Indices with what can be given back of them by true costs, where tables do not tell all of it."""
        if not self._is_filled:
            return indices
        now, givers = list(indices), [gene for gene in self._free if indices[gene]]
        excess = self._excess(now)
        while givers:
            at = rng.randrange(len(givers))
            gene = givers[at]
            now[gene] -= 1
            if self.violation(now):
                now[gene] += 1
                del givers[at]
                continue
            before, excess = excess, self._excess(now)
            if excess < before:
                # Where that saved time, any gene may give back now.
                givers = [one for one in self._free if now[one]]
            elif not now[gene]:
                del givers[at]
        return tuple(now)

    @cached_property
    def _lowest(self) -> GridIndices:
        """Indices that cost the least by the tables."""
        free, n_indices = set(self._free), self._weighted.alone.shape[1]
        if self._weighted.together is None:
            lowest = self._weighted.alone.argmin(1).tolist()
        else:
            pairs = np.unravel_index(self._weighted.of_blocks().argmin(1), (n_indices, n_indices))
            lowest = np.stack(pairs, 1).reshape(-1).tolist()
        return tuple(index * (gene in free) for gene, index in enumerate(lowest))

    @cached_property
    def _weighted(self) -> CostSums:
        """Costs as shares of all limits together."""
        pairs = list(zip(self._limits, self._costs, strict=True))
        together = [costs.sums.together / limit.most for limit, costs in pairs if costs.sums.together is not None]
        return CostSums(
            np.asarray(sum(costs.sums.alone / limit.most for limit, costs in pairs)),
            np.asarray(sum(together)) if together else None,
        )

    def _excess(self, indices: Sequence[int]) -> float:
        return sum(costs.of(indices) / limit.most for limit, costs in zip(self._limits, self._costs, strict=True))

    def _moved(self, indices: Sequence[int], most: Sequence[float], rng: random.Random) -> GridIndices:
        """Indices that keep the limits, or come near to it, as far as the tables tell."""
        if self._even is not None:
            return self._exchanged(indices, most)
        now, totals = list(indices), [costs.tabled(indices) for costs in self._costs]
        for place in range(len(most)):
            self._skip_more(now, totals, place, most[place], rng)
        if any(limit.is_target for limit in self._limits):
            self._give_back(now, totals, most, rng)
        return tuple(now)

    def _skip_more(self, now: list[int], totals: list[float], place: int, most: float, rng: random.Random) -> None:
        """Let random genes skip more, step by step, until a limit is kept."""
        movable = [gene for gene in self._free if self._cheaper(place, gene, now)]
        while totals[place] > most and movable:
            at = rng.randrange(len(movable))
            gene = movable[at]
            if index := self._cheaper(place, gene, now):
                self._set(now, totals, gene, index)
            if not self._cheaper(place, gene, now):
                del movable[at]
            if index and self._has_pairs[place] and gene ^ 1 not in movable and self._cheaper(place, gene ^ 1, now):
                movable.append(gene ^ 1)

    def _give_back(self, now: list[int], totals: list[float], most: Sequence[float], rng: random.Random) -> None:
        """Let random genes skip less, step by step, as long as every limit is kept."""
        givers = [gene for gene in self._free if now[gene]]
        while givers:
            at = rng.randrange(len(givers))
            gene = givers[at]
            fewer = reversed(range(now[gene]))
            index = next((one for one in fewer if self._allows(now, totals, gene, one, most)), None)
            before = list(totals)
            if index is not None:
                self._set(now, totals, gene, index)
            if not index:
                del givers[at]
            if index is not None:
                # Where that saved time, any gene may give back now, and else the other one of the block.
                beside = (gene ^ 1,) if any(self._has_pairs) else ()
                others = self._free if any(map(float.__lt__, totals, before)) else beside
                givers += [other for other in others if now[other] and other not in givers]

    def _allows(self, now: list[int], totals: list[float], gene: int, index: int, most: Sequence[float]) -> bool:
        rows = (self._row(place, gene, now) for place in range(len(most)))
        changes = (row[index] - row[now[gene]] for row in rows)
        return all(total + change <= limit for total, change, limit in zip(totals, changes, most, strict=True))

    def _set(self, now: list[int], totals: list[float], gene: int, index: int) -> None:
        for place in range(len(totals)):
            row = self._row(place, gene, now)
            totals[place] += row[index] - row[now[gene]]
        now[gene] = index

    def _row(self, place: int, gene: int, now: Sequence[int]) -> list[float]:
        """Change of a cost by a gene at each index, the other one of its block being where it is."""
        return self._rows[place][gene][now[gene ^ 1] if self._has_pairs[place] else 0]

    def _cheaper(self, place: int, gene: int, now: Sequence[int]) -> int:
        """The next index of a gene that costs less; 0 for none.

        The first steps of a gene may cost more than they save, as its tokens have to be gathered.
        """
        return self._next_lower[place][gene][now[gene ^ 1] if self._has_pairs[place] else 0][now[gene]]

    @cached_property
    def _next_lower(self) -> list[list[list[list[int]]]]:
        """For each limit, gene, and index of the other gene of its block, the next lower cost of each index."""
        return [[[_next_lower(row) for row in of_gene] for of_gene in rows] for rows in self._rows]

    def _exchanged(self, indices: Sequence[int], most: Sequence[float] | None) -> GridIndices:
        """Indices of the same sum: the best exchange between two genes after another, until the limits are kept.

        Without limits, until no exchange makes them cheaper.
        """
        now, free = np.asarray(indices), np.asarray(self._free, dtype=np.intp)
        top, paired = self._weighted.alone.shape[1] - 1, self._weighted.together is not None
        while most is None or any(
            costs.tabled(now.tolist()) > limit for costs, limit in zip(self._costs, most, strict=True)
        ):
            best, exchange, table = -1e-12, None, self._weighted.beside(now)
            for amount in range(1, top + 1):
                here = table[free, now[free]]
                gives = table[free, np.maximum(now[free] - amount, 0)] - here
                gives[now[free] < amount] = np.inf
                takes = table[free, np.minimum(now[free] + amount, top)] - here
                takes[now[free] + amount > top] = np.inf
                # No gene both gives and takes, nor do two that cost less together: one of the three best of each does.
                for giver in np.argsort(gives, kind="stable")[:3]:
                    for taker in np.argsort(takes, kind="stable")[:3]:
                        is_apart = giver != taker and not (paired and free[giver] == free[taker] ^ 1)
                        if is_apart and gives[giver] + takes[taker] < best:
                            best, exchange = float(gives[giver] + takes[taker]), (giver, taker, amount)
            if exchange is None:
                break
            giver, taker, amount = exchange
            now = now.copy()
            now[free[giver]] -= amount
            now[free[taker]] += amount
        return tuple(now.tolist())


def _next_lower(row: Sequence[float]) -> list[int]:
    return [next((j for j in range(i + 1, len(row)) if row[j] < row[i]), 0) for i in range(len(row))]
