"""Proposers: which schedule to evaluate next.

The engine knows them by the `Proposer` protocol alone.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from search.problem.trial import Proposal

if TYPE_CHECKING:
    from studies import Trial


class Proposer(Protocol):
    """Proposes schedules as grid indices, and learns from the trials of all proposers.

    `search.proposers.testing` has checks that every proposer passes.
    """

    @property
    def name(self) -> str:
        """Label of its trials."""

    @property
    def leads(self) -> bool:
        """True while it knows what the others have still to find out, so that the next trials are better its own."""

    def ask(self, number: int) -> Proposal:
        """Propose a schedule inside the space, with parents among the trials told.

        Random choices depend on the seed, on the number, and on how often it was asked for this number before: a search
        that was resumed proposes as if it had never stopped.

        Args:
            number: Number of the trial.
        """

    def tell(self, trial: Trial) -> None:
        """Learns from a trial that ended with values.

        Args:
            trial: Trial of any proposer, of this study or another. Ablations may lie outside the space: a proposer with
                no use for these ignores them.
        """
