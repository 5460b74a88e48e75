"""Keeps what the service knows beside the studies: its queue, its workers, and who may use it."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, TypeVar

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from studies.service.overviews import Overviews
from studies.service.run_events import RunEvents
from studies.service.runners import Workers
from studies.service.submissions import Submissions, enqueue
from studies.service.tokens import AccessTokens
from studies.sql import schema
from studies.store.columns import ColumnTrials
from studies.store.lease import Holder, holder
from studies.store.results_folder import Origin
from studies.store.store import StudyStore

T = TypeVar("T")


class ServiceStore(ColumnTrials, StudyStore, Submissions, RunEvents, Overviews, Workers, AccessTokens):
    """Studies with the queue, the workers and the tokens of a service.

    Other processes may delete a study, and begin another one of its name, while this one looks on: names are looked up
    in each transaction anew.
    """

    def __enter__(self) -> ServiceStore:
        return self

    def create_submitted(
        self,
        name: str,
        config: Mapping[str, Any],
        objectives: Sequence[str],
        by: str | None = None,
        replaces: Collection[Origin] = (),
    ) -> None:
        """Begin a study and hand it to the workers: both happen, or neither.

        Args:
            name: Unique in this database.
            config: How it is configured.
            objectives: Names of the objective values, in order.
            by: Who does so.
            replaces: Whose files the study may write over, beside its own.

        Raises:
            StudyExistsError: The name is taken.
        """
        self._begin_study(
            name, config, objectives, lambda connection, study_id: enqueue(connection, study_id, by=by), replaces
        )

    @property
    def url(self) -> str:
        """Where it is, with the password: for processes that are started to use it, too."""
        return self._database.url.render_as_string(hide_password=False)

    def holder(self, name: str) -> Holder | None:
        """Who works on a study; None if nobody does."""
        held = self._of_study(name, holder)
        return held if held is not None and held.alive else None

    def _of_study(self, name: str, work: Callable[[Connection, int], T], write: bool = False, once: bool = False) -> T:
        selected = sa.select(schema.study.c.id).join(schema.search_run).where(schema.study.c.name == name)

        def with_id(connection: Connection) -> T:
            study_id = connection.execute(selected).scalar()
            if study_id is None:
                raise self._not_found(name, connection)
            return work(connection, study_id)

        # Two statements are no single one.
        return self._database.write(with_id) if write or once else self._database.read(with_id)
