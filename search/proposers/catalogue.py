"""Proposers by name. Libraries behind them are loaded when one is made, so that names can be listed without."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial

from search.errors import ConfigError
from search.problem.space import ScheduleSpace
from search.proposers import Proposer

PORTFOLIO_NAME = "portfolio"
# What `portfolio` stands for: proposers that find different things.
PORTFOLIO = ("deap", "evopress", "additive", "tpe", "cmaes")


# Proposers that learn from ablations of blocks, also outside the space.
_LEARN_FROM_ABLATIONS = frozenset({"additive"})


def _genetic(space: ScheduleSpace, seed: int) -> Proposer:
    from search.proposers.genetic import GeneticProposer

    return GeneticProposer(space, seed)


def _evopress(space: ScheduleSpace, seed: int) -> Proposer:
    from search.proposers.evopress import EvoPressProposer

    return EvoPressProposer(space, seed)


def _additive(space: ScheduleSpace, seed: int) -> Proposer:
    from search.proposers.additive import AdditiveProposer

    return AdditiveProposer(space, seed)


def _sampled(sampler: str, space: ScheduleSpace, seed: int) -> Proposer:
    from search.proposers.sampled import SampledProposer

    return SampledProposer(space, seed, sampler)


PROPOSERS: Mapping[str, Callable[[ScheduleSpace, int], Proposer]] = {
    "deap": _genetic,
    "evopress": _evopress,
    "additive": _additive,
    **{name: partial(_sampled, name) for name in ("tpe", "gp", "nsga2", "nsga3", "cmaes", "qmc", "random", "grid")},
}


def proposer_names(names: str) -> tuple[str, ...]:
    """The names in a list, each once, in its order.

    Args:
        names: Names of `PROPOSERS` with commas between; `portfolio` stands for a good set of them.

    Raises:
        ConfigError: A name is unknown, or there is none.
    """
    wanted: dict[str, None] = {}
    for name in filter(None, (part.strip() for part in names.split(","))):
        if name != PORTFOLIO_NAME and name not in PROPOSERS:
            raise ConfigError(_unknown(f"No proposer is called '{name}'"))
        wanted |= dict.fromkeys(PORTFOLIO if name == PORTFOLIO_NAME else (name,))
    if not wanted:
        raise ConfigError(_unknown("No proposer is named"))
    return tuple(wanted)


def learn_from_ablations(names: str) -> bool:
    """Whether one of the proposers that a list names learns from `ScheduleSpace.ablations`.

    Args:
        names: See `proposer_names`.

    Raises:
        ConfigError: See `proposer_names`.
    """
    return not _LEARN_FROM_ABLATIONS.isdisjoint(proposer_names(names))


def make_proposers(names: str, space: ScheduleSpace, seed: int) -> list[Proposer]:
    """The proposers that a list names.

    Args:
        names: See `proposer_names`.
        space: Where schedules come from.
        seed: Of all random choices.

    Raises:
        ConfigError: A name is unknown, there is none, or one cannot search this space.
    """
    return [PROPOSERS[name](space, seed) for name in proposer_names(names)]


def _unknown(what: str) -> str:
    return f"{what}: expected one of {', '.join((PORTFOLIO_NAME, *PROPOSERS))}, or several with commas between."
