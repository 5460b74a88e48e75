"""Plans which blocks a search ablates first, so that its proposers know which of them the model can do without."""

from __future__ import annotations

from dataclasses import dataclass

from search.problem.space import ScheduleSpace
from search.problem.trial import GridIndices
from search.proposers.catalogue import learn_from_ablations
from studies.records.study_facts import Ablations

# Fewer groups of neighbours than these tell nothing that a uniform schedule does not.
_FEWEST = 3
# Trials that are left for schedules that follow from the ablations.
_LEFT = 4


@dataclass(frozen=True)
class AblationPlan:
    """The ablations that a search of some length begins with, and what is left out of them.

    Attributes:
        schedules: What is evaluated, see `ScheduleSpace.ablations`.
        n_blocks: Blocks of the model that may skip and that a proposer wants to know of.
        trials: Trials of the search.
        trials_for_each: From how many trials on each block is ablated by itself.
    """

    schedules: tuple[GridIndices, ...]
    n_blocks: int
    trials: int
    trials_for_each: int

    @property
    def left_out(self) -> str:
        """A sentence on what these trials leave out, and how many would not; empty if they leave out nothing."""
        if len(self.schedules) == self.n_blocks:
            return ""
        known = "which blocks the model can spare, the search has to find out by chance"
        if self.schedules:
            known = f"neighbours are ablated together, in {len(self.schedules)} groups, which tells less"
        return (
            f"{self.trials} trials are too few to ablate each of {self.n_blocks} blocks by itself: {known}. "
            f"From --trials {self.trials_for_each} on each block is."
        )

    def record(self) -> Ablations:
        """The plan as a study keeps it."""
        return Ablations(len(self.schedules), self.n_blocks, self.trials, self.trials_for_each, self.left_out)


def plan_ablations(space: ScheduleSpace, trials: int, sampler: str) -> AblationPlan:
    """The ablations of a first search: all of its trials behind the initial schedules, but for a few.

    They are worth more than any other trials: few schedules that follow from what is known are better than many that
    do not. Where they are not enough for each block, neighbours are ablated together. Where no proposer learns from
    ablations, none is made, and none is left out.

    Args:
        space: Where schedules come from.
        trials: Trials of the search.
        sampler: Names of its proposers.
    """
    n_blocks = len(space.ablations()) if learn_from_ablations(sampler) else 0
    n_initial = len(space.initial_design())
    most = trials - n_initial - _LEFT
    schedules = space.ablations(most) if n_blocks and most >= min(_FEWEST, n_blocks) else []
    return AblationPlan(tuple(schedules), n_blocks, trials, n_initial + n_blocks + _LEFT)
