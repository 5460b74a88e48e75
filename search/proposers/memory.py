"""A bounded memory of trials: the front of them, and the latest."""

from __future__ import annotations

from collections.abc import Iterator

from studies import Trial
from studies.pareto import non_dominated


class TrialMemory:
    """Trials in the order in which they were told; what it keeps depends on nothing else.

    When it is full it is thinned to half: the best ones, which are the non-dominated of those with the lowest
    constraint violation, and of the others the latest. Should the best ones alone be too many, those told last stay.

    Args:
        most: Most trials that it holds.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._trials: list[Trial] = []

    def __len__(self) -> int:
        return len(self._trials)

    def __iter__(self) -> Iterator[Trial]:
        return iter(self._trials)

    def add(self, trial: Trial) -> bool:
        """Adds a trial; True if others were dropped for it."""
        self._trials.append(trial)
        if len(self._trials) <= self._most:
            return False
        keep, front = max(1, self._most // 2), set(self._best_places())
        by_worth = sorted(range(len(self._trials)), key=lambda place: (place in front, place))
        self._trials = [self._trials[place] for place in sorted(by_worth[-keep:])]
        return True

    def best(self) -> list[Trial]:
        """The best ones in the order in which they were told; none only if nothing was told."""
        return [self._trials[place] for place in self._best_places()]

    def _best_places(self) -> list[int]:
        if not self._trials:
            return []
        lowest = min(trial.total_violation for trial in self._trials)
        peers = [place for place, trial in enumerate(self._trials) if trial.total_violation == lowest]
        best = non_dominated([self._trials[place].values or () for place in peers])
        return [place for place, is_best in zip(peers, best, strict=True) if is_best]
