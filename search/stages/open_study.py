"""A study that this process works on, with all that its stages share, its routers among it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from ftp_core.routers import Router, StaticRouter, router_from_bytes
from search.config.run_config import RunConfig
from search.inputs.data import Workload
from search.progress.progress_view import ProgressView
from studies import Measurement, StudyStore, Trial
from studies.records.study_facts import StudyFacts
from studies.store.lease import Lease
from studies.store.results_folder import claim_results


@dataclass(frozen=True)
class StoredRouter:
    """Router with what its study knows it by; the static one, unless something else is given."""

    number: int | None = None  # among the study's routers; None for the static one
    sha256: str | None = None  # hash of the weights; None for the static one, which has none
    router: Router = field(default_factory=StaticRouter)

    def __str__(self) -> str:
        return self.router.kind if self.sha256 is None else f"{self.router.kind} {self.sha256}"


def load_router(store: StudyStore, name: str, number: int | None) -> StoredRouter:
    """Loads a router of a study, or the static one for None; a StorageError if its weights have changed."""
    if number is None:
        return StoredRouter()
    stored = store.routers.of(name)[number]
    return StoredRouter(number, stored.sha256, router_from_bytes(store.routers.weights(name, number)).eval())


@dataclass(frozen=True)
class OpenStudy:
    """A study as every stage of its pipeline needs it: with the right to work on it, its model and data, and a view."""

    store: StudyStore
    name: str
    lease: Lease
    config: RunConfig
    workload: Workload
    view: ProgressView
    _routers: dict[int | None, StoredRouter] = field(default_factory=dict, init=False, repr=False, compare=False)

    @property
    def facts(self) -> StudyFacts:
        """The facts that are known of it by now."""
        return self.store.studies.get(self.name).facts

    def note(self, changes: StudyFacts | Callable[[StudyFacts], StudyFacts]) -> None:
        """Replaces the facts that another record sets; see `Studies.update_facts`."""
        self.store.studies.update_facts(self.name, changes)

    def trials(self) -> list[Trial]:
        """Its trials that have ended."""
        return self.store.trials.of(self.name)

    def measured(self, split: str) -> list[Measurement]:
        """Its measurements on the examples of a split."""
        return [one for one in self.store.results.measurements(self.name) if one.split == split]

    def router(self, number: int | None) -> StoredRouter:
        """Router of the study, loaded once; the static one for None."""
        if number not in self._routers:
            self._routers[number] = load_router(self.store, self.name, number)
        return self._routers[number]

    def settle(self) -> None:
        """Takes the place of the study that it was begun to replace, unless that is busy by now, and its folder."""
        self.store.studies.take_place(self.name)
        claim_results(self.config.folder(self.name), self.store.studies.get(self.name))
