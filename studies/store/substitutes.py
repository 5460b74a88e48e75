"""Keeps the maps that stand in for what tokens skip, so that a study has the same ones wherever it goes on."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import sqlalchemy as sa
from sqlalchemy.engine import Connection, Row

from studies.errors import StorageError
from studies.sql import schema
from studies.store.names import Part

_table = schema.substitute


class Substitutes(Part):
    """Maps of studies, block by block."""

    def keep(self, name: str, blocks: Sequence[bytes]) -> None:
        """Keeps the maps of a study in the place of those that it has.

        Args:
            name: Name of the study.
            blocks: Maps of each block as safetensors bytes.
        """

        def work(connection: Connection, study_id: int) -> None:
            connection.execute(sa.delete(_table).where(_table.c.study_id == study_id))
            # One block at a time: all of a large model are too much for one message.
            for block, weights in enumerate(blocks):
                row = {"study_id": study_id, "block": block, "weights": weights}
                connection.execute(sa.insert(_table), {**row, "sha256": hashlib.sha256(weights).hexdigest()})

        self._names.transact(name, work, write=True)

    def of(self, name: str) -> list[bytes]:
        """Maps of each block of a study as safetensors bytes; empty if it keeps none.

        Raises:
            StorageError: They are not those that were stored.
        """

        def work(connection: Connection, study_id: int) -> Sequence[Row[str, bytes]]:
            selected = sa.select(_table.c.sha256, _table.c.weights).where(_table.c.study_id == study_id)
            return connection.execute(selected.order_by(_table.c.block)).all()

        rows = self._names.transact(name, work)
        for block, row in enumerate(rows):
            if hashlib.sha256(row.weights).hexdigest() != row.sha256:
                raise StorageError(
                    f"The substitutes of study {name!r} were altered in {self._database}: those of block {block} no "
                    f"longer have the hash {row.sha256}, so that results would not compare. Restore the database, or "
                    "start a new study."
                )
        return [bytes(row.weights) for row in rows]
