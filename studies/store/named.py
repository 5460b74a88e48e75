"""Finds studies of schedules by name, for everything that is kept of them."""

from __future__ import annotations

import difflib
from collections.abc import Callable
from typing import TypeVar

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from studies.errors import StudyNotFoundError
from studies.sql import schema
from studies.sql.database import Database

T = TypeVar("T")

_study = schema.study.c


class NamedStudies:
    """The studies of schedules in a database, each under its name.

    Args:
        database: Where they live.
    """

    def __init__(self, database: Database) -> None:
        self._database = database
        self._ids: dict[str, int] = {}

    def __repr__(self) -> str:
        return str(self._database)

    def _of_study(self, name: str, work: Callable[[Connection, int], T], write: bool = False, once: bool = False) -> T:
        """Run `work` with a study's id.

        Args:
            name: Of the study.
            work: Reads, or writes in one transaction (`write`), or writes in one statement (`once`).
            write: See `Database.write`.
            once: See `Database.write_once`.

        Raises:
            StudyNotFoundError: There is no such study of schedules.
        """

        def with_id(connection: Connection) -> T:
            if name not in self._ids:
                joined = schema.study.join(schema.search_run)
                found = connection.execute(sa.select(_study.id).select_from(joined).where(_study.name == name)).scalar()
                if found is None:
                    raise self._not_found(name, connection)
                self._ids[name] = found
            return work(connection, self._ids[name])

        if once:
            return self._database.write_once(with_id)
        return self._database.write(with_id) if write else self._database.read(with_id)

    def _any_id(self, name: str) -> int:
        """The id of a study, be it one of Optuna's alone.

        Raises:
            StudyNotFoundError: There is none of this name.
        """
        selected = sa.select(_study.id).where(_study.name == name)
        found: int | None = self._database.read(lambda connection: connection.execute(selected).scalar())
        if found is None:
            raise self._not_found(name)
        return found

    def _not_found(self, name: str, connection: Connection | None = None) -> StudyNotFoundError:
        self._ids.pop(name, None)
        if connection is None:
            return self._database.read(lambda connection: self._not_found(name, connection))
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
