"""In spaces of many genes, TPE and CMA-ES propose curves over depth, and keep what every proposer has to."""

from __future__ import annotations

import random

import pytest

from search.problem.curves import DepthCurves
from search.problem.space import ScheduleSpace
from search.proposers.catalogue import PROPOSERS
from search.proposers.testing import drive, objectives, told_of

SPACES = {
    "target": ScheduleSpace(30, 0.3),
    "open": ScheduleSpace(30),
    "halves": ScheduleSpace(16, 0.3, granularity="half"),
    "dense blocks": ScheduleSpace(30, 0.3, dense_blocks=(0, 11, -1)),
}


@pytest.mark.parametrize("name", ["tpe", "cmaes"])
@pytest.mark.parametrize("kind", SPACES)
def test_proposals_lie_inside_and_go_on_as_if_never_stopped(name: str, kind: str) -> None:
    space = SPACES[kind]
    first = PROPOSERS[name](space, 3)
    told = drive(first, 50)
    assert all(map(space.contains, told))
    resumed = PROPOSERS[name](space, 3)
    for indices in told:
        resumed.tell(told_of(indices, objectives(indices)))
    asked = [first.ask(50) for _ in range(3)]
    assert asked == [resumed.ask(50) for _ in range(3)]
    assert len({one.grid_indices for one in asked}) > 1
    assert told != drive(PROPOSERS[name](space, 4), 50)


@pytest.mark.parametrize("name", ["tpe", "cmaes"])
def test_they_propose_what_few_numbers_describe(name: str) -> None:
    space = SPACES["open"]
    curves, proposer = DepthCurves(space), PROPOSERS[name](space, 0)
    drive(proposer, 40)
    for number in range(40, 45):
        indices = proposer.ask(number).grid_indices
        again = curves.schedule(curves.numbers(indices), random.Random(0))
        assert max(abs(own - near) for own, near in zip(indices, again, strict=True)) <= 2
        proposer.tell(told_of(indices, objectives(indices)))
