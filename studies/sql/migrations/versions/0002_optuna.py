"""Every study is an Optuna study too, weights are files, and who works on a study holds a lease."""

import json
import struct
from datetime import datetime
from typing import Any

import sqlalchemy as sa
from alembic import context, op

from studies.store.artifacts import ArtifactStore, artifact_folder

revision = "0002"
down_revision = "0001"

_OLD = ("router_run", "measurement", "trial", "study", "schema_version")
_SPARSITY = {
    "name": "FloatDistribution",
    "attributes": {"step": None, "low": 0.0, "high": 1.0, "log": False},
}
_COMPLETE, _FAIL = 1, 3


def upgrade() -> None:
    """Read everything, make the tables anew, and write it back in their shape."""
    connection = op.get_bind()
    old = {name: _rows(connection, name) for name in _OLD}
    artifacts = ArtifactStore(artifact_folder(context.config.attributes["url"]))
    for name in _OLD:
        op.drop_table(name)
    new = _create_tables()
    trials = {row["id"]: [trial for trial in old["trial"] if trial["study_id"] == row["id"]] for row in old["study"]}
    next_distribution, next_trial = 1, 1
    for row in old["study"]:
        objectives = _json(row["objectives"])
        own = trials[row["id"]]
        study = {"id": row["id"], "name": row["name"], "directions": [1] * len(objectives), "n_trials": len(own)}
        connection.execute(new["study"].insert(), study)
        run = {key: row[key] for key in ("state", "created_at", "chosen_trial")}
        run |= {key: _json(row[key]) for key in ("config", "objectives", "facts")}
        connection.execute(new["search_run"].insert(), {"study_id": row["id"], **run})
        n_blocks = max((len(trial["schedule"]) // 8 for trial in own), default=0)
        ids = range(next_distribution, next_distribution + n_blocks)
        next_distribution += n_blocks
        for index, number in enumerate(ids):
            distribution = {"id": number, "study_id": row["id"], "name": f"block_{index}"}
            connection.execute(new["distribution"].insert(), {**distribution, "definition": json.dumps(_SPARSITY)})
        # The storage counts on ids in the order of numbers.
        for trial in sorted(own, key=lambda trial: trial["number"]):
            connection.execute(new["trial"].insert(), {"id": next_trial, **_trial(trial, ids)})
            next_trial += 1
    for row in old["measurement"]:
        connection.execute(new["measurement"].insert(), row | {"figures": _json(row["figures"])})
    for row in old["router_run"]:
        kept = row | {key: _json(row[key]) for key in ("config", "curves")}
        artifacts.put(bytes(kept.pop("weights")))
        connection.execute(new["router_run"].insert(), kept)
    if connection.dialect.name == "postgresql":
        # Rows were written with their ids: the sequences behind them do not know.
        for name in ("study", "distribution", "trial", "measurement", "router_run"):
            top = f"(SELECT max(id) FROM {name})"
            op.execute(f"SELECT setval(pg_get_serial_sequence('{name}', 'id'), coalesce({top}, 1), {top} IS NOT NULL)")


def _trial(row: dict[str, Any], ids: range) -> dict[str, Any]:
    """A trial in Optuna's shape: its schedule as parameters, the rest as attributes."""
    schedule = bytes(row["schedule"])
    n = len(schedule) // 8
    attributes = {key: row[key] for key in ("proposer", "fidelity", "seconds", "finished_at")}
    attributes["metrics"] = _json(row["metrics"])
    if row["error"] is not None:
        attributes["error"] = row["error"]
    return {
        "study_id": row["study_id"],
        "number": row["number"],
        "state": _COMPLETE if row["state"] == "finished" else _FAIL,
        "params": struct.pack(f"<{n}i", *ids[:n]) + schedule,
        "objective_values": row["objective_values"],
        "user_attributes": json.dumps(attributes),
        "completed_at": datetime.fromisoformat(row["finished_at"]).astimezone().replace(tzinfo=None).isoformat(),
    }


def _rows(connection: sa.Connection, table: str) -> list[dict[str, Any]]:
    return [dict(row) for row in connection.execute(sa.text(f"SELECT * FROM {table}")).mappings()]


def _json(value: Any) -> Any:
    # SQLite gives JSON back as text, PostgreSQL as what it means.
    return json.loads(value) if isinstance(value, str) else value


def _create_tables() -> dict[str, sa.Table]:
    study = op.create_table(
        "study",
        sa.Column("id", sa.Integer, primary_key=True),
        sa.Column("name", sa.Text, nullable=False, unique=True),
        sa.Column("directions", sa.JSON, nullable=False),
        sa.Column("n_trials", sa.Integer, nullable=False),
        sqlite_autoincrement=True,
    )
    study_attribute = op.create_table(
        "study_attribute",
        sa.Column("study_id", sa.Integer, sa.ForeignKey("study.id", ondelete="CASCADE"), primary_key=True),
        sa.Column("kind", sa.String(8), primary_key=True),
        sa.Column("key", sa.Text, primary_key=True),
        sa.Column("value", sa.Text, nullable=False),
    )
    distribution = op.create_table(
        "distribution",
        sa.Column("id", sa.Integer, primary_key=True),
        _study_id(),
        sa.Column("name", sa.Text, nullable=False),
        sa.Column("definition", sa.Text, nullable=False),
        sqlite_autoincrement=True,
    )
    trial = op.create_table(
        "trial",
        sa.Column("id", sa.Integer, primary_key=True),
        sa.Column("study_id", sa.Integer, sa.ForeignKey("study.id", ondelete="CASCADE"), nullable=False),
        sa.Column("number", sa.Integer, nullable=False),
        sa.Column("state", sa.SmallInteger, nullable=False),
        sa.Column("params", sa.LargeBinary, nullable=False),
        sa.Column("objective_values", sa.LargeBinary),
        sa.Column("intermediate_values", sa.LargeBinary),
        sa.Column("user_attributes", sa.Text),
        sa.Column("system_attributes", sa.Text),
        sa.Column("started_at", sa.String(26)),
        sa.Column("completed_at", sa.String(26)),
        sa.UniqueConstraint("study_id", "number", name="uq_trial_number"),
        sqlite_autoincrement=True,
    )
    unfinished = sa.text("state IN (0, 4)")
    op.create_index(
        "ix_trial_unfinished",
        "trial",
        ["study_id", "state"],
        sqlite_where=unfinished,
        postgresql_where=unfinished,
    )
    search_run = op.create_table(
        "search_run",
        sa.Column("study_id", sa.Integer, sa.ForeignKey("study.id", ondelete="CASCADE"), primary_key=True),
        sa.Column("state", sa.String(16), nullable=False),
        sa.Column("created_at", sa.String(40), nullable=False),
        sa.Column("config", sa.JSON, nullable=False),
        sa.Column("objectives", sa.JSON, nullable=False),
        sa.Column("facts", sa.JSON, nullable=False),
        sa.Column("chosen_trial", sa.Integer),
    )
    op.create_table(
        "stage",
        sa.Column("study_id", sa.Integer, sa.ForeignKey("study.id", ondelete="CASCADE"), primary_key=True),
        sa.Column("name", sa.String(32), primary_key=True),
        sa.Column("state", sa.String(16), nullable=False),
        sa.Column("began_at", sa.String(40), nullable=False),
        sa.Column("ended_at", sa.String(40)),
    )
    op.create_table(
        "lease",
        sa.Column("study_id", sa.Integer, sa.ForeignKey("study.id", ondelete="CASCADE"), primary_key=True),
        sa.Column("owner", sa.String(36), nullable=False),
        sa.Column("host", sa.Text, nullable=False),
        sa.Column("pid", sa.Integer, nullable=False),
        sa.Column("acquired_at", sa.Float(53), nullable=False),
        sa.Column("renewed_at", sa.Float(53), nullable=False),
    )
    op.create_table(
        "latency_profile",
        sa.Column("fingerprint", sa.String(64), primary_key=True),
        sa.Column("conditions", sa.JSON, nullable=False),
        sa.Column("profile", sa.JSON, nullable=False),
        sa.Column("created_at", sa.String(40), nullable=False),
    )
    measurement = op.create_table(
        "measurement",
        sa.Column("id", sa.Integer, primary_key=True),
        _study_id(),
        sa.Column("schedule", sa.LargeBinary, nullable=False),
        sa.Column("figures", sa.JSON, nullable=False),
    )
    router_run = op.create_table(
        "router_run",
        sa.Column("id", sa.Integer, primary_key=True),
        _study_id(),
        sa.Column("trial", sa.Integer, nullable=False),
        sa.Column("schedule", sa.LargeBinary, nullable=False),
        sa.Column("config", sa.JSON, nullable=False),
        sa.Column("curves", sa.JSON, nullable=False),
        sa.Column("sha256", sa.String(64), nullable=False),
        sa.Column("seconds", sa.Float, nullable=False),
        sa.Column("created_at", sa.String(40), nullable=False),
    )
    tables = (study, study_attribute, distribution, trial, search_run, measurement, router_run)
    return {table.name: table for table in tables}


def _study_id() -> sa.Column[int]:
    return sa.Column("study_id", sa.Integer, sa.ForeignKey("study.id", ondelete="CASCADE"), nullable=False, index=True)
