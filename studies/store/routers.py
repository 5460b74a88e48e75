"""Keeps the routers that studies distilled, with their weights."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection, Row

from studies.errors import StorageError
from studies.records.records import RouterRun
from studies.sql import schema
from studies.store.names import Part


class Routers(Part):
    """Distilled routers of studies."""

    def add(self, name: str, run: RouterRun) -> None:
        """Keep a distilled router with its weights.

        Raises:
            StorageError: The weights' hash is not the one that they are said to have.
        """
        if hashlib.sha256(run.weights).hexdigest() != run.sha256:
            raise StorageError(f"The router's weights do not have the hash {run.sha256}: hand over both of one router.")
        row = asdict(run) | {"config": dict(run.config), "curves": dict(run.curves)}
        del row["number"]
        self._names.transact(
            name,
            lambda connection, study_id: connection.execute(
                sa.insert(schema.router_run), {"study_id": study_id, **row}
            ),
            write=True,
        )

    def of(self, name: str, with_weights: bool = True) -> list[RouterRun]:
        """Every router of a study, oldest first.

        Args:
            name: The study.
            with_weights: Whether to read the weights, too; they are empty otherwise.

        Raises:
            StorageError: The weights of one are not those that were stored.
        """
        table = schema.router_run
        columns = [one for one in table.c if one.name not in ("id", "study_id", "weights")]
        selected = sa.select(*columns, *([table.c.weights] if with_weights else []))

        def work(connection: Connection, study_id: int) -> Sequence[Row[Any]]:
            return connection.execute(selected.where(table.c.study_id == study_id).order_by(table.c.id)).all()

        runs = []
        for number, row in enumerate(self._names.transact(name, work)):
            fields = row._asdict()
            weights = fields.pop("weights", b"")
            if with_weights and hashlib.sha256(weights).hexdigest() != row.sha256:
                raise StorageError(
                    f"A router of study {name!r} was altered in {self._database}: its weights no longer have the hash "
                    f"{row.sha256}. Restore the database, or distil the router again."
                )
            runs.append(RouterRun(weights=bytes(weights), number=number, **fields))
        return runs

    def latest(self, name: str) -> RouterRun | None:
        """The router that was stored last."""
        runs = self.of(name)
        return runs[-1] if runs else None
