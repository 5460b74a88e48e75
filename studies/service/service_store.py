"""Keeps what the service knows beside the studies: its queue, its runners, and who may use it."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from studies.records.labels import NO_LABELS, Labels
from studies.records.study_facts import Origin
from studies.service.overviews import StudyOverview, read_overviews
from studies.service.run_events import Events
from studies.service.runners import Runners
from studies.service.submissions import Queue, enqueue
from studies.service.tokens import Tokens
from studies.sql.database import DEFAULT_PATIENCE_S
from studies.store.store import StudyStore


class ServiceStore(StudyStore):
    """Studies with the queue, the runners and the tokens of a service; for arguments see `StudyStore`.

    Other processes may delete a study, and begin another one of its name, while this one looks on: names are looked up
    in each transaction anew.

    Attributes:
        queue: Studies that wait for a runner, and those that have one.
        events: Latest events of the runs.
        runners: Processes that run submitted studies.
        tokens: Access tokens and sessions of browsers.
    """

    def __init__(self, url: str, create: bool = True, patience_s: float = DEFAULT_PATIENCE_S) -> None:
        super().__init__(url, create, patience_s, remember_names=False)
        self.queue = Queue(self._names)
        self.events = Events(self._names)
        self.runners = Runners(self._names)
        self.tokens = Tokens(self._names)

    @property
    def url(self) -> str:
        """URL with the password, for processes that are started to use the database, too."""
        return self._database.url.render_as_string(hide_password=False)

    def overviews(self) -> list[StudyOverview]:
        """Every study with what is shown of its run, oldest first."""
        return self._database.read(read_overviews)

    def create_submitted(
        self,
        name: str,
        config: Mapping[str, Any],
        objectives: Sequence[str],
        by: str | None = None,
        replaces: Collection[Origin] = (),
        labels: Labels = NO_LABELS,
    ) -> None:
        """Begins a study (see `Studies.begin`) and hands it to the runners: both happen, or neither.

        Raises:
            StudyExistsError: The name is taken.
        """
        self.studies.begin(
            name,
            config,
            objectives,
            lambda connection, study_id: enqueue(connection, study_id, by=by),
            replaces,
            labels,
        )
