"""Plans the ablations that a search begins with, which tell its proposers what blocks the model can do without."""

from __future__ import annotations

from search.problem.space import ScheduleSpace
from search.problem.trial import GridIndices
from search.proposers.catalogue import learn_from_ablations
from studies.records.study_facts import Ablations

# Fewer groups of neighbours than these tell nothing that a uniform schedule does not.
_FEWEST = 3
# Trials that are left for schedules that follow from the ablations.
_LEFT = 4


def plan_ablations(space: ScheduleSpace, trials: int, sampler: str) -> tuple[list[GridIndices], Ablations]:
    """The ablations of a first search: all of its trials behind the initial schedules, but for a few.

    They are worth more than any other trials: few schedules that follow from what is known are better than many that
    do not. Where they are not enough for each block, neighbours are ablated together. Where no proposer learns from
    ablations, none is made, and none is left out.

    Args:
        space: Space of schedules.
        trials: Number of trials of the search.
        sampler: Names of its proposers.

    Returns:
        The schedules to evaluate, and the record that a study keeps of them.
    """
    n_blocks = len(space.ablations()) if learn_from_ablations(sampler) else 0
    n_initial = len(space.initial_design())
    most = trials - n_initial - _LEFT
    schedules = space.ablations(most) if n_blocks and most >= min(_FEWEST, n_blocks) else []
    for_each, left_out = n_initial + n_blocks + _LEFT, ""
    if len(schedules) < n_blocks:
        known = "which blocks the model can spare, the search has to find out by chance"
        if schedules:
            known = f"neighbours are ablated together, in {len(schedules)} groups, which tells less"
        left_out = (
            f"{trials} trials are too few to ablate each of {n_blocks} blocks by itself: {known}. "
            f"From --trials {for_each} on each block is."
        )
    return schedules, Ablations(len(schedules), n_blocks, trials, for_each, left_out)
