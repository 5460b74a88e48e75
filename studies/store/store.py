"""Keeps what this program knows of its studies, beside what Optuna would know of them."""

from __future__ import annotations

import os
from contextlib import AbstractContextManager
from pathlib import Path

from studies.sql.database import DEFAULT_PATIENCE_S, Database
from studies.store.artifacts import ArtifactStore, artifact_folder
from studies.store.evaluations import KnownEvaluations
from studies.store.lease import Lease
from studies.store.optuna_studies import OptunaStudies
from studies.store.results import StudyResults
from studies.store.revaluation import RevaluedTrials
from studies.store.runs import StudyRuns


class StudyStore(StudyResults, RevaluedTrials, StudyRuns, KnownEvaluations, OptunaStudies):
    """Studies of schedules in a SQL database; every method that writes is one transaction.

    Each is an Optuna study too, whose trials have a parameter `block_i` for each block: `storage` hands it to Optuna's
    tools.

    Args:
        url: `sqlite:///PATH` or `postgresql+psycopg://USER:PASSWORD@HOST/DATABASE`.
        create: Whether a SQLite file that does not exist, or is empty, becomes a database.
        patience_s: How long a database that answered before may be away, in seconds.
        artifacts: Folder of unfinished work, and of weights that earlier versions kept; None for the database's own.

    Raises:
        StorageError: The URL is of no supported kind, or the database cannot be opened.
    """

    def __init__(
        self,
        url: str,
        create: bool = True,
        patience_s: float = DEFAULT_PATIENCE_S,
        artifacts: str | os.PathLike[str] | None = None,
    ) -> None:
        database = Database(url, create, patience_s)
        # The first of the bases takes the artifacts, the others the database alone.
        folder = artifact_folder(database.url) if artifacts is None else Path(artifacts)
        super().__init__(database, ArtifactStore(folder))

    def __enter__(self) -> StudyStore:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def is_read_only(self) -> bool:
        """Whether this process may read the database, and not write to it, as far as its file says."""
        return self._database.is_read_only

    def check_writable(self) -> None:
        """Raise `StorageError` if the database can be read, and not written to."""
        self._database.check_writable()

    def hurried(self) -> AbstractContextManager[None]:
        """Inside, a database that is away is not waited for: for what a process writes as it leaves."""
        return self._database.hurried()

    def close(self) -> None:
        """Give connections back."""
        self.storage.close()

    def delete_study(self, name: str) -> None:
        """Remove a study with everything it remembers, its place in a queue included, be it one of Optuna's alone.

        Files of earlier versions stay: other studies may share them.

        Raises:
            StudyNotFoundError: There is no such study.
            StudyBusyError: A process works on it.
        """
        study_id = self._any_id(name)
        with Lease(self._database, study_id, name):
            self.storage.delete_study(study_id)
        self._ids.pop(name, None)
