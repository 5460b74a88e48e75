"""Proposers: which schedule to evaluate next.

The engine knows them by the `Proposer` protocol alone.
"""

from __future__ import annotations

from typing import Protocol

from search.problem.trial import Outcome, Proposal


class Proposer(Protocol):
    """Proposes schedules as grid indices, and learns from the outcomes of all proposers.

    `search.proposers.testing` has checks that every proposer passes.
    """

    @property
    def name(self) -> str:
        """Label of its trials."""

    @property
    def leads(self) -> bool:
        """True while it knows what the others have still to find out, so that the next trials are better its own."""

    def ask(self, number: int) -> Proposal:
        """Propose a schedule inside the space, with parents among the outcomes told.

        Random choices depend on the seed, on the number, and on how often it was asked for this number before: a search
        that was resumed proposes as if it had never stopped.

        Args:
            number: Number of the trial.
        """

    def tell(self, outcome: Outcome) -> None:
        """Learn from an outcome.

        Args:
            outcome: Result of a schedule of any proposer, of this study or another. Ablations may lie outside the
                space: a proposer with no use for these ignores them.
        """
