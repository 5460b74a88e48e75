"""A router of a study, loaded to decide."""

from __future__ import annotations

from dataclasses import dataclass, field

from ftp_core.routers import Router, StaticRouter, router_from_bytes
from studies import StudyStore


@dataclass(frozen=True)
class StoredRouter:
    """Router with what its study knows it by; the static one, unless something else is given.

    Attributes:
        number: Number among the study's routers; None for the static one.
        sha256: Hash of the weights; None for the static one, which has none.
        router: Router that decides which tokens are kept.
    """

    number: int | None = None
    sha256: str | None = None
    router: Router = field(default_factory=StaticRouter)

    def __str__(self) -> str:
        return self.router.kind if self.sha256 is None else f"{self.router.kind} {self.sha256}"


def load_router(store: StudyStore, name: str, number: int | None) -> StoredRouter:
    """Loads a router of a study, or the static one for None; a StorageError if its weights have changed."""
    if number is None:
        return StoredRouter()
    stored = store.routers.of(name)[number]
    return StoredRouter(number, stored.sha256, router_from_bytes(store.routers.weights(name, number)).eval())
