"""One suite for every proposer: proposals lie inside the space, follow the seed, and get better with results."""

from __future__ import annotations

import random
from collections.abc import Callable
from itertools import pairwise

import moocore
import pytest

from search.proposers import Proposer
from search.proposers.genetic import GeneticProposer
from search.proposers.sampled import SampledProposer
from search.space import ScheduleSpace

PROPOSERS: dict[str, Callable[[ScheduleSpace, int], Proposer]] = {"deap": GeneticProposer, "tpe": SampledProposer}
# Skipping in an early block hurts more: the best schedules are those that ascend.
HARM = (8.0, 4.0, 2.0, 1.0, 0.5, 0.25)


def objectives(levels: tuple[int, ...]) -> tuple[float, float]:
    kl = sum(harm * (level / 19) ** 2 for harm, level in zip(HARM, levels, strict=True))
    return kl, sum(20.0 - level for level in levels)


def drive(proposer: Proposer, n: int) -> list[tuple[int, ...]]:
    proposals = []
    for number in range(n):
        levels = proposer.ask(number)
        proposer.tell(levels, objectives(levels))
        proposals.append(levels)
    return proposals


def hypervolume(proposals: list[tuple[int, ...]]) -> float:
    return float(moocore.hypervolume([objectives(levels) for levels in proposals], ref=[16.0, 120.0]))


@pytest.fixture(params=list(PROPOSERS))
def make(request: pytest.FixtureRequest) -> Callable[[ScheduleSpace, int], Proposer]:
    return PROPOSERS[request.param]


def test_proposals_lie_inside_the_space(make: Callable[[ScheduleSpace, int], Proposer]) -> None:
    for target in (None, 0.3):
        space = ScheduleSpace(len(HARM), target)
        for levels in drive(make(space, 0), 60):
            assert len(levels) == len(HARM) and all(0 <= level <= space.top for level in levels)
            assert target is None or sum(levels) == space.target_total


def test_the_same_seed_proposes_the_same(make: Callable[[ScheduleSpace, int], Proposer]) -> None:
    space = ScheduleSpace(len(HARM))
    random.seed(1)
    one = drive(make(space, 7), 50)
    random.seed(2)
    assert one == drive(make(space, 7), 50)
    assert one != drive(make(space, 8), 50)


def test_proposing_leaves_the_global_random_state_alone(make: Callable[[ScheduleSpace, int], Proposer]) -> None:
    random.seed(5)
    expected = [random.random() for _ in range(3)]
    random.seed(5)
    drive(make(ScheduleSpace(len(HARM)), 0), 40)
    assert [random.random() for _ in range(3)] == expected


def test_it_beats_random_search(make: Callable[[ScheduleSpace, int], Proposer]) -> None:
    space = ScheduleSpace(len(HARM))
    ours = sorted(hypervolume(drive(make(space, seed), 150)) for seed in range(3))[1]
    blind = []
    for seed in range(3):
        rng = random.Random(seed)
        blind.append(hypervolume([space.sample(rng) for _ in range(150)]))
    assert ours > sorted(blind)[1]


def test_it_learns_from_results_of_others(make: Callable[[ScheduleSpace, int], Proposer]) -> None:
    space, rng = ScheduleSpace(len(HARM)), random.Random(0)
    proposer = make(space, 0)
    # Others found that only the last block may skip.
    for _ in range(60):
        levels = (0, 0, 0, 0, 0, rng.randint(0, 19))
        proposer.tell(levels, (0.0, float(-levels[-1])))
    for _ in range(60):
        levels = space.sample(rng)
        proposer.tell(levels, (100.0, 100.0))
    asked = [proposer.ask(number) for number in range(40)]
    told = [levels for levels in asked if levels not in space.anchors()]
    ascending = sum(sum(levels[:-1]) < 5 * 4 for levels in told)
    assert ascending > len(told) / 2


def test_genetic_search_starts_with_dense_and_uniform_schedules() -> None:
    proposer = GeneticProposer(ScheduleSpace(4), 0)
    first = [proposer.ask(number) for number in range(8)]
    assert first[0] == (0, 0, 0, 0)
    assert all(len(set(levels)) == 1 for levels in first)
    assert all(one < other for one, other in pairwise(first))
