"""Studies keep the maps that stand in for what tokens skip."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    """Makes the table; studies of before fit their maps once more, and keep them then."""
    op.create_table(
        "substitute",
        sa.Column("study_id", sa.Integer, sa.ForeignKey("study.id", ondelete="CASCADE"), primary_key=True),
        sa.Column("block", sa.Integer, primary_key=True),
        sa.Column("sha256", sa.String(64), nullable=False),
        sa.Column("weights", sa.LargeBinary, nullable=False),
    )
