"""Keeps what other methods came to on studies."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict

import sqlalchemy as sa
from pydantic import TypeAdapter
from sqlalchemy.engine import Connection

from studies.records.compared import Compared
from studies.sql import schema
from studies.store.names import Part

_table = schema.comparison
_KEYS = ("method", "match", "target", "seed", "context")
# JSON knows no tuples.
_COMPARED = TypeAdapter(Compared)


class Comparisons(Part):
    """Models of other methods, one for each method, target and seed."""

    def keep(self, name: str, one: Compared) -> None:
        """Keeps what a method came to, in the place of what it had at the same target and seed."""
        content = asdict(one)
        keys = {key: content.pop(key) for key in _KEYS}

        def work(connection: Connection, study_id: int) -> None:
            same = [_table.c.study_id == study_id, *(_table.c[key] == value for key, value in keys.items())]
            connection.execute(sa.delete(_table).where(*same))
            connection.execute(sa.insert(_table), {"study_id": study_id, **keys, "content": content})

        self._names.transact(name, work, write=True)

    def of(self, name: str) -> list[Compared]:
        """What methods came to on a study, the oldest first."""

        def work(connection: Connection, study_id: int) -> Sequence[sa.Row[tuple[object, ...]]]:
            return connection.execute(
                sa.select(_table).where(_table.c.study_id == study_id).order_by(_table.c.id)
            ).all()

        rows = self._names.transact(name, work)
        return [_COMPARED.validate_python({**row.content, **{key: getattr(row, key) for key in _KEYS}}) for row in rows]
