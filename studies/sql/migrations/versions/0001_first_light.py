"""First light: studies of schedules, one row a trial."""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None


def upgrade() -> None:
    """Make the tables of the first program."""
    op.create_table("schema_version", sa.Column("version", sa.Integer, nullable=False))
    op.execute("INSERT INTO schema_version (version) VALUES (1)")
    op.create_table(
        "study",
        sa.Column("id", sa.Integer, primary_key=True),
        sa.Column("name", sa.String(255), nullable=False, unique=True),
        sa.Column("state", sa.String(16), nullable=False),
        sa.Column("created_at", sa.String(40), nullable=False),
        sa.Column("config", sa.JSON, nullable=False),
        sa.Column("objectives", sa.JSON, nullable=False),
        sa.Column("facts", sa.JSON, nullable=False),
        sa.Column("chosen_trial", sa.Integer),
    )
    op.create_table(
        "trial",
        _study_id(primary_key=True),
        sa.Column("number", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("state", sa.String(16), nullable=False),
        sa.Column("schedule", sa.LargeBinary, nullable=False),
        sa.Column("objective_values", sa.LargeBinary),
        sa.Column("fidelity", sa.Float, nullable=False),
        sa.Column("proposer", sa.String(64), nullable=False),
        sa.Column("seconds", sa.Float, nullable=False),
        sa.Column("finished_at", sa.String(40), nullable=False),
        sa.Column("metrics", sa.JSON, nullable=False),
        sa.Column("error", sa.Text),
    )
    op.create_table(
        "measurement",
        sa.Column("id", sa.Integer, primary_key=True),
        _study_id(),
        sa.Column("schedule", sa.LargeBinary, nullable=False),
        sa.Column("figures", sa.JSON, nullable=False),
    )
    op.create_table(
        "router_run",
        sa.Column("id", sa.Integer, primary_key=True),
        _study_id(),
        sa.Column("trial", sa.Integer, nullable=False),
        sa.Column("schedule", sa.LargeBinary, nullable=False),
        sa.Column("config", sa.JSON, nullable=False),
        sa.Column("curves", sa.JSON, nullable=False),
        sa.Column("weights", sa.LargeBinary, nullable=False),
        sa.Column("sha256", sa.String(64), nullable=False),
        sa.Column("seconds", sa.Float, nullable=False),
        sa.Column("created_at", sa.String(40), nullable=False),
    )


def _study_id(primary_key: bool = False) -> sa.Column[int]:
    return sa.Column(
        "study_id",
        sa.Integer,
        sa.ForeignKey("study.id", ondelete="CASCADE"),
        nullable=False,
        primary_key=primary_key,
        index=True,
    )
