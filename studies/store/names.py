"""Finds studies of schedules by name, for every part of a store."""

from __future__ import annotations

import difflib
from collections.abc import Callable
from typing import TypeVar

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from studies.errors import StudyNotFoundError
from studies.optuna_storage.storage import StudyStorage
from studies.sql import schema

T = TypeVar("T")

_study = schema.study.c


class StudyNames:
    """Looks up the ids of the studies in a database.

    Args:
        storage: The studies for Optuna's tools.
        remember: Keep ids once they are found. Not where other processes may delete a study, and begin another one of
            its name, meanwhile.
    """

    def __init__(self, storage: StudyStorage, remember: bool = True) -> None:
        self.storage, self.database = storage, storage.database
        self._remember = remember
        # Ids of names as this store sees them: a replacement has its name here before it has it in the database.
        self._ids: dict[str, int] = {}

    def __repr__(self) -> str:
        return str(self.database)

    def transact(self, name: str, work: Callable[[Connection, int], T], write: bool = False, once: bool = False) -> T:
        """Runs `work` with the id of a study.

        Args:
            name: Name of the study.
            work: Function that reads, or writes in one transaction (`write`), or writes in one statement (`once`).
            write: See `Database.write`.
            once: See `Database.write_once`.

        Returns:
            The result of `work`.

        Raises:
            StudyNotFoundError: There is no such study of schedules.
        """

        def with_id(connection: Connection) -> T:
            study_id = self._ids.get(name)
            if study_id is None:
                joined = schema.study.join(schema.search_run)
                study_id = connection.scalar(sa.select(_study.id).select_from(joined).where(_study.name == name))
                if study_id is None:
                    raise self.not_found(name, connection)
                if self._remember:
                    self._ids[name] = study_id
            return work(connection, study_id)

        if once and self._remember:
            return self.database.write_once(with_id)
        # With the look-up, a single statement becomes two.
        return self.database.write(with_id) if write or once else self.database.read(with_id)

    def id(self, name: str) -> int:
        """Id of a study of schedules.

        Raises:
            StudyNotFoundError: There is no such study.
        """
        return self.transact(name, lambda _, study_id: study_id)

    def known(self, name: str) -> int | None:
        """Id of a study that was looked up before; None if it was not."""
        return self._ids.get(name)

    def assign(self, name: str, study_id: int) -> None:
        """Gives a study a name that is valid in this store alone."""
        self._ids[name] = study_id

    def forget(self, name: str) -> None:
        """Looks a name up anew from now on."""
        self._ids.pop(name, None)

    def any_id(self, name: str) -> int:
        """Id of a study, even of one that is Optuna's alone.

        Raises:
            StudyNotFoundError: There is none of this name.
        """
        selected = sa.select(_study.id).where(_study.name == name)
        found: int | None = self.database.read(lambda connection: connection.execute(selected).scalar())
        if found is None:
            raise self.not_found(name)
        return found

    def not_found(self, name: str, connection: Connection | None = None) -> StudyNotFoundError:
        """Error that says which studies there are instead of this one; the name is forgotten."""
        self.forget(name)
        if connection is None:
            return self.database.read(lambda connection: self.not_found(name, connection))
        if connection.scalar(sa.select(_study.id).where(_study.name == name)) is not None:
            return StudyNotFoundError(
                f"Study {name!r} in {self} is one of Optuna's alone: it has trials, but no model, data and settings to "
                f"go on with. See what there is with `ftp-search show {name}`, remove it with `ftp-search delete "
                f"{name}`, open it with studies.StudyStorage, or begin a study of another name with `ftp-search run`."
            )
        names = list(connection.execute(sa.select(_study.name).join(schema.search_run)).scalars())
        shown = difflib.get_close_matches(name, names, n=5, cutoff=0.4) or names[:5]
        there = f"there are {', '.join(map(repr, shown))}" if shown else "it holds none"
        more = "; `ftp-search studies` lists all" if len(names) > len(shown) else ""
        return StudyNotFoundError(f"There is no study {name!r} in {self}: {there}{more}.")


class Part:
    """Part of a store: what it keeps of the studies, or beside them, in their database.

    Args:
        names: The studies by name.
    """

    def __init__(self, names: StudyNames) -> None:
        self._names, self._storage, self._database = names, names.storage, names.database
