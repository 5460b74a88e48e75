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

_measurement, _example = schema.measurement, schema.example


class Results(Part):
    """Results of studies beside their trials and routers."""

    def replace_measurements(self, name: str, measurements: Sequence[Measurement]) -> None:
        """Keeps these measurements instead of those before."""

        def work(connection: Connection, study_id: int) -> None:
            connection.execute(sa.delete(_measurement).where(_measurement.c.study_id == study_id))
            for figures in map(asdict, measurements):
                row = {"study_id": study_id, "schedule": figures.pop("schedule"), "figures": figures}
                connection.execute(sa.insert(_measurement), row)

        self._names.transact(name, work, write=True)

    def measurements(self, name: str) -> list[Measurement]:
        """Measurements in the order in which they were handed over."""
        selected = sa.select(_measurement).order_by(_measurement.c.id)

        def work(connection: Connection, study_id: int) -> list[Measurement]:
            rows = connection.execute(selected.where(_measurement.c.study_id == study_id))
            return [Measurement(schedule=row.schedule, **row.figures) for row in rows]

        return self._names.transact(name, work)

    def keep_examples(self, name: str, examples: ReportExamples) -> None:
        """Keeps the single prompts and items that a report shows, instead of those before."""
        contents = asdict(examples).items()

        def work(connection: Connection, study_id: int) -> None:
            connection.execute(sa.delete(_example).where(_example.c.study_id == study_id))
            rows = [{"study_id": study_id, "kind": kind, "content": content} for kind, content in contents]
            connection.execute(sa.insert(_example), rows)

        self._names.transact(name, work, write=True)

    def examples(self, name: str) -> ReportExamples | None:
        """Single prompts and items that a report shows; None before they were looked at."""

        def work(connection: Connection, study_id: int) -> dict[str, Any]:
            rows = connection.execute(sa.select(_example).where(_example.c.study_id == study_id))
            return {row.kind: row.content for row in rows}

        found = self._names.transact(name, work)
        return _EXAMPLES.validate_python(found) if found else None
