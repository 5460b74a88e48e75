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

_table = schema.router_run


class Routers(Part):
    """Distilled routers of studies."""

    def add(self, name: str, run: RouterRun, weights: bytes) -> None:
        """Keeps a distilled router.

        Args:
            name: Name of the study.
            run: The router, whatever its number.
            weights: Its weights as safetensors bytes.

        Raises:
            StorageError: The weights' hash is not the one that they are said to have.
        """
        if hashlib.sha256(weights).hexdigest() != run.sha256:
            raise StorageError(f"The router's weights do not have the hash {run.sha256}: hand over both of one router.")
        row = asdict(run) | {"config": dict(run.config), "curves": dict(run.curves), "weights": weights}
        del row["number"]
        self._names.transact(
            name,
            lambda connection, study_id: connection.execute(sa.insert(_table), {"study_id": study_id, **row}),
            write=True,
        )

    def of(self, name: str) -> list[RouterRun]:
        """Routers of a study without their weights, oldest first."""
        columns = [one for one in _table.c if one.name not in ("id", "study_id", "weights")]

        def work(connection: Connection, study_id: int) -> Sequence[Row[Any]]:
            selected = sa.select(*columns).where(_table.c.study_id == study_id)
            return connection.execute(selected.order_by(_table.c.id)).all()

        rows = self._names.transact(name, work)
        return [RouterRun(number=number, **row._asdict()) for number, row in enumerate(rows)]

    def weights(self, name: str, number: int) -> bytes:
        """Weights of a router as safetensors bytes.

        Raises:
            StorageError: They are not those that were stored, or there is no router of this number.
        """

        def work(connection: Connection, study_id: int) -> Row[str, bytes] | None:
            selected = sa.select(_table.c.sha256, _table.c.weights).where(_table.c.study_id == study_id)
            return connection.execute(selected.order_by(_table.c.id).offset(number).limit(1)).one_or_none()

        row = self._names.transact(name, work)
        if row is None:
            raise StorageError(f"Study {name!r} in {self._database} has no router {number}.")
        if hashlib.sha256(row.weights).hexdigest() != row.sha256:
            raise StorageError(
                f"A router of study {name!r} was altered in {self._database}: its weights no longer have the hash "
                f"{row.sha256}. Restore the database, or distil the router again."
            )
        return bytes(row.weights)
