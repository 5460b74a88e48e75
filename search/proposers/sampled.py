"""Proposals from an Optuna sampler."""

from __future__ import annotations

import random
import warnings
from collections.abc import Sequence

import optuna
from optuna.samplers import BaseSampler, TPESampler
from optuna.trial import TrialState

from search.space import ScheduleSpace


class SampledProposer:
    """Asks an Optuna sampler for one integer level per block.

    Args:
        space: Where schedules come from.
        seed: Of all random choices.
        sampler: The sampler; by default multi-objective TPE (Ozaki et al. 2022).
    """

    name = "tpe"

    def __init__(self, space: ScheduleSpace, seed: int, sampler: BaseSampler | None = None) -> None:
        self._space = space
        self._rng = random.Random(seed)
        distribution = optuna.distributions.IntDistribution(0, space.top)
        self._distributions: dict[str, optuna.distributions.BaseDistribution] = {
            f"s_{index}": distribution for index in range(space.n_blocks)
        }
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self._study = optuna.create_study(
            directions=["minimize", "minimize"], sampler=sampler or TPESampler(seed=seed, n_startup_trials=16)
        )

    def ask(self) -> tuple[int, ...]:
        """See `Proposer.ask`."""
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
