"""The service's queue, its workers, what they tell of their runs, and who may use it."""

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"


def _study_id() -> sa.Column[int]:
    return sa.Column("study_id", sa.Integer, sa.ForeignKey("study.id", ondelete="CASCADE"), primary_key=True)


def upgrade() -> None:
    """Add the tables; nobody may use a service until there is a token, or it is on this machine alone."""
    op.create_table(
        "submission",
        _study_id(),
        sa.Column("state", sa.String(16), nullable=False),
        sa.Column("submitted_at", sa.Float(53), nullable=False),
        sa.Column("submitted_by", sa.Text),
        sa.Column("worker", sa.String(36)),
        sa.Column("changes", sa.JSON, nullable=False),
        sa.Column("stop_requested", sa.Boolean, nullable=False),
        sa.Column("deaths", sa.Integer, nullable=False),
        sa.Column("progress", sa.Integer, nullable=False),
        sa.Column("n_events", sa.Integer, nullable=False),
        sa.Column("error", sa.Text),
    )
    op.create_table(
        "run_event",
        _study_id(),
        sa.Column("number", sa.Integer, primary_key=True),
        sa.Column("at", sa.Float(53), nullable=False),
        sa.Column("kind", sa.String(16), nullable=False),
        sa.Column("content", sa.JSON, nullable=False),
    )
    op.create_table(
        "worker",
        sa.Column("id", sa.String(36), primary_key=True),
        sa.Column("host", sa.Text, nullable=False),
        sa.Column("pid", sa.Integer, nullable=False),
        sa.Column("began_at", sa.Float(53), nullable=False),
        sa.Column("seen_at", sa.Float(53), nullable=False),
        sa.Column("study_id", sa.Integer, sa.ForeignKey("study.id", ondelete="SET NULL")),
    )
    op.create_table(
        "access_token",
        sa.Column("id", sa.Integer, primary_key=True),
        sa.Column("name", sa.Text, nullable=False, unique=True),
        sa.Column("role", sa.String(16), nullable=False),
        sa.Column("sha256", sa.String(64), nullable=False, unique=True),
        sa.Column("created_at", sa.String(40), nullable=False),
        sqlite_autoincrement=True,
    )
    op.create_table(
        "browser_session",
        sa.Column("sha256", sa.String(64), primary_key=True),
        sa.Column("token_id", sa.Integer, sa.ForeignKey("access_token.id", ondelete="CASCADE"), nullable=False),
        sa.Column("csrf", sa.String(64), nullable=False),
        sa.Column("expires_at", sa.Float(53), nullable=False),
    )
