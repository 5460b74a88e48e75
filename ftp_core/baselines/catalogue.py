"""Methods by name: the program's own, and those that others register."""

from __future__ import annotations

import re
from collections.abc import Callable
from importlib import import_module
from typing import TYPE_CHECKING

from ftp_core.errors import CoreError

if TYPE_CHECKING:
    from ftp_core.baselines.protocol import Baseline

BaselineFactory = Callable[[], "Baseline"]
"""Makes a method."""

_NAME = re.compile(r"[\w.-]{1,64}")
# Module and class of each method.
_HOMES = {
    "shortened_prompt": "shortened_prompt:ShortenedPrompt",
    "scored_prompt": "scored_prompt:ScoredPrompt",
    "random": "sanity_rows:RandomTokens",
    "first_k": "sanity_rows:FirstTokens",
    "last_k": "sanity_rows:LastTokens",
    "shortgpt": "shortgpt:ShortGPT",
    "blockpruner": "blockpruner:BlockPruner",
    "laco": "laco:LaCo",
    "llm_pruner": "llm_pruner:LLMPruner",
    "slicegpt": "slicegpt:SliceGPT",
    "monotone": "monotone:Monotone",
    "swiftkv": "swiftkv:SwiftKV",
    "swiftkv_distilled": "swiftkv_distilled:SwiftKVDistilled",
    "early_exit": "early_exit:EarlyExit",
    "funnel": "funnel:Funnel",
    "mixture_of_depths": "mixture_of_depths:MixtureOfDepths",
    "colt5": "colt5:CoLT5",
    "skipgpt": "skipgpt:SkipGPT",
    "d_llm": "d_llm:DLLM",
}
_registered: dict[str, BaselineFactory] = {}


def register_baseline(name: str, factory: BaselineFactory) -> None:
    """Registers a custom method in this process.

    `ftp_core.baselines.testing` has the checks that every method passes.

    Args:
        name: Its name, of letters, digits, `-`, `_` and `.`, at most 64 of them. A name that was registered before
            stands for the new factory from now on.
        factory: Makes it; its attribute `name` must be the name.

    Raises:
        CoreError: The name is not of that form, or a method of the program has it.
    """
    if not _NAME.fullmatch(name):
        raise CoreError(f"A method cannot be called {name!r}: expected up to 64 letters, digits, -, _ and dots.")
    if name in _HOMES:
        raise CoreError(f"A method of the program is called {name!r}: choose another name.")
    _registered[name] = factory


def baseline_names() -> tuple[str, ...]:
    """Names of all methods, the program's own first."""
    return (*_HOMES, *_registered)


def baseline(name: str) -> Baseline:
    """The method of a name.

    Raises:
        CoreError: There is none, or its factory makes one of another name.
    """
    if name in _HOMES:
        module, _, maker = _HOMES[name].partition(":")
        own: Baseline = getattr(import_module(f"ftp_core.baselines.{module}"), maker)()
        return own
    if name not in _registered:
        raise CoreError(f"No method is called {name!r}: expected one of {', '.join(baseline_names())}.")
    made = _registered[name]()
    if made.name != name:
        raise CoreError(f"The method registered as {name!r} calls itself {made.name!r}: let both be the same.")
    return made
