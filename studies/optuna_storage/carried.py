"""Takes what this program alone knows of a study to an Optuna database and back, as attributes of the study there."""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping
from datetime import datetime
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from studies.errors import StorageError
from studies.sql import schema
from studies.sql.database import Database
from studies.sql.times import UtcTime

# Everything that is of one study, but for who works on it, its place in a queue, what its runs said, and substitutes,
# which are megabytes and can be fitted to its data once more.
_TABLES = (
    schema.search_run,
    schema.label,
    schema.stage,
    schema.proposer_state,
    schema.measurement,
    schema.comparison,
    schema.router_run,
    schema.example,
    schema.fitted_prompts,
)
_KEY = "ftp-search:"
# Characters of an attribute: some databases of Optuna's keep no more than 64 KiB.
_PIECE = 15_000


def carried(database: Database, study_id: int) -> dict[str, str]:
    """Attributes that say what this program knows of a study beyond its trials; empty if it is Optuna's alone."""

    def rows(connection: Connection, table: sa.Table) -> list[dict[str, Any]]:
        columns = [column for column in table.columns if column.name not in ("id", "study_id")]
        selected = sa.select(*columns).where(table.c.study_id == study_id)
        ordered = selected.order_by(table.c.id) if "id" in table.c else selected
        return [{key: _plain(value) for key, value in row._mapping.items()} for row in connection.execute(ordered)]

    found = database.read(lambda connection: {table.name: rows(connection, table) for table in _TABLES})
    if not found[schema.search_run.name]:
        return {}
    text = json.dumps({"revision": schema.HEAD, "tables": found})
    return {f"{_KEY}{at // _PIECE}": text[at : at + _PIECE] for at in range(0, len(text), _PIECE)}


def split_carried(attributes: Mapping[str, Any]) -> tuple[dict[str, Any], str | None]:
    """Attributes of a study without those that `carried` made, and what these say; None if there are none."""
    pieces = {key: value for key, value in attributes.items() if key.startswith(_KEY)}
    rest = {key: value for key, value in attributes.items() if key not in pieces}
    return rest, "".join(pieces[f"{_KEY}{number}"] for number in range(len(pieces))) if pieces else None


def take_over(database: Database, study_id: int, text: str) -> None:
    """Let a study know again what `carried` said of it.

    Raises:
        StorageError: A newer program said so.
    """
    values = json.loads(text)
    if values["revision"] > schema.HEAD:
        raise StorageError(
            f"The study was exported by a program with schema revision {values['revision']}, and this one reads "
            f"{schema.HEAD}: import it with that program."
        )

    def work(connection: Connection) -> None:
        for table in _TABLES:
            rows = [
                {key: _typed(table.c[key], value) for key, value in row.items() if key in table.c}
                for row in values["tables"].get(table.name, [])
            ]
            if rows:
                connection.execute(sa.insert(table), [{"study_id": study_id, **row} for row in rows])

    database.write(work)


def _plain(value: Any) -> Any:
    """A value of a column in terms of JSON."""
    if isinstance(value, bytes):
        return base64.b64encode(value).decode()
    return value.isoformat() if isinstance(value, datetime) else value


def _typed(column: sa.Column[Any], value: Any) -> Any:
    """`_plain` undone."""
    if value is None:
        return None
    if isinstance(column.type, UtcTime):
        return datetime.fromisoformat(value)
    return base64.b64decode(value) if isinstance(column.type, sa.LargeBinary) else value
