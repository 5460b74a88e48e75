"""Stops trials that do badly on the first part of the search set: successive halving without generations."""

from __future__ import annotations

import warnings
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from search.problem.trial import Values
from studies.pareto import dominations

if TYPE_CHECKING:
    import optuna

# How many earlier trials a rung compares with, and how few are not enough.
_WINDOW = 256
_FEWEST = 8


class Pruner(ABC):
    """Decides after each rung, a fidelity below 1, whether a trial goes on.

    It knows the objective values of the latest trials at each rung; values are compared within a rung alone.

    Args:
        lag: Trial n is compared with trials up to n - lag, so that decisions do not depend on the order of their ends.
    """

    def __init__(self, lag: int | None = None) -> None:
        self._lag = lag
        self._seen: dict[int, deque[tuple[int, Values]]] = {}

    @abstractmethod
    def goes_on(self, number: int, rung: int, values: Values) -> bool:
        """True if trial `number` goes on, after its values at a rung."""

    def saw(self, number: int, rung: int, values: Values) -> None:
        """Keeps what a trial was worth at a rung, in this run of the study or an earlier one."""
        most = _WINDOW + 2 * (self._lag or 0)
        self._seen.setdefault(rung, deque(maxlen=most)).append((number, values))

    def dominated_shares(self, number: int, rung: int, values: Values) -> tuple[float, Sequence[float]]:
        """Share of the earlier trials that dominate the values, and likewise for each of those trials."""
        seen: Iterable[tuple[int, Values]] = self._seen.get(rung, ())
        if self._lag is not None:
            latest = number - self._lag
            seen = sorted(one for one in seen if one[0] <= latest)
        others = [worth for _, worth in seen][-_WINDOW:]
        if not others:
            return 0.0, ()
        shares = dominations([values, *others])[1:].sum(0) / len(others)
        return float(shares[0]), shares[1:].tolist()


class ParetoHalving(Pruner):
    """Asynchronous successive halving (Li et al. 2020, ASHA) for several objectives.

    A trial goes on if it is among the best 1/eta of the latest trials at its rung; of several objectives, the one that
    fewer others dominate is better.

    Args:
        eta: One in eta trials goes on.
        lag: See `Pruner`.
    """

    def __init__(self, eta: float = 2.0, lag: int | None = None) -> None:
        super().__init__(lag)
        self._eta = eta

    def goes_on(self, number: int, rung: int, values: Values) -> bool:
        """See `Pruner.goes_on`."""
        own, others = self.dominated_shares(number, rung, values)
        self.saw(number, rung, values)
        if len(others) < _FEWEST:
            return True
        better = sum(other < own for other in others)
        return better < max(1.0, len(others) / self._eta)


class OptunaPruning(Pruner):
    """Leaves the decision to one of Optuna's pruners.

    They know one number a step (`trial.report`): here the share of the latest trials that dominate this one at the
    same fidelity.

    Args:
        pruner: Any of Optuna's.
        n_rungs: Fidelities below 1.
    """

    def __init__(self, pruner: optuna.pruners.BasePruner, n_rungs: int) -> None:
        import optuna

        optuna.logging.set_verbosity(optuna.logging.WARNING)
        super().__init__()
        self._last = n_rungs - 1
        self._study = optuna.create_study(direction="minimize", pruner=pruner)
        self._trials: dict[int, optuna.Trial] = {}

    def goes_on(self, number: int, rung: int, values: Values) -> bool:
        """See `Pruner.goes_on`."""
        import optuna

        share, _ = self.dominated_shares(number, rung, values)
        self.saw(number, rung, values)
        trial = self._trials.pop(number, None) or self._study.ask()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            # Steps count from 1 here, since pruners wait for so many of them.
            trial.report(share, rung + 1)
            stops = trial.should_prune()
        if stops:
            self._study.tell(trial, state=optuna.trial.TrialState.PRUNED)
        elif rung < self._last:
            self._trials[number] = trial
        else:
            self._study.tell(trial, share)
        return not stops
