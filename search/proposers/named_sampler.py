"""Loads samplers that `--sampler` names as `module:Class`."""

from __future__ import annotations

import hashlib
import importlib
import inspect
import os
import random
import sys
from typing import Any

from optuna.samplers import BaseSampler
from optuna.trial import FrozenTrial

from search.errors import ConfigError
from search.problem.space import ScheduleSpace
from search.proposers.model_proposer import ModelProposer
from search.proposers.optuna_sampler import SamplerFactory, SamplerModel, silence
from search.proposers.sampler_text import SamplerText
from studies import Trial, TrialState

# A study keeps no longer names of proposers.
_LONGEST_NAME = 64
_TRIED_BLOCKS = 4
_TRIED_TRIALS = 3


def named_sampler(text: str, space: ScheduleSpace, seed: int) -> ModelProposer:
    """The proposer around a sampler that a text names.

    Args:
        text: See `SamplerText`.
        space: Space of schedules.
        seed: Seed of all random choices.

    Raises:
        ConfigError: There is no such sampler, or its arguments are wrong.
    """
    make = sampler_factory(SamplerText.parse(text))
    model = SamplerModel(space, seed, make) if space.free_blocks and space.top else None
    return ModelProposer(_short(text), space, seed, model)


def check_sampler(text: str) -> None:
    """Load a sampler, and have it propose a few schedules of a small space.

    Raises:
        ConfigError: There is no such sampler, its arguments are wrong, or it cannot do that.
    """
    space, rng = ScheduleSpace(_TRIED_BLOCKS), random.Random(0)
    proposer = named_sampler(text, space, seed=0)
    try:
        for number in range(_TRIED_TRIALS):
            indices = space.sample(rng)
            values = (1.0 + number, float(-sum(indices)))
            proposer.tell(Trial(number, space.schedule(indices), "", state=TrialState.FINISHED, values=values))
            proposer.ask(number)
    except Exception as error:
        raise ConfigError(
            f"'{text}' cannot propose schedules, which have a whole number for each block and two objectives: "
            f"{type(error).__name__}: {error}"
        ) from error


def sampler_factory(sampler: SamplerText) -> SamplerFactory:
    """What makes a sampler from a seed.

    The seed is given where the class takes one. Optuna's own samplers read constraints from trials; other classes that
    take a `constraints_func` get one that does.

    Raises:
        ConfigError: There is no such class, or its arguments are wrong.
    """
    found = _class(sampler)
    takes = inspect.signature(found).parameters
    if "seed" in sampler.kwargs:
        raise ConfigError(f"'{sampler.text}' has a seed of its own: leave it out, --seed says it.")
    given = dict(sampler.kwargs)
    if "constraints_func" in takes and not found.__module__.startswith("optuna."):
        given["constraints_func"] = _constraints
    has_seed = "seed" in takes

    def make(seed: int) -> BaseSampler:
        made: BaseSampler = found(*sampler.args, **given, **({"seed": seed} if has_seed else {}))
        return made

    try:
        with silence():
            make(0)
    except Exception as error:
        raise ConfigError(f"The arguments of '{sampler.text}' are wrong: {type(error).__name__}: {error}") from error
    return make


def _class(sampler: SamplerText) -> Any:
    # The installed program does not look there; last, so that no file takes the place of a library.
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())
    try:
        module = importlib.import_module(sampler.module)
    except ModuleNotFoundError as error:
        raise ConfigError(f"'{sampler.text}' cannot be loaded: {error}. Install it, or mend the name.") from error
    except Exception as error:
        raise ConfigError(
            f"'{sampler.text}' cannot be loaded: importing {sampler.module} fails: {type(error).__name__}: {error}"
        ) from error
    found = getattr(module, sampler.name, None)
    if not inspect.isclass(found) or not issubclass(found, BaseSampler) or inspect.isabstract(found):
        there = sorted(
            name
            for name, one in vars(module).items()
            if inspect.isclass(one) and issubclass(one, BaseSampler) and not inspect.isabstract(one)
        )
        raise ConfigError(
            f"'{sampler.text}' is no sampler of Optuna's kind: expected a class of {sampler.module} that derives from "
            f"optuna.samplers.BaseSampler{' (' + ', '.join(there) + ')' if there else '; there is none'}."
        )
    return found


def _constraints(trial: FrozenTrial) -> list[float]:
    return list(trial.constraints.values()) or [0.0]


def _short(text: str) -> str:
    """A text as a name that studies keep; different texts have different names."""
    if len(text) <= _LONGEST_NAME:
        return text
    digest = hashlib.sha256(text.encode()).hexdigest()[:8]
    return f"{text[: _LONGEST_NAME - len(digest) - 1]}~{digest}"
