"""A study that this process works on, with all that its stages share."""

from __future__ import annotations

from dataclasses import dataclass, field

from search.config.run_config import RunConfig
from search.inputs.data import Workload
from search.progress.progress_view import ProgressView
from search.stages.stored_router import StoredRouter, load_router
from studies import StudyStore
from studies.store.lease import Lease
from studies.store.results_folder import claim_results


@dataclass(frozen=True)
class OpenStudy:
    """What every stage of a study's pipeline needs.

    Attributes:
        store: Where the study lives.
        name: Its name.
        lease: The right to work on it.
        config: How it is configured.
        workload: Its model and data.
        view: Where progress is drawn.
    """

    store: StudyStore
    name: str
    lease: Lease
    config: RunConfig
    workload: Workload
    view: ProgressView
    _routers: dict[int | None, StoredRouter] = field(default_factory=dict, init=False, repr=False, compare=False)

    def router(self, number: int | None) -> StoredRouter:
        """Router of the study, loaded once; the static one for None."""
        if number not in self._routers:
            self._routers[number] = load_router(self.store, self.name, number)
        return self._routers[number]

    def settle(self) -> None:
        """Let the study take the place of the one that it was begun to replace, and its folder: it can go on now.

        Raises:
            StudyBusyError: A process works on the other study by now.
            ForeignResultsError: Its folder holds the results of another study.
        """
        self.store.studies.take_place(self.name)
        claim_results(self.config.folder(self.name), self.store.studies.get(self.name))
