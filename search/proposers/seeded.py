"""The base of proposers whose random choices follow from a seed and the number of the trial."""

from __future__ import annotations

import random
from collections.abc import Sequence

from search.problem.space import ScheduleSpace
from search.problem.trial import GridIndices, Proposal
from studies import Trial


class SeededProposer:
    """Proposes what its subclass does, and random schedules where that proposes nothing.

    Args:
        name: Name of the proposer.
        space: Space of schedules.
        seed: Seed of all random choices.
    """

    # A model that answers so often with what is known already has run dry for this trial.
    _most_repeats: float = 8

    def __init__(self, name: str, space: ScheduleSpace, seed: int) -> None:
        self.name = name
        self._space = space
        self._seed = seed
        self._number = -1
        # How often a schedule was proposed for this trial before.
        self._repeats = 0

    @property
    def leads(self) -> bool:
        """See `Proposer.leads`."""
        return False

    def ask(self, number: int) -> Proposal:
        """See `Proposer.ask`."""
        self._repeats = self._repeats + 1 if number == self._number else 0
        self._number = number
        rng = random.Random(f"{self.name}/{self._seed}/{number}/{self._repeats}")
        proposal = self._propose(number, rng) if self._repeats < self._most_repeats else None
        return proposal or Proposal(self._space.sample(rng))

    def tell(self, trial: Trial) -> None:
        """See `Proposer.tell`."""
        if trial.is_finite and self._space.contains(self._space.grid_indices(trial.schedule)):
            self._learn(trial)

    def _propose(self, number: int, rng: random.Random) -> Proposal | None:
        """A schedule; None while a random one is as good."""
        return None

    def _learn(self, trial: Trial) -> None:
        """Learns from a trial inside the space that ended with finite values."""

    def _repaired(
        self, numbers: Sequence[float], rng: random.Random, parents: tuple[GridIndices, ...] = ()
    ) -> Proposal:
        """The schedule nearest to numbers of the free blocks."""
        return Proposal(self._space.repair(self._space.on_all_genes(numbers), rng), parents)


def draw_seed(rng: random.Random) -> int:
    """A seed for another generator."""
    return rng.randrange(2**32)
