"""Proposers: which schedule to evaluate next.

The engine knows them by the `Proposer` protocol alone.
"""

from __future__ import annotations

from typing import Protocol

from search.problem.trial import Outcome, Proposal


class Proposer(Protocol):
    """Proposes levels, and learns from every outcome, whoever proposed it."""

    @property
    def name(self) -> str:
        """What trials are labelled with."""

    @property
    def leads(self) -> bool:
        """Whether it knows what the others have still to find out: then the next trials had better be its own."""

    def ask(self, number: int) -> Proposal:
        """What to evaluate as trial `number`, inside the space; its parents are among what was told.

        Random choices depend on the seed, on the number, and on how often it was asked for this number before: a search
        that was resumed proposes as if it had never stopped.
        """

    def tell(self, outcome: Outcome) -> None:
        """Learn what became of levels.

        They may have been proposed by anybody, or in another study. Ablations may lie outside the space: who has no
        use for that leaves them out.
        """
