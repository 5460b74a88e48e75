"""Searches sparsity schedules, distils routers for them, and measures what they come to.

Names are loaded when they are first used, so that none of torch, Ray and Optuna is waited for before it is needed.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from search.client import Client as Client
    from search.config.run_config import RunConfig as RunConfig
    from search.errors import ConfigError as ConfigError
    from search.errors import EvaluationError as EvaluationError
    from search.errors import SearchError as SearchError
    from search.proposers import Proposer as Proposer
    from search.proposers.catalogue import register_proposer as register_proposer
    from search.proposers.deap_sampler import DEAPSampler as DEAPSampler
    from search.runs import compare as compare
    from search.runs import resume as resume
    from search.runs import run as run
    from search.runs import solve as solve
    from search.study import Study as Study
    from search.study import load as load

_HOMES = {
    "Client": "search.client",
    "ConfigError": "search.errors",
    "DEAPSampler": "search.proposers.deap_sampler",
    "EvaluationError": "search.errors",
    "Proposer": "search.proposers",
    "RunConfig": "search.config.run_config",
    "SearchError": "search.errors",
    "Study": "search.study",
    "compare": "search.runs",
    "load": "search.study",
    "register_proposer": "search.proposers.catalogue",
    "resume": "search.runs",
    "run": "search.runs",
    "solve": "search.runs",
}

__all__ = list(_HOMES)


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
