"""Keeps what this program knows of its studies, beside what Optuna would know of them."""

from __future__ import annotations

import os
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Self

from sqlalchemy.engine import URL

from studies.optuna_storage.storage import StudyStorage
from studies.sql.database import DEFAULT_PATIENCE_S, Database
from studies.sql.location import database_file
from studies.store.columns import Columns
from studies.store.comparisons import Comparisons
from studies.store.fitted_prompts import FittedPrompts
from studies.store.lease import Lease
from studies.store.names import StudyNames
from studies.store.optuna_studies import OptunaStudies
from studies.store.results import Results
from studies.store.revaluation import Revaluation
from studies.store.routers import Routers
from studies.store.runs import Runs
from studies.store.shared import Evaluations, Profiles
from studies.store.studies import Studies
from studies.store.substitutes import Substitutes
from studies.store.trials import Trials


class StudyStore:
    """Studies of schedules in a SQL database; every method of its parts that writes is one transaction.

    Each study is an Optuna study too, whose trials have a parameter `block_i` for each block.

    Args:
        url: `sqlite:///PATH` or `postgresql+psycopg://USER:PASSWORD@HOST/DATABASE`.
        create: Whether a SQLite file that does not exist, or is empty, becomes a database.
        patience_s: Longest absence of a database that answered before, in seconds.
        remember_names: Look up the id of a study once. Not where other processes may delete a study, and begin another
            one of its name, meanwhile.

    Attributes:
        storage: The same studies for Optuna's tools.
        studies: Configuration, objectives, facts and chosen trial of each study.
        runs: State, stages, leases, and what proposers remember.
        trials: Trials that wait, run, and have ended.
        columns: Ended trials by the column.
        revaluation: Other objective values for trials that have ended.
        results: Measurements and examples.
        routers: Distilled routers.
        substitutes: Maps that stand in for what tokens skip.
        fitted_prompts: Prompts that keys and values of skipped tokens are fitted to.
        profiles: Latency profiles, shared by all studies.
        evaluations: Evaluations of schedules, shared by all studies.
        optuna: Studies that are Optuna's alone.

    Raises:
        StorageError: The URL is of no supported kind, or the database cannot be opened.
    """

    def __init__(
        self, url: str, create: bool = True, patience_s: float = DEFAULT_PATIENCE_S, remember_names: bool = True
    ) -> None:
        self._database = Database(url, create, patience_s)
        self.storage = StudyStorage(self._database)
        self._names = names = StudyNames(self.storage, remember_names)
        self.studies = Studies(names)
        self.runs = Runs(names, _artifact_folder(self._database.url))
        self.trials = Trials(names)
        self.columns = Columns(names)
        self.revaluation = Revaluation(names)
        self.results = Results(names)
        self.comparisons = Comparisons(names)
        self.routers = Routers(names)
        self.substitutes = Substitutes(names)
        self.fitted_prompts = FittedPrompts(names)
        self.profiles = Profiles(names)
        self.evaluations = Evaluations(names)
        self.optuna = OptunaStudies(names)

    def __repr__(self) -> str:
        return str(self._database)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def is_read_only(self) -> bool:
        """True if this process may read the database, and not write to it, as far as its file says."""
        return self._database.is_read_only

    def check_writable(self) -> None:
        """Raises `StorageError` if the database can be read, and not written to."""
        self._database.check_writable()

    def hurried(self) -> AbstractContextManager[None]:
        """Inside, a database that is away is not waited for: for what a process writes as it leaves."""
        return self._database.hurried()

    def close(self) -> None:
        """Gives connections back."""
        self.storage.close()

    def delete_study(self, name: str) -> None:
        """Removes a study with everything it remembers, its place in a queue included, be it one of Optuna's alone.

        Raises:
            StudyNotFoundError: There is no such study.
            StudyBusyError: A process works on it.
        """
        study_id = self._names.any_id(name)
        with Lease(self._database, study_id, name):
            self.storage.delete_study(study_id)
        self._names.forget(name)


def _artifact_folder(url: URL) -> Path | None:
    """Folder of unfinished work: `$FTP_SEARCH_ARTIFACTS`, or beside a SQLite file, or `./ftp-artifacts`.

    None for a database in memory.
    """
    if named := os.environ.get("FTP_SEARCH_ARTIFACTS"):
        return Path(named)
    if url.get_backend_name() != "sqlite":
        return Path("ftp-artifacts").absolute()
    file = database_file(url)
    return None if file is None else file.absolute().with_name(f"{file.name}-artifacts")
