"""Keeps what came out of studies of schedules: measurements, and examples of what they mean."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from studies.records.measurement import Measurement
from studies.records.records import Disagreement, Exhibits, GroupAccuracy, RoutedPrompt
from studies.sql import schema
from studies.store.names import Part


class Results(Part):
    """Results of studies beside their trials and routers."""

    def replace_measurements(self, name: str, measurements: Sequence[Measurement]) -> None:
        """Keeps these measurements instead of those before."""

        def work(connection: Connection, study_id: int) -> None:
            table = schema.measurement
            connection.execute(sa.delete(table).where(table.c.study_id == study_id))
            for measurement in measurements:
                figures = asdict(measurement)
                row = {"study_id": study_id, "schedule": figures.pop("schedule"), "figures": figures}
                connection.execute(sa.insert(table), row)

        self._names.transact(name, work, write=True)

    def measurements(self, name: str) -> list[Measurement]:
        """Measurements in the order in which they were handed over."""
        table = schema.measurement

        def work(connection: Connection, study_id: int) -> list[Measurement]:
            rows = connection.execute(sa.select(table).where(table.c.study_id == study_id).order_by(table.c.id))
            return [Measurement(schedule=row.schedule, **row.figures) for row in rows]

        return self._names.transact(name, work)

    def keep_exhibits(self, name: str, exhibits: Exhibits) -> None:
        """Keeps the single prompts and items that a report shows, instead of those before."""
        table, contents = schema.exhibit, asdict(exhibits)

        def work(connection: Connection, study_id: int) -> None:
            connection.execute(sa.delete(table).where(table.c.study_id == study_id))
            rows = [{"study_id": study_id, "kind": kind, "content": content} for kind, content in contents.items()]
            connection.execute(sa.insert(table), rows)

        self._names.transact(name, work, write=True)

    def exhibits(self, name: str) -> Exhibits | None:
        """Single prompts and items that a report shows; None before they were looked at."""
        table = schema.exhibit

        def work(connection: Connection, study_id: int) -> dict[str, Any]:
            rows = connection.execute(sa.select(table).where(table.c.study_id == study_id))
            return {row.kind: row.content for row in rows}

        found = self._names.transact(name, work)
        return _exhibits(found) if found else None


def _exhibits(found: Mapping[str, Any]) -> Exhibits:
    """Exhibits from JSON, which knows no tuples."""
    return Exhibits(
        **{
            **found,
            "prompts": tuple(
                RoutedPrompt(**{**one, "tokens": tuple(one["tokens"]), "blocks_run": tuple(one["blocks_run"])})
                for one in found["prompts"]
            ),
            "groups": tuple(
                GroupAccuracy(**{**one, "interval": {name: tuple(ends) for name, ends in one["interval"].items()}})
                for one in found["groups"]
            ),
            "disagreements": tuple(Disagreement(**one) for one in found["disagreements"]),
            "kl_ratios": {name: (low, high) for name, (low, high) in found["kl_ratios"].items()},
        }
    )
