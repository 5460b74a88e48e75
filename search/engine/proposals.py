"""Chooses the next schedule of a search: initial design, ablations, then the proposers in turn."""

from __future__ import annotations

import random
import time
from collections.abc import Sequence

from search.engine.portfolio import Portfolio
from search.problem.initial_design import initial_design
from search.problem.space import ScheduleSpace
from search.problem.trial import GridIndices, Proposal
from search.proposers import Proposer
from studies import Trial
from studies.records.trial import ABLATION, INITIAL_DESIGN

_PATIENCE = 20
# Label of random schedules that replace proposals where proposers only repeat themselves.
SAMPLE = "sample"


class Proposals:
    """Proposes no schedule twice, and knows the trials that schedules were evaluated in.

    Memory holds of every schedule that was seen its hash and its trial's number: two integers.

    Args:
        space: Space of schedules.
        portfolio: Proposers, among which trials are shared out.
        seed: Seed of the random schedules that replace repeated proposals.
        warm_front: Schedules from elsewhere that are tried first.
        ablations: Schedules that are evaluated early for what proposers learn from them.
        design: Schedules that are tried first; None for `initial_design`.
    """

    def __init__(
        self,
        space: ScheduleSpace,
        portfolio: Portfolio,
        seed: int,
        warm_front: Sequence[GridIndices],
        ablations: Sequence[GridIndices] = (),
        design: Sequence[GridIndices] | None = None,
    ) -> None:
        self._space = space
        self._portfolio = portfolio
        self._seed = seed
        # By hash of the grid indices: the trial that proposers learned them from, if they did by now.
        self._seen: dict[int, int | None] = {}
        self._warm: dict[int, int] = {}
        # The shortened prompt comes first; then ablations, so that they are known when proposers have their say.
        found = initial_design(space) if design is None else list(design)
        self._firsts = [Proposal(indices) for indices in found[:1]]
        self._firsts += [Proposal(indices, (indices,)) for indices in warm_front]
        self._ablations = list(ablations)
        self._seconds = [Proposal(indices) for indices in found[1:]]

    def next(self, number: int) -> Trial | None:
        """The trial of a schedule not seen before, under the number that it should get; None if none is found."""
        if (first := self._next_new(self._firsts)) is not None:
            return self._trial(number, INITIAL_DESIGN, first)
        while self._ablations:
            ablation = self._ablations.pop(0)
            if not self._has_seen(ablation):
                return self._trial(number, ABLATION, Proposal(ablation))
        if (second := self._next_new(self._seconds)) is not None:
            return self._trial(number, INITIAL_DESIGN, second)
        for proposer in self._portfolio.in_turn(number):
            for _ in range(_PATIENCE):
                proposal = self._ask(proposer, number)
                if not self._has_seen(proposal.grid_indices):
                    return self._trial(number, proposer.name, proposal)
                self._portfolio.statistics_of(proposer.name).repeated += 1
        rng, statistics = random.Random(f"{self._seed}/{number}"), self._portfolio.statistics_of(SAMPLE)
        for _ in range(50 * _PATIENCE):
            indices = self._space.sample(rng)
            statistics.asked += 1
            if not self._has_seen(indices):
                return self._trial(number, SAMPLE, Proposal(indices))
            statistics.repeated += 1
        return None

    def see(self, indices: GridIndices) -> None:
        """Notes that a schedule is evaluated, or was."""
        self._seen.setdefault(hash(indices))

    def learn(self, trial: Trial, is_own: bool = True) -> None:
        """Tells every proposer of a trial; one of this study can be named as a parent of others from now on.

        A trial whose schedule is none of the space, as of an earlier grid, would be taken for another one: it is left
        out.
        """
        if not self._space.expresses(trial.schedule):
            return
        indices = self._space.grid_indices(trial.schedule)
        self._portfolio.learn(trial)
        if is_own:
            (self._seen if hash(indices) in self._seen else self._warm)[hash(indices)] = trial.number

    def _trial(self, number: int, proposer: str, proposal: Proposal) -> Trial:
        self.see(proposal.grid_indices)
        # Trials elsewhere have no number in this study.
        parents = tuple(parent for parent in map(self._number, proposal.parents) if parent is not None)
        return Trial(number, self._space.schedule(proposal.grid_indices), proposer, parents)

    def _next_new(self, proposals: list[Proposal]) -> Proposal | None:
        """The first schedule of a list that is inside the space and was not seen; those before it are dropped."""
        while proposals:
            first = proposals.pop(0)
            if not self._has_seen(first.grid_indices) and self._space.contains(first.grid_indices):
                return first
        return None

    def _ask(self, proposer: Proposer, number: int) -> Proposal:
        statistics = self._portfolio.statistics_of(proposer.name)
        began = time.perf_counter()
        proposal = proposer.ask(number)
        statistics.seconds += time.perf_counter() - began
        statistics.asked += 1
        return proposal

    def _number(self, indices: GridIndices) -> int | None:
        number = self._seen.get(hash(indices))
        # Before the trial here has ended, it is the one that was known before.
        return self._warm.get(hash(indices)) if number is None else number

    def _has_seen(self, indices: GridIndices) -> bool:
        return hash(indices) in self._seen
