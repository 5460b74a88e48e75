"""The search loop: ask proposers, keep evaluators busy, hand every result on as it arrives."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from ftp_core.schedule import SparsitySchedule
from search.evaluators import Evaluation, Evaluator
from search.proposers import Proposer
from search.space import ScheduleSpace

_PATIENCE = 20


@dataclass(frozen=True)
class Known:
    """A schedule that the study has evaluated.

    Attributes:
        schedule: What was evaluated.
        values: Its objective values; None if it failed.
    """

    schedule: SparsitySchedule
    values: tuple[float, ...] | None


class SearchEngine:
    """Asynchronous ask and tell: no generation barrier, no schedule evaluated twice.

    Args:
        space: Where schedules come from.
        proposers: They take turns; each learns from every result.
        evaluator: Where schedules are evaluated.
        objectives: Turns an evaluation into objective values, lower is better.
        known: What the study has evaluated already.
        seed: Of the draws that stand in for proposals that repeat.
    """

    def __init__(
        self,
        space: ScheduleSpace,
        proposers: Sequence[Proposer],
        evaluator: Evaluator,
        objectives: Callable[[Evaluation], tuple[float, ...]],
        known: Sequence[Known] = (),
        seed: int = 0,
    ) -> None:
        self._space = space
        self._proposers = proposers
        self._evaluator = evaluator
        self._objectives = objectives
        self._rng = random.Random(seed)
        self._seen: set[tuple[int, ...]] = set()
        self._turn = 0
        for trial in known:
            levels = space.levels(trial.schedule)
            self._seen.add(levels)
            if trial.values is not None:
                self._tell(levels, trial.values)

    def run(self, budget: int, on_result: Callable[[Evaluation, str, tuple[float, ...] | None], None]) -> int:
        """Evaluate up to `budget` new schedules.

        Args:
            budget: How many.
            on_result: Called with each evaluation, its proposer's name, and its objective values (None if it failed),
                before anyone learns from it.

        Returns:
            How many were evaluated: fewer than the budget only if the space is exhausted.
        """
        in_flight: dict[tuple[int, ...], str] = {}
        done = 0
        while done < budget:
            while len(in_flight) < min(self._evaluator.capacity, budget - done):
                proposal = self._propose()
                if proposal is None:
                    break
                levels, name = proposal
                self._seen.add(levels)
                in_flight[levels] = name
                self._evaluator.submit(self._space.schedule(levels))
            if not in_flight:
                break
            evaluation = self._evaluator.next_result()
            levels = self._space.levels(evaluation.schedule)
            values = None if evaluation.error else self._objectives(evaluation)
            on_result(evaluation, in_flight.pop(levels), values)
            if values is not None:
                self._tell(levels, values)
            done += 1
        return done

    def _propose(self) -> tuple[tuple[int, ...], str] | None:
        """A schedule nobody has seen, and whose it is; None when none can be found."""
        for _ in range(len(self._proposers)):
            proposer = self._proposers[self._turn % len(self._proposers)]
            self._turn += 1
            for _ in range(_PATIENCE):
                levels = proposer.ask()
                if levels not in self._seen:
                    return levels, proposer.name
        for _ in range(50 * _PATIENCE):
            levels = self._space.sample(self._rng)
            if levels not in self._seen:
                return levels, "random"
        return None

    def _tell(self, levels: tuple[int, ...], values: tuple[float, ...]) -> None:
        for proposer in self._proposers:
            proposer.tell(levels, values)
