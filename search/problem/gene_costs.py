"""What each gene of a schedule costs, alone and together with the other gene of its block."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Counts = NDArray[np.int64]

# What sums of floats are off by does not count.
SLACK = 1e-9
# Schedules that show whether a cost adds up over genes.
_PROBES = 3


@dataclass(frozen=True)
class CostSums:
    """Costs that add up over blocks: changes of the dense schedule's cost by N genes at L grid indices.

    Genes 2 b and 2 b + 1 are of the same block where halves skip apart. Tokens that skip both halves are taken apart
    once, and pass no norm: both together may cost less than the sum of the two, and one alone more than none.

    Attributes:
        alone: Change by each gene, the other one of its block running whole `[N, L]`.
        together: What both genes of a block change beyond that `[N / 2, L, L]`, by the index of the first and of the
            second; None for nothing.
    """

    alone: Floats
    together: Floats | None = None

    def of(self, indices: Sequence[int] | Counts) -> float:
        """Change of the cost by grid indices `[N]`."""
        return float(self.of_each(np.asarray(indices, dtype=np.int64)[None])[0])

    def of_each(self, indices_TN: Counts) -> Floats:
        """Change of the cost by each of several grid indices `[T]`."""
        costs: Floats = self.alone[np.arange(len(self.alone)), indices_TN].sum(1)
        if self.together is not None:
            blocks = np.arange(len(self.together))
            costs = costs + self.together[blocks, indices_TN[:, 0::2], indices_TN[:, 1::2]].sum(1)
        return costs

    def beside(self, indices: Counts) -> Floats:
        """Change of the cost by each gene at each index, the other one of its block being at grid indices `[N, L]`."""
        if self.together is None:
            return self.alone
        blocks, changes = np.arange(len(self.together)), self.alone.copy()
        changes[0::2] += self.together[blocks, :, indices[1::2]]
        changes[1::2] += self.together[blocks, indices[0::2], :]
        return changes

    @cached_property
    def rows(self) -> list[list[list[float]]]:
        """The same as Python's numbers, which are quicker to look up one by one: by gene and index of the other one.

        Where genes add up, there is one row for each, of index 0.
        """
        if self.together is None:
            return [[row] for row in self.alone.tolist()]
        firsts = self.alone[0::2, None, :] + self.together.transpose(0, 2, 1)
        seconds = self.alone[1::2, None, :] + self.together
        found: list[list[list[float]]] = np.stack([firsts, seconds], 1).reshape(-1, *firsts.shape[1:]).tolist()
        return found

    def of_blocks(self) -> Floats:
        """Change by both genes of each block `[N / 2, L L]`, by L times the first one's index and the second one's."""
        both = self.alone[0::2, :, None] + self.alone[1::2, None, :]
        if self.together is not None:
            both = both + self.together
        return np.asarray(both.reshape(len(both), -1))

    def taken(self, genes: Sequence[int]) -> CostSums:
        """Costs of some genes alone; where both genes of a block matter, of whole blocks."""
        together = None if self.together is None else self.together[[gene // 2 for gene in genes[0::2]]]
        return CostSums(self.alone[list(genes)], together)


class GeneCosts:
    """A cost as a sum over blocks: `base + sums`.

    FLOPs are exactly that with every router, and predicted latency with the static one. Other costs are tabled by
    changes of single blocks of the dense schedule, see `is_additive`.

    Attributes:
        base: Cost of the dense schedule.
        sums: Changes of it.
        is_additive: True if these tell the cost of every schedule.
    """

    def __init__(self, cost: Callable[[Sequence[int]], float], n_genes: int, top: int, per_block: int = 1) -> None:
        """Table a cost of grid indices, which have one or two genes for each block."""
        self._cost, self._n_genes = cost, n_genes
        self.base = cost([0] * n_genes)
        alone = np.zeros((n_genes, top + 1))
        for gene in range(n_genes):
            for index in range(1, top + 1):
                alone[gene, index] = self._change({gene: index})
        self.sums = CostSums(alone)
        self.is_additive = self._adds_up(top)
        if not self.is_additive and per_block > 1:
            self.sums = CostSums(alone, self._together(alone))
            self.is_additive = self._adds_up(top)

    def tabled(self, indices: Sequence[int]) -> float:
        """Cost of grid indices by the table; mostly too high if the cost is not additive."""
        return self.base + self.sums.of(indices)

    def of(self, indices: Sequence[int]) -> float:
        """Cost of grid indices."""
        return self.tabled(indices) if self.is_additive else self._cost(indices)

    def _change(self, indices: dict[int, int]) -> float:
        return self._cost([indices.get(gene, 0) for gene in range(self._n_genes)]) - self.base

    def _together(self, alone: Floats) -> Floats:
        """What both genes of each block change together beyond the sum of both."""
        n_indices = alone.shape[1]
        together = np.zeros((len(alone) // 2, n_indices, n_indices))
        # Blocks whose genes cost the same alone are of one kind.
        of_kinds: dict[bytes, int] = {}
        for block in range(len(together)):
            first, second = 2 * block, 2 * block + 1
            alike = of_kinds.setdefault((np.round(alone[first : second + 1] / self.base, 9) + 0.0).tobytes(), block)
            if alike < block:
                together[block] = together[alike]
                continue
            for one in range(1, n_indices):
                for other in range(1, n_indices):
                    both = self._change({first: one, second: other})
                    together[block, one, other] = both - alone[first, one] - alone[second, other]
        return together

    def _adds_up(self, top: int) -> bool:
        for seed in range(_PROBES):
            rng = random.Random(seed)
            indices = [rng.randint(0, top) for _ in range(self._n_genes)]
            true = self._cost(indices)
            if abs(self.tabled(indices) - true) > SLACK * abs(true) + 1e-12:
                return False
        return True
