"""A bounded memory of outcomes: the front of them, and the latest."""

from __future__ import annotations

from collections.abc import Iterator

from search.problem.trial import Outcome
from studies.pareto import non_dominated


class OutcomeMemory:
    """Outcomes in the order in which they were told; what it keeps depends on nothing else.

    When it is full it is thinned to half: the best ones, which are the non-dominated of those with the lowest penalty,
    and of the others the latest. Should the best ones alone be too many, those told last stay.

    Args:
        most: How many outcomes it holds at most.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._outcomes: list[Outcome] = []

    def __len__(self) -> int:
        return len(self._outcomes)

    def __iter__(self) -> Iterator[Outcome]:
        return iter(self._outcomes)

    def add(self, outcome: Outcome) -> bool:
        """Take one more; tells whether others were dropped for it."""
        self._outcomes.append(outcome)
        if len(self._outcomes) <= self._most:
            return False
        keep, front = max(1, self._most // 2), set(self._best_places())
        by_worth = sorted(range(len(self._outcomes)), key=lambda place: (place in front, place))
        self._outcomes = [self._outcomes[place] for place in sorted(by_worth[-keep:])]
        return True

    def best(self) -> list[Outcome]:
        """The best ones in the order in which they were told; none only if nothing was told."""
        return [self._outcomes[place] for place in self._best_places()]

    def _best_places(self) -> list[int]:
        if not self._outcomes:
            return []
        lowest = min(outcome.penalty for outcome in self._outcomes)
        peers = [place for place, outcome in enumerate(self._outcomes) if outcome.penalty == lowest]
        best = non_dominated([self._outcomes[place].values for place in peers])
        return [place for place, is_best in zip(peers, best, strict=True) if is_best]
