"""Keeps the prompts that keys and values are fitted to, so that a study fits the same ones wherever it goes on."""

from __future__ import annotations

from collections.abc import Sequence

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from studies.sql import schema
from studies.store.names import Part

_table = schema.fitted_prompts


class FittedPrompts(Part):
    """Token ids of the prompts of studies."""

    def keep(self, name: str, prompts: Sequence[Sequence[int]]) -> None:
        """Keeps the prompts of a study in the place of those that it has.

        Args:
            name: Name of the study.
            prompts: Token ids of each.
        """

        def work(connection: Connection, study_id: int) -> None:
            connection.execute(sa.delete(_table).where(_table.c.study_id == study_id))
            connection.execute(sa.insert(_table), {"study_id": study_id, "prompts": [list(one) for one in prompts]})

        self._names.transact(name, work, write=True)

    def of(self, name: str) -> list[tuple[int, ...]]:
        """Token ids of each prompt of a study; empty if it keeps none."""

        def work(connection: Connection, study_id: int) -> list[list[int]]:
            selected = sa.select(_table.c.prompts).where(_table.c.study_id == study_id)
            return connection.execute(selected).scalar() or []

        return [tuple(one) for one in self._names.transact(name, work)]
