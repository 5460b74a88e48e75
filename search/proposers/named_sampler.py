"""Optuna samplers named as `module:Class`, with arguments that are Python literals.

Optuna is loaded only when such a sampler is made, so that names can be checked without.
"""

from __future__ import annotations

import ast
import hashlib
import importlib
import inspect
import os
import random
import re
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from search.errors import ConfigError
from search.problem.space import ScheduleSpace
from search.proposers.seeded import SeededProposer
from studies import Trial, TrialState

if TYPE_CHECKING:
    from optuna.samplers import BaseSampler
    from optuna.trial import FrozenTrial

# Longest proposer name that a study keeps.
_LONGEST_NAME = 64
_TRIED_BLOCKS = 4
_TRIED_TRIALS = 3
_CLASS = re.compile(r"(?P<module>[^\W\d]\w*(\.[^\W\d]\w*)*)\s*:\s*(?P<call>[^\W\d]\w*\s*(\(.*\))?)", re.DOTALL)
_EXPECTED = "expected module:Class, or module:Class(name=value, ...) with numbers, texts, lists and the like"
_CLOSING = {"(": ")", "[": "]", "{": "}"}


@dataclass(frozen=True)
class SamplerText:
    """A text that names a class of a module and the arguments of a call: `module:name(*args, **kwargs)`."""

    text: str
    module: str
    name: str
    args: tuple[Any, ...]
    kwargs: dict[str, Any]

    @classmethod
    def parse(cls, text: str) -> SamplerText:
        """Read a text; nothing in it is executed.

        Raises:
            ConfigError: It names no class, or an argument is no literal.
        """
        found = _CLASS.fullmatch(text)
        if found is None:
            raise ConfigError(f"'{text}' names no sampler: {_EXPECTED}.")
        call = found["call"].strip()
        try:
            node = ast.parse(call if call.endswith(")") else f"{call}()", mode="eval").body
            if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Name):
                raise ConfigError(f"'{text}' names no sampler: {_EXPECTED}.")
            if any(keyword.arg is None for keyword in node.keywords):
                raise ValueError("** is no argument")
            args = tuple(ast.literal_eval(arg) for arg in node.args)
            kwargs = {str(keyword.arg): ast.literal_eval(keyword.value) for keyword in node.keywords}
        except (SyntaxError, ValueError, TypeError, MemoryError, RecursionError) as error:
            raise ConfigError(f"The arguments of '{text}' cannot be read: {_EXPECTED}.") from error
        return cls(text, found["module"], node.func.id, args, kwargs)


def parts_of(names: str) -> list[str]:
    """The parts of a list with commas between; those within parentheses, brackets or quotes part nothing."""
    parts: list[str] = []
    open_ones: list[str] = []
    quote, start = "", 0
    for place, char in enumerate(names):
        if quote:
            if char == quote and names[place - 1] != "\\":
                quote = ""
        elif open_ones and char in "'\"":
            quote = char
        elif char in _CLOSING:
            open_ones.append(_CLOSING[char])
        elif open_ones and char == open_ones[-1]:
            open_ones.pop()
        elif char == "," and not open_ones:
            parts.append(names[start:place])
            start = place + 1
    return [part for part in map(str.strip, (*parts, names[start:])) if part]


def named_sampler(text: str, space: ScheduleSpace, seed: int) -> SeededProposer:
    """The proposer around a sampler that a text names, see `SamplerText`.

    Raises:
        ConfigError: There is no such sampler, or its arguments are wrong.
    """
    from search.proposers.optuna_sampler import SamplerProposer

    make = sampler_factory(SamplerText.parse(text))
    if not space.may_skip:
        return SeededProposer(_short(text), space, seed)
    return SamplerProposer(_short(text), space, seed, make)


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


def sampler_factory(sampler: SamplerText) -> Callable[[int], BaseSampler]:
    """A function that makes the sampler from a seed.

    The seed is passed where the class takes one. Optuna's own samplers read constraints from trials; other classes that
    take a `constraints_func` get one that does.

    Raises:
        ConfigError: There is no such class, or its arguments are wrong.
    """
    from search.proposers.optuna_sampler import silence

    found = _class(sampler)
    takes = inspect.signature(found).parameters
    if "seed" in sampler.kwargs:
        raise ConfigError(f"'{sampler.text}' has a seed of its own: leave it out, --seed says it.")
    given = dict(sampler.kwargs)
    if "constraints_func" in takes and not found.__module__.startswith("optuna."):
        given["constraints_func"] = _constraints

    def make(seed: int) -> BaseSampler:
        made: BaseSampler = found(*sampler.args, **given, **({"seed": seed} if "seed" in takes else {}))
        return made

    try:
        with silence():
            make(0)
    except Exception as error:
        raise ConfigError(f"The arguments of '{sampler.text}' are wrong: {type(error).__name__}: {error}") from error
    return make


def _class(sampler: SamplerText) -> Any:
    # Last, so that no file of the working directory hides a library.
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
    samplers = {name: one for name, one in vars(module).items() if _is_sampler(one)}
    if sampler.name not in samplers:
        raise ConfigError(
            f"'{sampler.text}' is no sampler of Optuna's kind: expected a class of {sampler.module} that derives from "
            f"optuna.samplers.BaseSampler{' (' + ', '.join(sorted(samplers)) + ')' if samplers else '; there is none'}."
        )
    return samplers[sampler.name]


def _is_sampler(value: Any) -> bool:
    from optuna.samplers import BaseSampler

    return inspect.isclass(value) and issubclass(value, BaseSampler) and not inspect.isabstract(value)


def _constraints(trial: FrozenTrial) -> list[float]:
    return list(trial.constraints.values()) or [0.0]


def _short(text: str) -> str:
    """A text as a name that studies keep; different texts have different names."""
    if len(text) <= _LONGEST_NAME:
        return text
    digest = hashlib.sha256(text.encode()).hexdigest()[:8]
    return f"{text[: _LONGEST_NAME - len(digest) - 1]}~{digest}"
