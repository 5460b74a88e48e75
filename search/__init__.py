"""What to try next, and where to run it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from search.client import Client
    from search.proposers.deap_sampler import DEAPSampler

__all__ = ["Client", "DEAPSampler"]


def __getattr__(name: str) -> Any:
    """Load the sampler, and Optuna with it, or the client of a service, only for those who want them."""
    if name == "Client":
        from search.client import Client

        return Client
    if name == "DEAPSampler":
        from search.proposers.deap_sampler import DEAPSampler

        return DEAPSampler
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
