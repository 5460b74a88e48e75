"""Searches sparsity schedules, distils routers for them, and measures what they come to.

Names are loaded when they are first used, so that none of torch, Ray and Optuna is waited for before it is needed.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from search.client import Client
    from search.config.run_config import RunConfig
    from search.errors import ConfigError, EvaluationError, SearchError
    from search.proposers import Proposer
    from search.proposers.catalogue import register_proposer
    from search.proposers.deap_sampler import DEAPSampler
    from search.runs import resume, run
    from search.study import Study, load

_HOMES = {
    "Client": "search.client",
    "ConfigError": "search.errors",
    "DEAPSampler": "search.proposers.deap_sampler",
    "EvaluationError": "search.errors",
    "Proposer": "search.proposers",
    "RunConfig": "search.config.run_config",
    "SearchError": "search.errors",
    "Study": "search.study",
    "load": "search.study",
    "register_proposer": "search.proposers.catalogue",
    "resume": "search.runs",
    "run": "search.runs",
}

__all__ = [
    "Client",
    "ConfigError",
    "DEAPSampler",
    "EvaluationError",
    "Proposer",
    "RunConfig",
    "SearchError",
    "Study",
    "load",
    "register_proposer",
    "resume",
    "run",
]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
