"""Shares trials out among proposers: most go to those that have lately made the front grow fastest."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import replace

from search.proposers import Proposer
from search.proposers.proposer_stats import ProposerStatistics
from studies import Trial

# Share of the time that is spread evenly, so that none starves: one that is bad now may be good later.
FLOOR = 0.3
# What is left of a credit after each further trial: about the last fifty count.
_MEMORY = 0.98
# Trials of each proposer before credit counts.
_TRIES = 4
# Sharpens the shares: with 1 a proposer that is twice as good would get twice the trials.
_EXPONENT = 2.0


class Portfolio:
    """A bandit over proposers (probability matching with a floor), which all learn from every outcome.

    The credit of a proposer is the hypervolume that its trials added to the front lately, per second that they took:
    its own time to propose counts with theirs to run.

    Args:
        proposers: Proposers that take part.
        seed: Seed of the choices.
        statistics: Earlier statistics of the study's proposers, by name, which are continued.
        by_trial: True for credit per trial and not per second, so that choices do not depend on the clock.
    """

    def __init__(
        self,
        proposers: Sequence[Proposer],
        seed: int,
        statistics: Mapping[str, ProposerStatistics] | None = None,
        by_trial: bool = False,
    ) -> None:
        self._proposers = {proposer.name: proposer for proposer in proposers}
        self._seed = seed
        self._by_trial = by_trial
        self._gains = dict.fromkeys(self._proposers, 0.0)
        self._costs = dict.fromkeys(self._proposers, 0.0)
        self._counts = dict.fromkeys(self._proposers, 0.0)
        self._tries = dict.fromkeys(self._proposers, 0)
        self.statistics = {name: ProposerStatistics() for name in self._proposers}
        self.statistics |= {name: replace(known) for name, known in (statistics or {}).items()}

    def in_turn(self, number: int) -> list[Proposer]:
        """All proposers in the order in which they are to be asked for trial `number`.

        The first is drawn by credit, unless one leads; the others stand in for it, should it have nothing new to say.
        """
        rng = random.Random(f"{self._seed}/portfolio/{number}")
        names, shares = list(self._proposers), self.shares()
        leading = [name for name, proposer in self._proposers.items() if proposer.leads]
        [first] = leading[:1] or rng.choices(names, [shares[name] for name in names])
        return [self._proposers[first], *(self._proposers[name] for name in names if name != first)]

    def shares(self) -> dict[str, float]:
        """The share of trials that each proposer gets now."""
        n = len(self._proposers)
        even = dict.fromkeys(self._proposers, 1.0 / n)
        if min(self._tries.values()) < _TRIES:
            return even
        # As many seconds for each: one whose trials take twice as long gets half as many of them.
        floor = _parts({name: self._counts[name] / max(self._costs[name], 1e-9) for name in self._proposers})
        rates = {name: self._gains[name] / max(self._costs[name], 1e-9) for name in self._proposers}
        best = max(rates.values())
        if best <= 0:
            return floor
        merit = _parts({name: (rate / best) ** _EXPONENT for name, rate in rates.items()})
        return {name: FLOOR * floor[name] + (1 - FLOOR) * merit[name] for name in self._proposers}

    def credit(self, name: str, gain: float, seconds: float) -> None:
        """Note what a trial of a proposer added to the front, and what it took.

        Args:
            name: Name of the proposer; others than those of the portfolio are left out.
            gain: Share of hypervolume that it added.
            seconds: Time that its evaluation took.
        """
        if name not in self._proposers:
            return
        for other in self._proposers:
            self._gains[other] *= _MEMORY
            self._costs[other] *= _MEMORY
            self._counts[other] *= _MEMORY
        own = self.statistics[name]
        self._gains[name] += gain
        self._costs[name] += 1.0 if self._by_trial else seconds + own.seconds / max(1, own.asked)
        self._counts[name] += 1.0
        self._tries[name] += 1
        shares = self.shares()
        for other in self._proposers:
            self.statistics[other].share = shares[other]
        own.gain += gain

    def learn(self, trial: Trial) -> None:
        """Tell every proposer."""
        for proposer in self._proposers.values():
            proposer.tell(trial)

    def statistics_of(self, name: str) -> ProposerStatistics:
        """Statistics of a proposer, or of another source of trials."""
        return self.statistics.setdefault(name, ProposerStatistics())


def _parts(weights: Mapping[str, float]) -> dict[str, float]:
    """Weights as shares of their sum."""
    total = sum(weights.values())
    return {name: weight / total for name, weight in weights.items()}
