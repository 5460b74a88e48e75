"""Plans the beginning of a search: how much of it goes to the initial design, and to ablations."""

from __future__ import annotations

import math

from search.problem.fidelities import evaluations_of
from search.problem.initial_design import ablations, initial_design, uniform_design
from search.problem.space import ScheduleSpace
from search.problem.trial import GridIndices
from search.proposers.catalogue import learn_from_ablations
from studies.records.study_facts import Ablations

# Fewer groups of neighbours than these tell nothing that a uniform schedule does not.
_FEWEST = 3
# Most of a search that ablations take, and that the initial design takes beyond its uniform schedules.
_MOST_OF_TRIALS, _MOST_OF_DESIGN = 1 / 3, 1 / 5


def plan_ablations(
    space: ScheduleSpace, trials: int, sampler: str, fidelity: float = 1.0
) -> tuple[list[GridIndices], Ablations]:
    """The ablations of a first search: of each gene, if they take no more than a third of its budget.

    Where they would take more, neighbours are ablated together. Where no proposer learns from ablations, none is made,
    and none is left out.

    Args:
        space: Space of schedules.
        trials: Number of trials of the search, in whole evaluations.
        sampler: Names of its proposers.
        fidelity: Share of the search set that ablations are evaluated on.

    Returns:
        The schedules to evaluate, and the record that a study keeps of them.
    """
    n_blocks = len(ablations(space)) if learn_from_ablations(sampler) else 0

    def counted(n_groups: int) -> float:
        return sum(evaluations_of(one, fidelity) for one in ablations(space, n_groups))

    most = next((n for n in range(n_blocks, 0, -1) if counted(n) <= trials * _MOST_OF_TRIALS + 1e-9), 0)
    schedules = ablations(space, most) if most >= min(_FEWEST, n_blocks) and most else []
    whole, left_out = counted(n_blocks) if n_blocks else 0.0, ""
    for_each = math.ceil(whole / _MOST_OF_TRIALS - 1e-9)
    if len(schedules) < n_blocks:
        ablated = "blocks" if space.granularity == "block" else "halves of blocks"
        known = f"which {ablated} the model can spare, the search has to find out by chance"
        if schedules:
            known = f"neighbours are ablated together, in {len(schedules)} groups, which tells less"
        left_out = (
            f"{trials} trials are too few to ablate each of {n_blocks} {ablated} by itself: {known}. "
            f"From --trials {for_each} on each is."
        )
    counts = counted(len(schedules)) if schedules else 0.0
    return schedules, Ablations(len(schedules), n_blocks, trials, for_each, left_out, counts, fidelity)


def plan_design(space: ScheduleSpace, trials: int) -> list[GridIndices]:
    """The initial design of a search of some length: at least the uniform schedules, and of others a fifth of it."""
    uniform, design = uniform_design(space), initial_design(space)
    return design[: max(1, len(uniform)) + math.floor(trials * _MOST_OF_DESIGN)]
