"""What schedules were found to do is kept for every study of the same model, data and router."""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"


def upgrade() -> None:
    """Add the table; it fills as studies evaluate."""
    op.create_table(
        "evaluation",
        sa.Column("context", sa.String(64), primary_key=True),
        sa.Column("schedule", sa.LargeBinary, primary_key=True),
        sa.Column("metrics", sa.JSON, nullable=False),
        sa.Column("seconds", sa.Float, nullable=False),
    )
