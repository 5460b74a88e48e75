"""Studies keep what other methods come to on their model and test items."""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"


def upgrade() -> None:
    """Makes the table; studies of before were compared with nothing."""
    op.create_table(
        "comparison",
        sa.Column("id", sa.Integer, primary_key=True),
        sa.Column("study_id", sa.Integer, sa.ForeignKey("study.id", ondelete="CASCADE"), nullable=False),
        sa.Column("method", sa.String(64), nullable=False),
        sa.Column("match", sa.String(16), nullable=False),
        sa.Column("target", sa.Float(53), nullable=False),
        sa.Column("seed", sa.Integer, nullable=False),
        sa.Column("context", sa.String(64), nullable=False),
        sa.Column("content", sa.JSON, nullable=False),
    )
    op.create_index("ix_comparison_study_id", "comparison", ["study_id"])
