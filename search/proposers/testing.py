"""Checks that every proposer passes, for the tests of those that others write."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence

import numpy as np
import torch

from ftp_core.schedule import DEFAULT_STEP, SparsitySchedule
from search.problem.cost_limit import CostLimit
from search.problem.initial_design import ablations
from search.problem.space import ScheduleSpace
from search.problem.trial import GridIndices, Values
from search.proposers import Proposer
from search.proposers.catalogue import ProposerFactory
from studies import Trial, TrialState

# KL that a block adds where it skips all it may: the best schedules ascend.
SENSITIVITIES = (8.0, 4.0, 2.0, 1.0, 0.5, 0.25)
N_BLOCKS = len(SENSITIVITIES)


def _ms(schedule: SparsitySchedule) -> float:
    """Made-up latency."""
    return 10.0 - 5.0 * sum(schedule)


SPACES = {
    "free": ScheduleSpace(N_BLOCKS),
    "target": ScheduleSpace(N_BLOCKS, 0.3),
    "dense": ScheduleSpace(N_BLOCKS, dense_blocks=(0, -1)),
    "dense, target": ScheduleSpace(N_BLOCKS, 0.3, dense_blocks=(0, -1)),
    "latency": ScheduleSpace(N_BLOCKS, limits=(CostLimit("max_latency_ms", 4.0, _ms, 10.0),)),
    "speed-up": ScheduleSpace(N_BLOCKS, limits=(CostLimit("target_speedup", 1.6, _ms, 10.0),)),
    "halves": ScheduleSpace(N_BLOCKS // 2, granularity="half", kv="keep"),
    "halves, target": ScheduleSpace(N_BLOCKS // 2, 0.3, granularity="half"),
    "one block": ScheduleSpace(N_BLOCKS, dense_blocks=(0, 1, 2, 3, 4)),
    "no block": ScheduleSpace(2, dense_blocks=(0, 1)),
}


def objectives(indices: GridIndices) -> Values:
    """KL and cost of a made-up model."""
    kl = sum(most * (index / 19) ** 2 for most, index in zip(SENSITIVITIES, indices, strict=False))
    return kl, sum(20.0 - index for index in indices)


def told_of(
    indices: Sequence[int],
    values: tuple[float, ...],
    violation: float = 0.0,
    fidelity: float = 1.0,
    step: float = DEFAULT_STEP,
) -> Trial:
    """A trial as proposers are told of it."""
    state = TrialState.FINISHED if fidelity == 1.0 else TrialState.PRUNED
    schedule = SparsitySchedule.from_grid_indices(indices, step)
    return Trial(0, schedule, "", state=state, values=values, constraint_violation=violation, fidelity=fidelity)


def drive(
    proposer: Proposer,
    n: int,
    violation: Callable[[GridIndices], float] = lambda _: 0.0,
    step: float = DEFAULT_STEP,
) -> list[GridIndices]:
    """The proposals for the first trials, each of which is told before the next one is asked for."""
    proposals: list[GridIndices] = []
    for number in range(n):
        indices = proposer.ask(number).grid_indices
        proposer.tell(told_of(indices, objectives(indices), violation(indices), step=step))
        proposals.append(indices)
    return proposals


def check_space(factory: ProposerFactory, n: int = 40) -> None:
    """Proposals lie inside the space, whatever its constraints."""
    for kind, space in SPACES.items():
        outside = [indices for indices in drive(factory(space, 0), n) if not space.contains(indices)]
        assert not outside, f"outside the space ({kind}): {outside[:3]}"


def check_seed(factory: ProposerFactory, n: int = 45) -> None:
    """Proposals follow from the seed; global generators of random numbers stay as they are."""
    space = SPACES["free"]
    _seed_everything(1)
    before = _states()
    first = drive(factory(space, 7), n)
    assert before == _states(), "a global generator of random numbers was used"
    _seed_everything(2)
    assert first == drive(factory(space, 7), n), "the same seed proposes something else"
    assert first != drive(factory(space, 8), n), "another seed proposes the same"


def check_repeats(factory: ProposerFactory, n: int = 40) -> None:
    """Asked again for the same trial, it proposes something else."""
    proposer = factory(SPACES["free"], 0)
    drive(proposer, n)
    assert len({proposer.ask(n).grid_indices for _ in range(4)}) > 1, "four times the same schedule for one trial"


def check_resumed(factory: ProposerFactory, n: int = 75) -> None:
    """Made anew and told of the same trials, it goes on as if it had never stopped."""
    for kind in ("free", "target"):
        first = factory(SPACES[kind], 5)
        told = drive(first, n, _violation)
        resumed = factory(SPACES[kind], 5)
        for indices in told:
            resumed.tell(told_of(indices, objectives(indices), _violation(indices)))
        for _ in range(2):
            assert first.ask(n) == resumed.ask(n), f"resumed, it proposes something else ({kind})"


def check_parents(factory: ProposerFactory, n: int = 90) -> None:
    """Parents are schedules that were told, each once."""
    for kind in ("free", "dense, target"):
        proposer, told = factory(SPACES[kind], 0), set[GridIndices]()
        for number in range(n):
            proposal = proposer.ask(number)
            assert set(proposal.parents) <= told, f"parents of trial {number} were never told ({kind})"
            assert len(set(proposal.parents)) == len(proposal.parents), f"trial {number} names a parent twice ({kind})"
            proposer.tell(told_of(proposal.grid_indices, objectives(proposal.grid_indices)))
            told.add(proposal.grid_indices)


def check_ablations(factory: ProposerFactory, n: int = 60) -> None:
    """Ablations off the target lead to no proposal outside the space."""
    space = SPACES["dense, target"]
    proposer, planned = factory(space, 0), ablations(space)
    for indices in planned:
        proposer.tell(told_of(indices, objectives(indices), space.constraint_violation(indices)))
    for number in range(len(planned), n):
        proposal = proposer.ask(number)
        assert space.contains(proposal.grid_indices), f"outside the space: {proposal.grid_indices}"
        assert not set(proposal.parents) & set(planned), "an ablation outside the space is a parent"
        proposer.tell(told_of(proposal.grid_indices, objectives(proposal.grid_indices)))


CHECKS = (check_space, check_seed, check_repeats, check_resumed, check_parents, check_ablations)
"""All checks; each takes the factory of a proposer, and how many trials to drive it for."""


def _violation(indices: GridIndices) -> float:
    return max(0.0, indices[-1] - 15.0)


def _seed_everything(seed: int) -> None:
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


def _states() -> tuple[object, ...]:
    return random.getstate(), np.random.get_state(legacy=True)[1].tolist(), torch.get_rng_state().tolist()  # type: ignore[index]
