"""A proposer around a model of schedules: repeats, repair and random stand-ins are the same for all of them."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from search.problem.space import ScheduleSpace
from search.problem.trial import GridIndices, Proposal
from studies import Trial

# A model that answers so often with what is known already has run dry for this trial.
_MOST_REPEATS = 8


@dataclass(frozen=True, slots=True)
class Draft:
    """A proposal of a model, before repair.

    Attributes:
        indices: Grid indices of the free blocks; any numbers.
        parents: See `Proposal.parents`.
    """

    grid_indices: Sequence[float]
    parents: tuple[GridIndices, ...] = ()


class ScheduleModel(Protocol):
    """Proposes grid indices of the free blocks."""

    def propose(self, number: int, repeats: int, rng: random.Random) -> Draft | None:
        """Draft a schedule.

        Args:
            number: Number of the trial.
            repeats: How often a schedule was drafted for this trial before.
            rng: Source of randomness, seeded by both.

        Returns:
            None while a random schedule is as good.
        """

    def tell(self, trial: Trial) -> None:
        """Learns from a trial inside the space that ended with finite values."""


class ModelProposer:
    """Proposes what a model drafts, repaired, and random schedules where it drafts nothing.

    Args:
        name: Name of the proposer.
        space: Space of schedules; one in which no block may skip needs no model.
        seed: Seed of all random choices.
        model: The model; None where no block may skip.
    """

    leads = False

    def __init__(self, name: str, space: ScheduleSpace, seed: int, model: ScheduleModel | None) -> None:
        self.name = name
        self._space = space
        self._seed = seed
        self._model = model
        self._number = -1
        self._repeats = 0

    def ask(self, number: int) -> Proposal:
        """See `Proposer.ask`."""
        self._repeats = self._repeats + 1 if number == self._number else 0
        self._number = number
        rng = random.Random(f"{self.name}/{self._seed}/{number}/{self._repeats}")
        if self._model is None:
            return Proposal(self._space.repair([0] * self._space.n_blocks, rng))
        draft = self._model.propose(number, self._repeats, rng) if self._repeats < _MOST_REPEATS else None
        if draft is None:
            return Proposal(self._space.sample(rng))
        indices: list[float] = [0] * self._space.n_blocks
        for block, index in zip(self._space.free_blocks, draft.grid_indices, strict=True):
            indices[block] = index
        return Proposal(self._space.repair(indices, rng), draft.parents)

    def tell(self, trial: Trial) -> None:
        """See `Proposer.tell`."""
        if (
            self._model is not None
            and trial.is_finite
            and self._space.contains(self._space.grid_indices(trial.schedule))
        ):
            self._model.tell(trial)


def draw_seed(rng: random.Random) -> int:
    """A seed for another generator."""
    return rng.randrange(2**32)
