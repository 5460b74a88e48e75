"""Proposers by name; the libraries behind them are loaded when one is made."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from functools import partial
from importlib import import_module

from search.errors import ConfigError
from search.problem.space import ScheduleSpace
from search.proposers import Proposer
from search.proposers.named_sampler import SamplerText, check_sampler, named_sampler, parts_of
from search.proposers.seeded import SeededProposer

ProposerFactory = Callable[[ScheduleSpace, int], Proposer]
"""Makes a proposer from a space of schedules and a seed."""

PORTFOLIO_NAME = "portfolio"
# Proposers that complement each other.
PORTFOLIO = ("deap", "evopress", "additive", "tpe", "cmaes")
_NAME = re.compile(r"[\w.-]{1,64}")
# Proposers that learn from ablations of blocks, also outside the space.
_LEARN_FROM_ABLATIONS = frozenset({"additive"})

# Module and name of each proposer, or of a function that makes it.
_HOMES = {
    "deap": "genetic:GeneticProposer",
    "evopress": "evopress:EvoPressProposer",
    "additive": "additive:AdditiveProposer",
    "tpe": "optuna_sampler:ParzenProposer",
    "gp": "optuna_sampler:GaussianProcessProposer",
    "nsga2": "optuna_sampler:nsga2_proposer",
    "nsga3": "optuna_sampler:nsga3_proposer",
    "cmaes": "cma:CmaProposer",
    "qmc": "blind:SobolProposer",
    "random": "blind:UniformProposer",
    "grid": "blind:GridProposer",
}


def _made(name: str, space: ScheduleSpace, seed: int) -> Proposer:
    if not space.may_skip:
        return SeededProposer(name, space, seed)
    module, _, maker = _HOMES[name].partition(":")
    made: Proposer = getattr(import_module(f"search.proposers.{module}"), maker)(space, seed)
    return made


PROPOSERS: Mapping[str, ProposerFactory] = {name: partial(_made, name) for name in _HOMES}
_registered: dict[str, ProposerFactory] = {}


def register_proposer(name: str, factory: ProposerFactory) -> None:
    """Registers a custom proposer in this process, for `sampler` of `RunConfig` to name.

    A study keeps the name alone: a process that resumes its search registers the proposer first.

    Args:
        name: Its name, of letters, digits, `-`, `_` and `.`, at most 64 of them. A name that was registered before
            stands for the new factory from now on.
        factory: Makes it from the space of schedules and a seed; its attribute `name` must be the name.

    Raises:
        ConfigError: The name is not of that form, or a proposer of the program has it.

    Example:
        >>> import search
        >>> from search.proposers.genetic import GeneticProposer
        >>> def small(space, seed):
        ...     proposer = GeneticProposer(space, seed, population_size=16)
        ...     proposer.name = "small-deap"
        ...     return proposer
        >>> search.register_proposer("small-deap", small)
    """
    if not _NAME.fullmatch(name):
        raise ConfigError(f"A proposer cannot be called {name!r}: expected up to 64 letters, digits, -, _ and dots.")
    if name == PORTFOLIO_NAME or name in PROPOSERS:
        raise ConfigError(f"A proposer of the program is called '{name}': choose another name.")
    _registered[name] = factory


def proposer_names(names: str) -> tuple[str, ...]:
    """The names in a list, each once, in its order.

    Args:
        names: Names of `PROPOSERS`, registered names, and samplers as `SamplerText` reads them, with commas between;
            `portfolio` stands for a good set of them.

    Raises:
        ConfigError: A name is unknown, a sampler's text cannot be read, or there is none.
    """
    wanted: dict[str, None] = {}
    for name in parts_of(names):
        if ":" in name or "(" in name:
            SamplerText.parse(name)
        elif name != PORTFOLIO_NAME and name not in PROPOSERS and name not in _registered:
            raise ConfigError(_unknown(f"No proposer is called '{name}'"))
        wanted |= dict.fromkeys(PORTFOLIO if name == PORTFOLIO_NAME else (name,))
    if not wanted:
        raise ConfigError(_unknown("No proposer is named"))
    return tuple(wanted)


def is_proposer(name: str) -> bool:
    """True for the name of a proposer; False for schedules that every search begins with."""
    return name in PROPOSERS or name in _registered or ":" in name


def check_shipped(names: str) -> None:
    """Refuses proposers that are not shipped with the program: naming a sampler's module would have it executed.

    Args:
        names: See `proposer_names`.

    Raises:
        ConfigError: Such a proposer is named.
    """
    for name in parts_of(names):
        if name != PORTFOLIO_NAME and name not in PROPOSERS:
            raise ConfigError(_unknown(f"No proposer is called '{name}'"))


def check_samplers(names: str) -> None:
    """Loads the named samplers and has each propose a few schedules, before any is evaluated.

    Args:
        names: See `proposer_names`.

    Raises:
        ConfigError: A name is unknown, or a sampler cannot be loaded or used.
    """
    for name in proposer_names(names):
        if ":" in name:
            check_sampler(name)


def learn_from_ablations(names: str) -> bool:
    """True if one of the named proposers learns from `ScheduleSpace.ablations`; see `proposer_names`."""
    return not _LEARN_FROM_ABLATIONS.isdisjoint(proposer_names(names))


def make_proposers(names: str, space: ScheduleSpace, seed: int) -> list[Proposer]:
    """The proposers that a list names.

    Args:
        names: See `proposer_names`.
        space: Space of schedules.
        seed: Seed of all random choices.

    Raises:
        ConfigError: A name is unknown, there is none, or one cannot search this space.
    """
    return [make_proposer(name, space, seed) for name in proposer_names(names)]


def make_proposer(name: str, space: ScheduleSpace, seed: int) -> Proposer:
    """The proposer of one name, see `make_proposers`."""
    if ":" in name:
        return named_sampler(name, space, seed)
    return (PROPOSERS.get(name) or _registered[name])(space, seed)


def _unknown(what: str) -> str:
    return (
        f"{what}: expected one of {', '.join((PORTFOLIO_NAME, *PROPOSERS, *_registered))}, or several with commas "
        "between."
    )
