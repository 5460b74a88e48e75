"""The blocks of a schedule as the parameters that Optuna's samplers suggest."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import optuna
from optuna.distributions import BaseDistribution, FloatDistribution, IntDistribution
from optuna.samplers import BaseSampler, RandomSampler
from optuna.trial import FrozenTrial, create_trial

from search.problem.space import ScheduleSpace
from search.problem.trial import Levels, Outcome

STUDY_NAME = "outcomes"


@dataclass(frozen=True, slots=True)
class Draft:
    """What a model proposes, before repair.

    Attributes:
        levels: Of the free blocks.
        parents: See `Proposal.parents`.
    """

    levels: Sequence[float]
    parents: tuple[Levels, ...] = ()


class BlockParameters:
    """The free blocks as Optuna's parameters: steps of sparsity up to the top; `real` ones take any value between."""

    def __init__(self, space: ScheduleSpace, real: bool = False) -> None:
        self._blocks = space.free_blocks
        self._n_blocks = space.n_blocks
        levels = FloatDistribution(0.0, space.top) if real else IntDistribution(0, space.top)
        # Some samplers sort parameters by name.
        self.distributions: dict[str, BaseDistribution] = {f"s_{block:04}": levels for block in self._blocks}

    def trial(self, outcome: Outcome, values: Sequence[float] | None = None, **attributes: Any) -> FrozenTrial:
        """A finished trial, its penalty as the constraint."""
        return create_trial(
            params={name: outcome.levels[block] for name, block in zip(self.distributions, self._blocks, strict=True)},
            distributions=self.distributions,
            values=list(outcome.values if values is None else values),
            **attributes,
        )

    def of(self, outcome: Outcome) -> list[float]:
        """The levels of the free blocks."""
        return [outcome.levels[block] for block in self._blocks]

    def of_all_blocks(self, levels: Sequence[float]) -> Levels:
        """Whole steps for all blocks, of levels of the free ones: no other skips anything."""
        own = dict(zip(self._blocks, levels, strict=True))
        return tuple(round(own.get(block, 0)) for block in range(self._n_blocks))

    def levels(
        self, sampler: BaseSampler, study: optuna.Study, trial: FrozenTrial, jointly: bool = True
    ) -> list[float]:
        """What a sampler suggests: what it does not suggest jointly, one parameter after the other."""
        params = sampler.sample_relative(study, trial, self.distributions) if jointly else {}
        return [
            params[name] if name in params else sampler.sample_independent(study, trial, name, distribution)
            for name, distribution in self.distributions.items()
        ]


def new_study(n_objectives: int = 1) -> tuple[optuna.Study, FrozenTrial]:
    """A study in memory, and the running trial in it that samplers suggest parameters for."""
    study = optuna.create_study(study_name=STUDY_NAME, directions=["minimize"] * n_objectives, sampler=RandomSampler(0))
    study.ask()
    return study, study.get_trials()[0]


def draw_seed(rng: random.Random) -> int:
    """A seed for a sampler."""
    return rng.randrange(2**32)
