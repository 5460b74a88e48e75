"""Racing: fresh items for the best trials of a search, more of them for those that lead.

The best of hundreds of trials is partly the luckiest on the few items of the search set. A race evaluates the leading
ones on batches of other items, and drops those that a paired test tells apart from a better one, as F-Race does
(Birattari et al. 2002) and Optuna's `WilcoxonPruner`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from search.evaluators import ItemKl

# One-sided p-value below which a trial is told apart from a better one. It is asked again after each batch, of each
# pair, and a wrong answer costs the best trial.
_SIGNIFICANCE = 0.01

Floats = NDArray[np.float64]


@dataclass
class Contender:
    """A trial in a race.

    Attributes:
        cost: Its cost.
        items: KL of each fresh item so far, those of all contenders in the same order.
        is_out: True once it is told apart from a better one, or cannot be evaluated.
    """

    cost: float
    items: list[ItemKl] = field(default_factory=list)
    is_out: bool = False

    def kl(self, n: int | None = None) -> float:
        """Mean KL per token over its first `n` items; over all for None."""
        tokens = np.array([item.n_tokens for item in self.items[:n]], dtype=float)
        return float((self._kls(n) * tokens).sum() / tokens.sum())

    def _kls(self, n: int | None = None) -> Floats:
        return np.array([item.kl for item in self.items[:n]])

    def is_worse(self, other: Contender) -> bool:
        """Tells whether its KL is higher than another's on the items of both, by more than chance.

        Its mean has to be higher, and so have its items beside the other's (Wilcoxon signed-rank test, one-sided).
        """
        n = min(len(self.items), len(other.items))
        differences = self._kls(n) - other._kls(n)
        if not differences.any() or self.kl(n) <= other.kl(n):
            return False
        # It takes half a second to load.
        from scipy.stats import wilcoxon

        return float(wilcoxon(differences, zero_method="zsplit", alternative="greater").pvalue) < _SIGNIFICANCE


class Race:
    """Evaluates contenders on batch after batch, and drops those that are told apart from a better one.

    Args:
        costs: Costs of the contenders, in the order in which the search ranks them.
        batch_sizes: Items of each batch.
        most_items: Most items that are evaluated, those of all contenders added up; a batch that takes more is not
            begun.
        by_cost: Whether a trial that costs more may be as good: then only those rule it out that cost no more. If not,
            all compete for the same place.

    Attributes:
        contenders: The contenders.
        n_evaluated: Items that were evaluated, those of all contenders added up.
    """

    def __init__(
        self, costs: Sequence[float], batch_sizes: Sequence[int], most_items: int, by_cost: bool = False
    ) -> None:
        self.contenders = [Contender(cost) for cost in costs]
        self.n_evaluated = 0
        self._batch_sizes = batch_sizes
        self._most_items = most_items
        self._by_cost = by_cost
        self._n_batches = 0

    @property
    def leading(self) -> list[int]:
        """Places of the contenders that are not told apart from a better one."""
        return [place for place, one in enumerate(self.contenders) if not one.is_out]

    def next_batch(self) -> int | None:
        """Number of the batch to evaluate those on that lead; None where the race is over."""
        if len(self.leading) < 2 or self._n_batches == len(self._batch_sizes):
            return None
        wanted = len(self.leading) * self._batch_sizes[self._n_batches]
        return self._n_batches if self.n_evaluated + wanted <= self._most_items else None

    def take(self, found: Mapping[int, Sequence[ItemKl]]) -> None:
        """Takes in a batch: the items by place of the contender; those that are missing could not be evaluated."""
        self._n_batches += 1
        for place in self.leading:
            one = self.contenders[place]
            one.items += found.get(place, ())
            one.is_out = place not in found
            self.n_evaluated += len(found.get(place, ()))
        leading = [self.contenders[place] for place in self.leading]
        for one in leading:
            one.is_out = any(one.is_worse(other) for other in leading if self._rules_out(other, one))

    def _rules_out(self, one: Contender, other: Contender) -> bool:
        return one is not other and (not self._by_cost or one.cost <= other.cost)


def estimates(contenders: Sequence[Contender], reference: Contender) -> list[float]:
    """KL of each contender, as it is expected on all items of a reference that has most of them.

    Contenders that were dropped early saw fewer items, perhaps the easy ones: what counts is by how much their KL is
    that of the reference on the items of both (a ratio estimator, Cochran 1977).

    Args:
        contenders: Contenders with an item at least.
        reference: The reference.
    """
    found = []
    for one in contenders:
        n = min(len(one.items), len(reference.items))
        known, whole = reference.kl(n), reference.kl()
        found.append(one.kl(n) * (whole / known if known > 0 else 1.0))
    return found
