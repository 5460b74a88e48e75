"""The tables: one row a study, one row a trial."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import numpy as np
from sqlalchemy import (
    JSON,
    Column,
    Dialect,
    Float,
    ForeignKey,
    Integer,
    LargeBinary,
    MetaData,
    String,
    Table,
    Text,
    TypeDecorator,
)

SCHEMA_VERSION = 1


class PackedFloats(TypeDecorator[tuple[float, ...]]):
    """A tuple of floats as little-endian float64: exact, eight bytes a value, and no parser between row and array."""

    impl = LargeBinary
    cache_ok = True

    def process_bind_param(self, value: tuple[float, ...] | None, dialect: Dialect) -> bytes | None:
        """To the database."""
        return None if value is None else np.asarray(value, dtype="<f8").tobytes()

    def process_result_value(self, value: Any, dialect: Dialect) -> tuple[float, ...] | None:
        """From the database."""
        return None if value is None else tuple(np.frombuffer(value, dtype="<f8").tolist())


class UtcTime(TypeDecorator[datetime]):
    """A moment as ISO 8601 text in UTC: the same on every database, with microseconds and a time zone."""

    impl = String(40)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> str | None:
        """To the database."""
        return None if value is None else value.astimezone(UTC).isoformat()

    def process_result_value(self, value: Any, dialect: Dialect) -> datetime | None:
        """From the database."""
        return None if value is None else datetime.fromisoformat(value)


metadata = MetaData()

schema_version = Table("schema_version", metadata, Column("version", Integer, nullable=False))

study = Table(
    "study",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("name", String(255), nullable=False, unique=True),
    Column("state", String(16), nullable=False),
    Column("created_at", UtcTime, nullable=False),
    Column("config", JSON, nullable=False),
    Column("objectives", JSON, nullable=False),
    Column("facts", JSON, nullable=False),
    Column("chosen_trial", Integer),
)


def _study_id(primary_key: bool = False) -> Column[int]:
    return Column(
        "study_id", ForeignKey("study.id", ondelete="CASCADE"), nullable=False, primary_key=primary_key, index=True
    )


trial = Table(
    "trial",
    metadata,
    _study_id(primary_key=True),
    Column("number", Integer, primary_key=True, autoincrement=False),
    Column("state", String(16), nullable=False),
    Column("schedule", PackedFloats, nullable=False),
    Column("objective_values", PackedFloats),
    Column("fidelity", Float, nullable=False),
    Column("proposer", String(64), nullable=False),
    Column("seconds", Float, nullable=False),
    Column("finished_at", UtcTime, nullable=False),
    Column("metrics", JSON, nullable=False),
    Column("error", Text),
)

measurement = Table(
    "measurement",
    metadata,
    Column("id", Integer, primary_key=True),
    _study_id(),
    Column("schedule", PackedFloats, nullable=False),
    Column("figures", JSON, nullable=False),
)

router_run = Table(
    "router_run",
    metadata,
    Column("id", Integer, primary_key=True),
    _study_id(),
    Column("trial", Integer, nullable=False),
    Column("schedule", PackedFloats, nullable=False),
    Column("config", JSON, nullable=False),
    Column("curves", JSON, nullable=False),
    Column("weights", LargeBinary, nullable=False),
    Column("sha256", String(64), nullable=False),
    Column("seconds", Float, nullable=False),
    Column("created_at", UtcTime, nullable=False),
)
