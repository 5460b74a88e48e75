"""Proposals from an Optuna sampler."""

from __future__ import annotations

import random
import warnings
from collections.abc import Callable, Sequence

import optuna
from optuna.samplers import BaseSampler, TPESampler
from optuna.trial import TrialState

from search.space import ScheduleSpace


class SampledProposer:
    """Asks an Optuna sampler for one integer level per block.

    Args:
        space: Where schedules come from.
        seed: Of all random choices.
        sampler: Makes the sampler from a seed; by default multi-objective TPE (Ozaki et al. 2022).
    """

    name = "tpe"

    def __init__(self, space: ScheduleSpace, seed: int, sampler: Callable[[int], BaseSampler] | None = None) -> None:
        self._space = space
        self._seed = seed
        self._number = -1
        self._rng = random.Random(seed)
        self._sampler = sampler or (lambda seed: TPESampler(seed=seed, n_startup_trials=16))
        distribution = optuna.distributions.IntDistribution(0, space.top)
        self._distributions: dict[str, optuna.distributions.BaseDistribution] = {
            f"s_{index}": distribution for index in range(space.n_blocks)
        }
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self._study = optuna.create_study(directions=["minimize", "minimize"], sampler=self._sampler(seed))

    def ask(self, number: int) -> tuple[int, ...]:
        """See `Proposer.ask`."""
        if number != self._number:
            self._number, self._rng = number, random.Random(f"{self._seed}/{number}")
            self._study.sampler = self._sampler(self._rng.randrange(2**32))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            trial = self._study.ask(self._distributions)
        # What is evaluated may differ after repair, and results of other proposers count alike: the sampler learns
        # from trials added in `tell`, never from the asked one.
        self._study.tell(trial, state=TrialState.FAIL)
        return self._space.repair([trial.params[name] for name in self._distributions], self._rng)

    def tell(self, levels: Sequence[int], values: Sequence[float]) -> None:
        """See `Proposer.tell`."""
        params = dict(zip(self._distributions, levels, strict=True))
        self._study.add_trial(
            optuna.trial.create_trial(params=params, distributions=self._distributions, values=list(values))
        )
