"""What a report shows of single prompts and items is kept, so that it can be drawn without the model."""

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"


def upgrade() -> None:
    """Add the table; studies that were measured before have no exhibits until they are measured again."""
    op.create_table(
        "exhibit",
        sa.Column("study_id", sa.Integer, sa.ForeignKey("study.id", ondelete="CASCADE"), primary_key=True),
        sa.Column("kind", sa.String(32), primary_key=True),
        sa.Column("content", sa.JSON, nullable=False),
    )
