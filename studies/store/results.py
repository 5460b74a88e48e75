"""Keeps what came out of studies of schedules: measurements, and examples of what they mean."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import sqlalchemy as sa
from pydantic import TypeAdapter
from sqlalchemy.engine import Connection

from studies.records.measurement import Measurement
from studies.records.records import ReportExamples
from studies.sql import schema
from studies.store.names import Part

# JSON knows no tuples.
_EXAMPLES = TypeAdapter(ReportExamples)


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

    def keep_examples(self, name: str, examples: ReportExamples) -> None:
        """Keeps the single prompts and items that a report shows, instead of those before."""
        table, contents = schema.example, asdict(examples)

        def work(connection: Connection, study_id: int) -> None:
            connection.execute(sa.delete(table).where(table.c.study_id == study_id))
            rows = [{"study_id": study_id, "kind": kind, "content": content} for kind, content in contents.items()]
            connection.execute(sa.insert(table), rows)

        self._names.transact(name, work, write=True)

    def examples(self, name: str) -> ReportExamples | None:
        """Single prompts and items that a report shows; None before they were looked at."""
        table = schema.example

        def work(connection: Connection, study_id: int) -> dict[str, Any]:
            rows = connection.execute(sa.select(table).where(table.c.study_id == study_id))
            return {row.kind: row.content for row in rows}

        found = self._names.transact(name, work)
        return _EXAMPLES.validate_python(found) if found else None
