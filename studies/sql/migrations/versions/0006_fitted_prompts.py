"""Studies keep the prompts that keys and values of skipped tokens are fitted to."""

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"


def upgrade() -> None:
    """Makes the table; studies of before fit none."""
    op.create_table(
        "fitted_prompts",
        sa.Column("study_id", sa.Integer, sa.ForeignKey("study.id", ondelete="CASCADE"), primary_key=True),
        sa.Column("prompts", sa.JSON, nullable=False),
    )
